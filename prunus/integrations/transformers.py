"""A callback of the Trainer of Hugging Face: `pip install "prunus[transformers]"`."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.errors import CheckpointError
from prunus.files import write_atomic
from prunus.integrations.callback import PruningCallback

STATE_FILE = "prunus.safetensors"
"""The state of the pruning in a checkpoint folder of the Trainer."""


class TransformersPruning(PruningCallback, TrainerCallback):
    """Prunes the model of a `transformers.Trainer` by a schedule, and writes a `.prunus` file at the end.

    Each checkpoint folder of the Trainer also holds the state of the pruning, so that a training that resumes from one
    in `output_dir` continues it.

        trainer = Trainer(model, args, callbacks=[TransformersPruning(0.5, rounds=10, every=50, path="model.prunus")])
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or continue with the state in the checkpoint of this step.

        Args:
            args: The settings of the Trainer, with the folder of its checkpoints.
            state: Its state, with the number of steps that are done.
            control: Not used.
            kwargs: The model and the optimizer.

        Raises:
            CheckpointError: The training resumes, but its checkpoint does not hold the state of the pruning.
        """
        saved = None
        if state.global_step:
            path = _state_path(args, state)
            try:
                saved = load(path.read_bytes())
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"Expected the state of the pruning in {path}, got {error}; train from the start, or resume from a "
                    "checkpoint that was made with this callback."
                ) from error
        self.start_pruning(kwargs["model"], kwargs["optimizer"], state.global_step, saved)

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Prune where it is due."""
        _, state, _ = arguments
        self.prune_until(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the state of the pruning into the checkpoint.

        Args:
            args: The settings of the Trainer, with the folder of its checkpoints.
            state: Its state.
            control: Not used.
            kwargs: Not used.
        """
        if self.pruning is not None and state.is_world_process_zero:
            write_atomic(_state_path(args, state), to_bytes(self.pruning.state_dict()))

    def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Detach the masks and write the file."""
        _, state, _ = arguments
        self.finish_pruning(is_writer=state.is_world_process_zero)


def _state_path(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / STATE_FILE
