"""Criteria: functions of statistics that return one score per weight; the highest scores are kept."""

from prunus.pruning.criteria.gradients import gradient, grasp, obd, snip, synflow
from prunus.pruning.criteria.weights import magnitude, random, scaled_magnitude
from prunus.pruning.criteria.zhou2019 import (
    large_final,
    large_final_diff_sign,
    large_final_same_sign,
    large_init,
    large_init_large_final,
    magnitude_increase,
    magnitude_increase_diff_sign,
    magnitude_increase_same_sign,
    movement,
    small_final,
    small_init,
    small_init_small_final,
)
from prunus.pruning.statistics import Criterion

CRITERIA: dict[str, Criterion] = {
    one.name: one
    for one in (
        magnitude,
        large_final,
        scaled_magnitude,
        random,
        small_final,
        large_init,
        small_init,
        large_init_large_final,
        small_init_small_final,
        magnitude_increase,
        movement,
        large_final_same_sign,
        large_final_diff_sign,
        magnitude_increase_same_sign,
        magnitude_increase_diff_sign,
        snip,
        gradient,
        grasp,
        synflow,
        obd,
    )
}

__all__ = [
    "CRITERIA",
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
