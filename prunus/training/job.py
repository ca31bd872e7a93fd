"""A training that is asked for: what `train` is called with, as a value, so that somebody else can call it."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunus.nouns import Dataset
from prunus.training.constraints import Constraint
from prunus.training.evaluate import Epoch
from prunus.training.loop import Report, train
from prunus.training.recipes import Recipe
from prunus.training.state import Observer, State


@dataclass(frozen=True)
class Job:
    """The arguments of `train`, which explains them. Carrying it out changes `model`."""

    model: nn.Module
    data: Dataset
    recipe: Recipe
    constraint: Constraint
    seed: int = 0
    start: State | None = None
    observer: Observer | None = None
    checkpoint: Path | None = None
    report: Report | None = None

    def carry_out(self) -> list[Epoch]:
        """Train alone."""
        return train(
            self.model,
            self.data,
            self.recipe,
            constraint=self.constraint,
            seed=self.seed,
            start=self.start,
            observer=self.observer,
            checkpoint=self.checkpoint,
            report=self.report,
        )
