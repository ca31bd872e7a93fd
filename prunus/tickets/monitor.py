"""Observe a training: evaluations, the early-stopping point, and the states at requested steps.

Training always runs its full length. The early-stopping point is the evaluated step with the lowest validation loss,
found afterwards (Frankle & Carbin 2019, Figure 1). The weights of that step are kept, so that the test split is
evaluated only once for it, after the choice.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunus.training.evaluation import best_index
from prunus.training.state import (
    TrainingState,
    TrainingView,
    add_prefix,
    clone_tensors,
    state_from_tensors,
    state_to_tensors,
    strip_prefix,
)
from prunus.types import Params, Split

_START = -1
"""Key of the state before the first step, among the states by step."""


@dataclass(frozen=True)
class CurvePoint:
    """The evaluation at one step: mean loss in nats, accuracies in percent."""

    step: int
    validation_loss: float
    validation_accuracy: float
    """NaN where labels are not classes."""
    test_accuracy: float | None = None


class TrainingMonitor:
    """An observer that evaluates every few steps, and at the first and the last step.

    Args:
        validation: Split that is evaluated; it chooses the early-stopping point.
        first_step: Step at which the training starts.
        last_step: Step at which it ends.
        eval_every: Number of steps between evaluations, at least 1.
        checkpoint_steps: Steps whose complete training state is kept.
        test: Split that is evaluated as well, for a figure; no choice depends on it.
        count_violations: Returns the number of weights that violate the constraint; called at every evaluation.
    """

    def __init__(
        self,
        validation: Split,
        *,
        first_step: int,
        last_step: int,
        eval_every: int = 100,
        checkpoint_steps: Collection[int] = (),
        test: Split | None = None,
        count_violations: Callable[[], int] | None = None,
    ) -> None:
        self.validation, self.test = validation, test
        self.first_step, self.last_step, self.eval_every = first_step, last_step, eval_every
        self.checkpoint_steps = set(checkpoint_steps)
        self.count_violations = count_violations
        self.violations = 0
        self.backend = "dense"
        """What trained, as in `EpochMetrics.backend`."""
        self.curve: list[CurvePoint] = []
        self.best: Params = {}
        """The model at the early-stopping point."""
        self.states: dict[int, TrainingState] = {}
        self.start: TrainingState | None = None
        """The training before its first step, as observed."""

    def is_due(self, step: int) -> bool:
        """Return whether the step is evaluated or its state is kept."""
        return step in self.checkpoint_steps or self._is_evaluated(step)

    def _is_evaluated(self, step: int) -> bool:
        return step % self.eval_every == 0 or step in (self.first_step, self.last_step)

    def observe(self, view: TrainingView) -> None:
        """Evaluate, and keep the states that were requested."""
        step = view.done
        if step == self.first_step:
            self.start = to_cpu(view.capture())
        if step in self.checkpoint_steps:
            self.states[step] = view.capture()
        if self._is_evaluated(step):
            self._evaluate(view, step)

    def _evaluate(self, view: TrainingView, step: int) -> None:
        if self.count_violations is not None:
            self.violations += self.count_violations()
        result = view.evaluate(self.validation)
        test = view.evaluate(self.test).accuracy if self.test is not None else None
        self.curve.append(CurvePoint(step, result.loss, result.accuracy, test))
        if self.stop == self.curve[-1]:
            self.best = clone_tensors(view.model.state_dict())

    @property
    def stop(self) -> CurvePoint:
        """The point with the lowest validation loss; the first of equal ones."""
        return self.curve[best_index([point.validation_loss for point in self.curve])]

    def curve_rows(self, level: int) -> list[dict[str, Any]]:
        """Return the curve as rows with a level, without fields that are empty or NaN."""
        rows = [{"level": level, **asdict(point)} for point in self.curve]
        return [{k: v for k, v in row.items() if v is not None and not math.isnan(v)} for row in rows]

    def state_dict(self) -> tuple[dict[str, Tensor], Any]:
        """Return everything observed so far, for a checkpoint: tensors, and values for JSON."""
        tensors = add_prefix("best/", self.best)
        states = {**self.states, **({} if self.start is None else {_START: self.start})}
        for key, state in states.items():
            tensors |= add_prefix(f"{key}/", state_to_tensors(state))
        values = {
            "curve": [asdict(point) for point in self.curve],
            "states": {str(key): state.step for key, state in states.items()},
            "violations": self.violations,
        }
        return tensors, values

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Restore what `state_dict` returned.

        Args:
            tensors: The tensors by name.
            values: The values: `curve`, `states` and `violations`.
        """
        self.curve = [CurvePoint(**point) for point in values["curve"]]
        self.violations = values["violations"]
        self.best = strip_prefix("best/", tensors)
        self.states = {
            int(key): state_from_tensors(step, strip_prefix(f"{key}/", tensors))
            for key, step in values["states"].items()
        }
        self.start = self.states.pop(_START, None)


def to_cpu(state: TrainingState) -> TrainingState:
    """Return the state with its tensors on the CPU, where stored states are."""
    model = {name: tensor.cpu() for name, tensor in state.model.items()}
    return replace(state, model=model, optimizer={name: t.cpu() for name, t in state.optimizer.items()})


def tensors_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Return whether two mappings have the same names with equal tensors.

    Args:
        left: Tensors of any shape by name.
        right: Tensors by name, on the same device.

    Returns:
        False if a name, a shape or an entry differs; the order of the names does not count.
    """
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
