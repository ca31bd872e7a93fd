"""Measure how long a forward pass takes on this machine."""

import time

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.pruning.structured.graph import as_arguments
from prunus.training.modes import eval_mode

MAX_RUNS = 20
MIN_RUNS = 3
SECONDS = 1.0
"""After this time no run is started, unless there are fewer than MIN_RUNS."""


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
    inputs = pytree.tree_map(lambda x: _repeat(x, batch_size), as_arguments(example_inputs))
    args, kwargs = inputs
    seconds: list[float] = []
    with eval_mode(model), torch.no_grad():
        model(*args, **kwargs)
        while len(seconds) < MIN_RUNS or (len(seconds) < MAX_RUNS and sum(seconds) < SECONDS):
            _synchronize(inputs)
            start = time.perf_counter()
            model(*args, **kwargs)
            _synchronize(inputs)
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def _repeat(value: object, batch_size: int | None) -> object:
    if batch_size is None or not isinstance(value, Tensor) or value.dim() == 0:
        return value
    times = -(-batch_size // len(value))
    return value.repeat(times, *[1] * (value.dim() - 1))[:batch_size]


def _synchronize(inputs: object) -> None:
    if any(isinstance(x, Tensor) and x.device.type == "cuda" for x in pytree.tree_leaves(inputs)):
        torch.cuda.synchronize()
