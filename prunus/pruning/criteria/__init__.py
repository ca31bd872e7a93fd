"""Criteria: evidence -> a score a weight; the highest are kept. A file a criterion."""

from collections.abc import Callable

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.random import random
from prunus.pruning.criteria.scaled_magnitude import scaled_magnitude

Criterion = Callable[[Evidence], Scores]

CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "scaled_magnitude": scaled_magnitude,
    "random": random,
}

__all__ = ["CRITERIA", "Criterion", "magnitude", "random", "scaled_magnitude"]
