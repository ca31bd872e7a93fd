"""Criteria: functions of statistics that return one score per weight; the highest scores are kept."""

from prunus.pruning.criteria import activations, gradients, weights, zhou2019
from prunus.pruning.statistics import Criterion

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        weights.magnitude,
        zhou2019.large_final,
        weights.scaled_magnitude,
        weights.random,
        activations.wanda,
        zhou2019.small_final,
        zhou2019.large_init,
        zhou2019.small_init,
        zhou2019.large_init_large_final,
        zhou2019.small_init_small_final,
        zhou2019.magnitude_increase,
        zhou2019.movement,
        zhou2019.large_final_same_sign,
        zhou2019.large_final_diff_sign,
        zhou2019.magnitude_increase_same_sign,
        zhou2019.magnitude_increase_diff_sign,
        gradients.snip,
        gradients.gradient,
        gradients.grasp,
        gradients.synflow,
        gradients.obd,
    )
}
