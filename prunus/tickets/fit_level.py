"""Train a level of a ticket by a function of the user, in the place of the training loop of prunus."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.masks import Masks, all_kept
from prunus.pruning.prunable import prunable_weights
from prunus.tickets.monitor import TrainingMonitor
from prunus.training import Evaluation, evaluate
from prunus.training.fit import Fit, train_with
from prunus.training.state import TrainingState, clone_tensors
from prunus.types import Dataset, Split


@dataclass
class _UnobservedTraining:
    """The start and the end of a training whose steps prunus does not see: 0 and 1."""

    model: nn.Module
    done: int
    task: Mapping[str, Any]

    def capture(self) -> TrainingState:
        return TrainingState(self.done, clone_tensors(self.model.state_dict()))

    def evaluate(self, split: Split) -> Evaluation:
        return evaluate(self.model, split, backend="dense", **self.task)


def train_level_with(
    fit: Fit,
    model: nn.Module,
    data: Dataset,
    masks: Masks | None,
    start: TrainingState | None,
    task: Mapping[str, Any],
) -> TrainingMonitor:
    """Train one level by `fit(model, masks)`; it is evaluated before and afterwards, as steps 0 and 1.

    Args:
        fit: The function.
        model: Trained in place.
        data: The data set, of which the validation split is evaluated.
        masks: The masks of the level; None: every weight trains.
        start: The state that training starts from; None: the model as it is.
        task: The arguments forward and loss of `evaluate`.

    Returns:
        The monitor that observed the start and the end.

    Raises:
        TrainingError: A pruned weight was changed.
    """
    if start is not None:
        model.load_state_dict(start.model)
    if masks is None:
        masks = Masks(model, all_kept(prunable_weights(model)))
    monitor = TrainingMonitor(
        data.validation,
        first_step=0, last_step=1, eval_every=1, checkpoint_steps=(0,), count_violations=masks.verify,
    )  # fmt: skip
    monitor.observe(_UnobservedTraining(model, 0, task))
    train_with(fit, model, masks)
    monitor.observe(_UnobservedTraining(model, 1, task))
    return monitor
