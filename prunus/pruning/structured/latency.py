"""Measure how long a forward pass takes on this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.pruning.structured.graph import as_arguments
from prunus.training.modes import eval_mode

MAX_RUNS = 20
MIN_RUNS = 3
SECONDS = 1.0
"""After this time per model no run is started, unless there are fewer than MIN_RUNS."""


@dataclass(frozen=True)
class LatencyComparison:
    """The time of a forward pass of two models, measured in turn."""

    before: float
    """Median seconds of the first model."""
    after: float
    """Median seconds of the second model."""
    speedup: tuple[float, float, float]
    """Lower quartile, median and upper quartile of the time of the first model divided by that of the second."""
    n: int
    """The number of forward passes of each model."""

    def to_json(self) -> dict[str, object]:
        """Times in milliseconds, the median speedup and its quartiles."""
        low, middle, high = self.speedup
        times = {"before_ms": 1000 * self.before, "after_ms": 1000 * self.after}
        return {**times, "speedup": middle, "speedup_quartiles": [low, high], "n": self.n}


def measure_latency(model: nn.Module, example_inputs: object, batch_size: int | None = None) -> float:
    """The shortest time of up to 20 forward passes in evaluation mode, after one that is not counted.

    The shortest time depends least on other programs that run on the machine.

    Args:
        model: Any module.
        example_inputs: What its forward takes: one tensor, a tuple of arguments, or a dict of named arguments.
        batch_size: The inputs are repeated along their first dimension up to this size; None: they are used as they
            are.

    Returns:
        Seconds of wall-clock time.

    >>> 0 < measure_latency(nn.Linear(2, 2), torch.zeros(1, 2), batch_size=32) < 1
    True
    """
    return float(_seconds([model], example_inputs, batch_size).min())


def compare_latency(
    before: nn.Module, after: nn.Module, example_inputs: object, batch_size: int | None = None
) -> LatencyComparison:
    """The times of up to 20 forward passes of each of two models in evaluation mode, after one that is not counted.

    The models take turns, so that other programs that run on the machine delay both of them.

    Args:
        before, after: Any modules that take the same inputs, such as a model and its slimmed copy.
        example_inputs: What their forward takes: one tensor, a tuple of arguments, or a dict of named arguments.
        batch_size: The inputs are repeated along their first dimension up to this size; None: they are used as they
            are.

    Returns:
        The medians, and the quartiles of the ratio.

    >>> slow, fast = nn.Sequential(*[nn.Linear(64, 64) for _ in range(50)]), nn.Linear(64, 64)
    >>> compare_latency(slow, fast, torch.zeros(1, 64)).speedup[0] > 1
    True
    """
    seconds = _seconds([before, after], example_inputs, batch_size)
    medians = np.median(seconds, axis=0)
    low, middle, high = np.quantile(seconds[:, 0] / seconds[:, 1], [0.25, 0.5, 0.75])
    return LatencyComparison(
        float(medians[0]), float(medians[1]), (float(low), float(middle), float(high)), len(seconds)
    )


def _seconds(
    models: Sequence[nn.Module], example_inputs: object, batch_size: int | None
) -> NDArray[np.float64]:
    """The wall-clock seconds of each pass of each model, [passes, models]."""
    inputs = pytree.tree_map(lambda x: _repeat(x, batch_size), as_arguments(example_inputs))
    passes: list[list[float]] = []
    for model in models:
        _seconds_of_pass(model, inputs)
    spent = 0.0
    while len(passes) < MIN_RUNS or (len(passes) < MAX_RUNS and spent < SECONDS * len(models)):
        passes.append([_seconds_of_pass(model, inputs) for model in models])
        spent += sum(passes[-1])
    return np.array(passes)


def _seconds_of_pass(model: nn.Module, inputs: tuple[tuple[object, ...], dict[str, object]]) -> float:
    args, kwargs = inputs
    with eval_mode(model), torch.no_grad():
        _synchronize(inputs)
        start = time.perf_counter()
        model(*args, **kwargs)
        _synchronize(inputs)
        return time.perf_counter() - start


def _repeat(value: object, batch_size: int | None) -> object:
    if batch_size is None or not isinstance(value, Tensor) or value.dim() == 0:
        return value
    times = -(-batch_size // len(value))
    return value.repeat(times, *[1] * (value.dim() - 1))[:batch_size]


def _synchronize(inputs: object) -> None:
    if any(isinstance(x, Tensor) and x.device.type == "cuda" for x in pytree.tree_leaves(inputs)):
        torch.cuda.synchronize()
