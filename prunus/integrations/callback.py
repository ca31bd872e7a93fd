"""What the callbacks of all libraries have in common: gradual pruning of the model, and a file at the end."""

import os
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.compression.save import save
from prunus.errors import NoEffectWarning, TrainingError
from prunus.files import check_writable
from prunus.pruning.gradual import GradualPruning
from prunus.types import Density


class PruningCallback:
    """Prunes a model by a schedule while another library trains it, keeps the masks, and writes a `.prunus` file."""

    def __init__(
        self,
        density: Density,
        *,
        rounds: int,
        every: int,
        schedule: str = "cubic",
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """Store the settings; they are checked when the training starts.

        Args:
            density: The fraction of weights to keep after the last round, in (0, 1]; one, or one per name.
            rounds: The number of rounds.
            every: The number of optimizer steps from one round to the next.
            schedule: "cubic", "iterative", or a function (density, rounds) -> densities.
            path: The file to write when the training ends; None writes no file.
            options: Other arguments of `prunus.GradualPruning`: begin, seed, criterion, scope, include, exclude, and so
                on.

        Raises:
            OutputError: The file cannot be written.
        """
        if path is not None:
            check_writable(path, force=True)
        self.path = path
        self.pruning: GradualPruning | None = None
        """The gradual pruning; None before the training starts."""
        self._make = partial(GradualPruning, schedule, density=density, rounds=rounds, every=every, **options)

    def start_pruning(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        num_steps: int,
        state: dict[str, Tensor] | None = None,
    ) -> None:
        """Begin, or continue from the `state_dict` of an interrupted training.

        Args:
            model: The model that is trained.
            optimizer: Its optimizer.
            num_steps: The number of optimizer steps that the library has counted so far.
            state: The state of the gradual pruning; None: its schedule begins with the next step.

        Raises:
            PrunusError: See `prunus.GradualPruning`.
        """
        self.pruning = self._make(model=model, optimizer=optimizer)
        if state:
            self.pruning.load_state_dict(state)
        # A library may count the steps of an earlier training too, which the schedule does not.
        self._earlier_steps = num_steps - self.pruning.num_steps

    def prune_until(self, num_steps: int) -> None:
        """Do what is due after this number of optimizer steps, as the library counts them."""
        while self.pruning is not None and self._earlier_steps + self.pruning.num_steps < num_steps:
            self.pruning.step()

    def finish_pruning(self, *, is_writer: bool) -> None:
        """Detach the masks, which stay in `pruning.masks`, and write the file.

        Args:
            is_writer: Whether this process writes the file.

        Raises:
            TrainingError: Pruned weights are not zero.
            OutputError: The file cannot be written.
        """
        if self.pruning is None:
            return
        masks = self.pruning.masks
        if masks is not None:
            masks.detach()
            if masks.verify():
                raise TrainingError(
                    f"Expected zeros where weights are pruned, got {masks.verify()} other weights; the weights of an "
                    "earlier step were loaded at the end of the training, so load those of the last one."
                )
        if not self.pruning.is_finished:
            warnings.warn(
                f"The training ended after {self.pruning.num_steps} steps, before the last round of pruning: the "
                f"density is {self.pruning.density:.3g}.",
                NoEffectWarning,
                stacklevel=2,
            )
        if self.path is not None and is_writer:
            save(self.pruning.model, self.path)
