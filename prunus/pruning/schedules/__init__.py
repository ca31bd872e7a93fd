"""Schedules: a target and a number of rounds -> the densities to pass through. A file a schedule."""

from collections.abc import Callable

from prunus.pruning.schedules.cubic import cubic
from prunus.pruning.schedules.iterative import iterative
from prunus.pruning.schedules.layer_by_layer import layer_by_layer
from prunus.pruning.schedules.one_shot import one_shot
from prunus.types import Density

Schedule = Callable[[Density, int], list[Density]]

SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "iterative": iterative,
    "layer_by_layer": layer_by_layer,
    "cubic": cubic,
}

__all__ = ["SCHEDULES", "Schedule", "cubic", "iterative", "layer_by_layer", "one_shot"]
