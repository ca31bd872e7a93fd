"""The mask criteria of Zhou et al. 2019, section 3: scores of the weights before (w_i) and after training (w_f).

`large_final`, `magnitude_increase`, `movement`, their controls and combinations. Ranks are taken within a layer, among
the weights that earlier rounds kept.
"""

import torch
from torch import Tensor

from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.masks import check_finite
from prunus.pruning.statistics import Statistics, criterion
from prunus.types import MaskDict, Params, Scores


@criterion()
def large_final(stats: Statistics) -> Scores:
    """Large final: |w_f|, large weights after training are kept; magnitude, under its name in the ticket papers.

    Source: Frankle & Carbin 2019, section 2; Zhou et al. 2019, section 3, where it has this name.

    >>> large_final(Statistics({"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return magnitude(stats)


@criterion()
def small_final(stats: Statistics) -> Scores:
    """Small final: −|w_f|, small weights after training are kept; the control of magnitude.

    Source: Zhou et al. 2019, section 3.

    >>> small_final(Statistics({"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([-2., -1.])}
    """
    return {name: -weight.abs() for name, weight in stats.weights.items()}


@criterion(requires={"initial"})
def large_init(stats: Statistics) -> Scores:
    """Large init: |w_i|, large weights before training are kept.

    Source: Zhou et al. 2019, section 3.

    >>> large_init(Statistics({"fc": torch.zeros(2)}, initial={"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return {name: stats.initial[name].abs() for name in stats.weights}


@criterion(requires={"initial"})
def small_init(stats: Statistics) -> Scores:
    """Small init: −|w_i|, small weights before training are kept; the control of large init.

    Source: Zhou et al. 2019, section 3.

    >>> small_init(Statistics({"fc": torch.zeros(2)}, initial={"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([-2., -1.])}
    """
    return {name: -stats.initial[name].abs() for name in stats.weights}


@criterion(requires={"initial"})
def large_init_large_final(stats: Statistics) -> Scores:
    """Large init, large final: min(rank(|w_i|), rank(|w_f|)), large weights both before and after training are kept.

    Source: Zhou et al. 2019, section 3: min(α|w_f|, |w_i|), with α such that the same fraction of the layer lies below
    both thresholds.
    Differences: The authors bisect for that fraction until about the wanted number of weights passes both thresholds. A
    weight passes both exactly if its lower rank passes, so that the lower rank orders the weights as the bisection
    does, for every fraction at once, and the count of the scope is exact. At most two weights (one by either rank)
    share a score, unless magnitudes are equal. Ranks of layers are comparable: under the global scope every layer keeps
    about the same fraction. Scores are in (0, 1], float64; 0 where earlier rounds pruned.

    >>> weights, initial = {"fc": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"fc": torch.tensor([4.0, 3.0, 1.0, 2.0])}
    >>> large_init_large_final(Statistics(weights, initial=initial))["fc"].tolist()
    [0.25, 0.5, 0.25, 0.5]
    """
    return _lower_rank(large_init(stats), large_final(stats), stats.remaining)


@criterion(requires={"initial"})
def small_init_small_final(stats: Statistics) -> Scores:
    """Small init, small final: min(rank(−|w_i|), rank(−|w_f|)), small weights before and after training are kept.

    Source: Zhou et al. 2019, section 3: −max(α|w_f|, |w_i|); the control of `large_init_large_final`.
    Differences: The lower rank instead of a bisection, as there.

    >>> weights, initial = {"fc": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"fc": torch.tensor([4.0, 3.0, 1.0, 2.0])}
    >>> small_init_small_final(Statistics(weights, initial=initial))["fc"].tolist()
    [0.25, 0.5, 0.5, 0.25]
    """
    return _lower_rank(small_init(stats), small_final(stats), stats.remaining)


@criterion(requires={"initial"})
def magnitude_increase(stats: Statistics) -> Scores:
    """Magnitude increase: |w_f| − |w_i|, weights that training made larger are kept.

    Source: Zhou et al. 2019, section 3.

    >>> initial = {"fc": torch.tensor([1.0, 2.0])}
    >>> magnitude_increase(Statistics({"fc": torch.tensor([-3.0, 1.0])}, initial=initial))
    {'fc': tensor([ 2., -1.])}
    """
    return {name: weight.abs() - stats.initial[name].abs() for name, weight in stats.weights.items()}


@criterion(requires={"initial"})
def movement(stats: Statistics) -> Scores:
    """Movement: |w_f − w_i|, weights that training moved far are kept.

    Source: Zhou et al. 2019, section 3. Not the movement pruning of Sanh et al. 2020, whose score is a sum over the
    gradients during training.

    >>> movement(Statistics({"fc": torch.tensor([-3.0, 1.0])}, initial={"fc": torch.tensor([1.0, 2.0])}))
    {'fc': tensor([4., 1.])}
    """
    return {name: (weight - stats.initial[name]).abs() for name, weight in stats.weights.items()}


@criterion(requires={"initial"})
def large_final_same_sign(stats: Statistics) -> Scores:
    """Large final, same sign: |w_f| where sign(w_i) = sign(w_f), else 0.

    Source: Zhou et al. 2019, section 3: max(0, w_i w_f / |w_i|). All weights that changed sign are tied at 0, below
    every other: at a density above the fraction that kept their sign, the others are drawn at random.

    >>> initial = {"fc": torch.tensor([-1.0, -1.0])}
    >>> large_final_same_sign(Statistics({"fc": torch.tensor([-2.0, 3.0])}, initial=initial))
    {'fc': tensor([2., 0.])}
    """
    same = _same_sign(stats)
    return {name: torch.where(same[name], score, 0.0) for name, score in large_final(stats).items()}


@criterion(requires={"initial"})
def large_final_diff_sign(stats: Statistics) -> Scores:
    """Large final, different sign: |w_f| where sign(w_i) ≠ sign(w_f), else 0; the control of the same sign.

    Source: Zhou et al. 2019, section 3: max(0, −w_i w_f / |w_i|). All weights that kept their sign are tied at 0, below
    every other. A weight that was zero at the start and is not zero any more counts as changed.

    >>> initial = {"fc": torch.tensor([-1.0, -1.0])}
    >>> large_final_diff_sign(Statistics({"fc": torch.tensor([-2.0, 3.0])}, initial=initial))
    {'fc': tensor([0., 3.])}
    """
    same = _same_sign(stats)
    return {name: torch.where(same[name], 0.0, score) for name, score in large_final(stats).items()}


@criterion(requires={"initial"})
def magnitude_increase_same_sign(stats: Statistics) -> Scores:
    """Magnitude increase, same sign: |w_f| − |w_i| where sign(w_i) = sign(w_f), else 0.

    Source: Zhou et al. 2019, section 3. As published, 0 is not the lowest score: a weight that changed its sign is tied
    at 0, below those that kept it and grew, but above those that kept it and shrank. At a density above the fraction of
    the former, weights of the wrong sign are kept, drawn at random.

    >>> initial = {"fc": torch.tensor([-1.0, -1.0, -1.0])}
    >>> magnitude_increase_same_sign(Statistics({"fc": torch.tensor([-2.0, 3.0, -0.5])}, initial=initial))
    {'fc': tensor([ 1.0000,  0.0000, -0.5000])}
    """
    same = _same_sign(stats)
    return {name: torch.where(same[name], score, 0.0) for name, score in magnitude_increase(stats).items()}


@criterion(requires={"initial"})
def magnitude_increase_diff_sign(stats: Statistics) -> Scores:
    """Magnitude increase, different sign: |w_f| − |w_i| where sign(w_i) ≠ sign(w_f), else 0; the control.

    Source: Zhou et al. 2019, section 3. As published, 0 is not the lowest score: a weight that kept its sign is tied at
    0, below those that changed it and grew, but above those that changed it and shrank. Few weights cross zero and
    grow, so that at usual densities most of what is kept is drawn at random from those that kept their sign.

    >>> initial = {"fc": torch.tensor([-1.0, -1.0, -1.0])}
    >>> magnitude_increase_diff_sign(Statistics({"fc": torch.tensor([-2.0, 3.0, 0.5])}, initial=initial))
    {'fc': tensor([ 0.0000,  2.0000, -0.5000])}
    """
    same = _same_sign(stats)
    return {name: torch.where(same[name], 0.0, score) for name, score in magnitude_increase(stats).items()}


def _same_sign(stats: Statistics) -> MaskDict:
    """Where a weight has the sign that it started with; zero has a sign of its own. Raises NonFiniteError."""
    # NaN has no sign: it would count as a change of sign, and its score would be an ordinary zero.
    _check_finite(stats.initial, stats.weights)
    return {name: stats.initial[name].sign() == weight.sign() for name, weight in stats.weights.items()}


def _lower_rank(first: Params, other: Params, masks: MaskDict) -> Params:
    """The lower of the two ranks of a weight in its tensor, 0 where `masks` is False. Raises NonFiniteError."""
    _check_finite(first, other)
    return {
        name: torch.minimum(_ranks(first[name], mask), _ranks(other[name], mask))
        for name, mask in masks.items()
    }


def _check_finite(initial: Params, final: Params) -> None:
    check_finite(initial, "The initial weight")
    check_finite(final, "The weight")


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """(1 + the number of smaller values) / the number of values, among those that `mask` keeps; elsewhere 0.

    Equal values have equal ranks. In float64, so that no two ranks of a large layer are rounded to one.
    """
    mask = mask.bool()
    _, inverse, counts = torch.unique(values[mask], return_inverse=True, return_counts=True)
    num_smaller = counts.cumsum(0) - counts
    ranks = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    ranks[mask] = (num_smaller[inverse] + 1).double() / len(inverse)
    return ranks
