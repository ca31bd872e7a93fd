"""A callback of Lightning: `pip install "prunus[lightning]"`."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from prunus.errors import ModelError
from prunus.integrations.callback import PruningCallback


class LightningPruning(PruningCallback, Callback):
    """Prunes a LightningModule by a schedule while it trains, and writes a `.prunus` file at the end.

    Checkpoints of Lightning hold the state of the pruning, so that `trainer.fit(..., ckpt_path=...)` continues it. In
    another `fit`, or from a checkpoint without this state, the schedule begins with the first step.

        trainer = lightning.Trainer(callbacks=[LightningPruning(0.2, rounds=10, every=50, path="model.prunus")])
    """

    _state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin, with the optimizer of the module. Raises ModelError unless it has exactly one."""
        if len(trainer.optimizers) != 1:
            raise ModelError(
                f"Expected a LightningModule with one optimizer, got {len(trainer.optimizers)}; use "
                "prunus.GradualPruning in the training step."
            )
        state, self._state = self._state, None  # another training starts without it
        self.start_pruning(trainer.lightning_module, trainer.optimizers[0], trainer.global_step, state)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Prune where it is due; a step of the optimizer may have several batches."""
        self.prune_until(trainer.global_step)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Detach the masks and write the file."""
        self.finish_pruning(is_writer=trainer.is_global_zero)

    def on_exception(self, *_: Any) -> None:
        """Detach the masks of a training that fails or is interrupted, so that they do not act on the next one."""
        if self.pruning is not None and self.pruning.masks is not None:
            self.pruning.masks.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state of the pruning, for a checkpoint."""
        return {} if self.pruning is None else dict(self.pruning.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from this state when the training starts."""
        self._state = state_dict
