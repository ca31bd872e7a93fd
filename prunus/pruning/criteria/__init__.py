"""Criteria: evidence -> a score a weight; the highest are kept. A file a criterion."""

from collections.abc import Callable

from prunus.pruning.criteria.gradient import gradient
from prunus.pruning.criteria.grasp import grasp
from prunus.pruning.criteria.large_final import large_final
from prunus.pruning.criteria.large_final_diff_sign import large_final_diff_sign
from prunus.pruning.criteria.large_final_same_sign import large_final_same_sign
from prunus.pruning.criteria.large_init import large_init
from prunus.pruning.criteria.large_init_large_final import large_init_large_final
from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.magnitude_increase import magnitude_increase
from prunus.pruning.criteria.magnitude_increase_diff_sign import magnitude_increase_diff_sign
from prunus.pruning.criteria.magnitude_increase_same_sign import magnitude_increase_same_sign
from prunus.pruning.criteria.movement import movement
from prunus.pruning.criteria.obd import obd
from prunus.pruning.criteria.random import random
from prunus.pruning.criteria.scaled_magnitude import scaled_magnitude
from prunus.pruning.criteria.small_final import small_final
from prunus.pruning.criteria.small_init import small_init
from prunus.pruning.criteria.small_init_small_final import small_init_small_final
from prunus.pruning.criteria.snip import snip
from prunus.pruning.criteria.synflow import synflow
from prunus.types import Scores, Statistics

Criterion = Callable[[Statistics], Scores]

CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "large_final": large_final,
    "scaled_magnitude": scaled_magnitude,
    "random": random,
    "small_final": small_final,
    "large_init": large_init,
    "small_init": small_init,
    "large_init_large_final": large_init_large_final,
    "small_init_small_final": small_init_small_final,
    "magnitude_increase": magnitude_increase,
    "movement": movement,
    "large_final_same_sign": large_final_same_sign,
    "large_final_diff_sign": large_final_diff_sign,
    "magnitude_increase_same_sign": magnitude_increase_same_sign,
    "magnitude_increase_diff_sign": magnitude_increase_diff_sign,
    "snip": snip,
    "gradient": gradient,
    "grasp": grasp,
    "synflow": synflow,
    "obd": obd,
}

__all__ = [
    "CRITERIA",
    "Criterion",
    "gradient",
    "grasp",
    "large_final",
    "large_final_diff_sign",
    "large_final_same_sign",
    "large_init",
    "large_init_large_final",
    "magnitude",
    "magnitude_increase",
    "magnitude_increase_diff_sign",
    "magnitude_increase_same_sign",
    "movement",
    "obd",
    "random",
    "scaled_magnitude",
    "small_final",
    "small_init",
    "small_init_small_final",
    "snip",
    "synflow",
]
