"""What is seen of a training that a ticket needs: the curve, the early-stopping point, states to go back to.

Training always runs its full length. The stopping point is the step of the lowest validation loss among those at which
it was evaluated, found afterwards (Frankle & Carbin 2019, Figure 1); the weights there are kept, so that the
test split need be looked at only once a point, after the choice.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.training import evaluate
from prunus.training.evaluate import best_index
from prunus.training.state import (
    TrainingState,
    TrainingView,
    clone_tensors,
    state_from_tensors,
    state_to_tensors,
    strip_prefix,
)
from prunus.types import Params, Split


@dataclass(frozen=True)
class CurvePoint:
    """A training at one step: mean losses in nats, accuracies in percent."""

    step: int
    validation_loss: float
    validation_accuracy: float
    test_accuracy: float | None = None


class TrainingMonitor:
    """An observer that evaluates every so many steps, and at the first and the last."""

    def __init__(
        self,
        validation: Split,
        *,
        first: int,
        last: int,
        every: int = 100,
        states: Collection[int] = (),
        test: Split | None = None,
        count_violations: Callable[[], int] | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        """Watch from step `first` to step `last`.

        Args:
            states: the steps whose whole state is kept.
            test: a split that is evaluated as well, for a figure; no choice looks at it.
            count_violations: counts the weights that are not as the training's constraint says; asked at every evaluation.
            beat: called at every evaluation, and before a checkpoint is written. It may raise: a run that another
                process has taken over must not write.
        """
        self.validation, self.test = validation, test
        self.first, self.last, self.every = first, last, every
        self.wanted = set(states)
        self.count_violations, self.beat = count_violations, beat
        self.curve: list[CurvePoint] = []
        self.best: Params = {}
        self.states: dict[int, TrainingState] = {}
        self.start: TrainingState | None = None
        """The training before its first step, as it really was."""
        self.violations = 0

    def is_due(self, step: int) -> bool:
        """At multiples of `every`, at wanted states, at both ends."""
        return step % self.every == 0 or step in self.wanted or step in (self.first, self.last)

    def observe(self, moment: TrainingView) -> None:
        """Evaluate, and keep what is wanted."""
        step = moment.done
        if step == self.first:
            self.start = to_cpu(moment.capture())
        if step in self.wanted:
            self.states[step] = moment.capture()
        if step % self.every == 0 or step in (self.first, self.last):
            self._evaluate(moment.model, step)
        if self.beat is not None:
            self.beat()

    def _evaluate(self, model: nn.Module, step: int) -> None:
        if self.count_violations is not None:
            self.violations += self.count_violations()
        result = evaluate(model, self.validation)
        test = evaluate(model, self.test).accuracy if self.test is not None else None
        self.curve.append(CurvePoint(step, result.loss, result.accuracy, test))
        if self.stop == self.curve[-1]:
            self.best = clone_tensors(model.state_dict())

    @property
    def stop(self) -> CurvePoint:
        """The point of the lowest validation loss, the first of equals."""
        return self.curve[best_index([point.validation_loss for point in self.curve])]

    def state_dict(self) -> tuple[dict[str, Tensor], Any]:
        """Everything seen so far, for a checkpoint that is about to be written."""
        if self.beat is not None:
            self.beat()
        tensors = {f"best/{name}": tensor for name, tensor in self.best.items()}
        kept = {**self.states, **({-1: self.start} if self.start is not None else {})}
        for key, state in kept.items():
            tensors |= {f"{key}/{name}": tensor for name, tensor in state_to_tensors(state).items()}
        said = {
            "curve": [asdict(point) for point in self.curve],
            "states": {str(key): state.step for key, state in kept.items()},
            "violations": self.violations,
        }
        return tensors, said

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Take it back."""
        self.curve = [CurvePoint(**point) for point in values["curve"]]
        self.violations = values["violations"]
        self.best = strip_prefix("best/", tensors)
        states = {
            int(key): state_from_tensors(step, strip_prefix(f"{key}/", tensors))
            for key, step in values["states"].items()
        }
        self.start = states.pop(-1, None)
        self.states = states


def to_cpu(state: TrainingState) -> TrainingState:
    """The state on the CPU, where what was kept of earlier trainings is."""
    model, optimizer = (
        {n: t.cpu() for n, t in tensors.items()} for tensors in (state.model, state.optimizer)
    )
    return replace(state, model=model, optimizer=optimizer)


def tensors_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names with equal tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
