"""Checks on tensors that the invariants of actions are made of. None of them uses how the tensors were computed.

The bounds of the statistical checks are so wide that a correct random draw fails less than once in 10^9 runs, whichever
weights a criterion kept; in layers of a few dozen weights the checks therefore accept everything.
"""

import math

import torch
from torch import Tensor

from prunus.types import MaskDict, Params

MAX_DEVIATIONS = 8
"""How many standard deviations from the expected number are accepted as chance."""

SUM_PRECISION = 1e-12
"""The relative precision of a standard deviation in float64: sums of many numbers add up their roundings."""

SMIRNOV_BOUND = 3.3
"""λ of Smirnov's test of two samples."""


def are_equal_where(places: MaskDict, left: Params, right: Params) -> bool:
    """Return whether two dicts of tensors have the same values at all places.

    Args:
        places: Boolean tensors by name, True where values are compared.
        left: Tensors of the same shapes, with at least these names.
        right: Tensors of the same shapes, with at least these names.

    Returns:
        False if a value differs, or is NaN; -0.0 equals +0.0.

    Example:
        >>> are_equal_where({"a": torch.tensor([True, False])}, {"a": torch.zeros(2)}, {"a": torch.arange(2.0)})
        True
    """
    return all(torch.equal(left[name][place], right[name][place]) for name, place in places.items())


def population_std(layer: Tensor) -> Tensor:
    """Return the standard deviation of all weights as a population, rounded once to the precision of the layer.

    Example:
        >>> population_std(torch.tensor([1.0, 3.0]))
        tensor(1.)
    """
    return layer.detach().double().std(correction=0).to(layer.dtype)


def is_population_std(value: Tensor, layer: Tensor) -> bool:
    """Return whether a value is the root mean square distance from the layer's mean, up to two roundings.

    Args:
        value: The value, a tensor with one entry.
        layer: All weights of the layer, of any shape.

    Returns:
        Whether the difference is at most two roundings of the root mean square of the weights, in the precision of the
        layer, or of SUM_PRECISION where that is coarser.
    """
    exact = layer.detach().double()
    distance = (exact - exact.mean()).square().mean().sqrt()
    rounding = max(torch.finfo(layer.dtype).eps, SUM_PRECISION) * float(exact.square().mean().sqrt())
    return abs(float(value) - float(distance)) <= 2 * rounding


def is_sub_multiset(values: Tensor, pool: Tensor) -> bool:
    """Return whether every value is in the pool at least as often as among the values.

    Args:
        values: The values, of any shape.
        pool: The values that they may be taken from, each at most once; of any shape.

    Returns:
        Whether the values are a part of the pool; True if there are no values.

    Example:
        >>> pool = torch.tensor([1, 2, 1])
        >>> is_sub_multiset(torch.tensor([2, 1, 1]), pool), is_sub_multiset(torch.tensor([2, 2]), pool)
        (True, False)
    """
    in_pool, pool_counts = torch.unique(pool, return_counts=True)
    distinct, counts = torch.unique(values, return_counts=True)
    if len(distinct) > len(in_pool):
        return False
    indices = torch.searchsorted(in_pool, distinct).clamp(max=max(len(in_pool) - 1, 0))
    return torch.equal(in_pool[indices], distinct) and bool((counts <= pool_counts[indices]).all())


def consistent_with_permutation(values: Tensor, before: Tensor, pool: Tensor) -> bool:
    """Return whether values may be drawn from a pool independently of the values that were there before.

    The number of unchanged values is compared with a Poisson distribution around its expectation, which is about 1
    where all values of the pool differ.

    Args:
        values: New values, any number of them.
        before: Earlier value of each place, in the same order.
        pool: Values that the permutation drew from.

    Returns:
        False if too many places have the value they had before.

    Example:
        >>> before = torch.arange(100.0)
        >>> consistent_with_permutation(before, before, before)
        False
        >>> consistent_with_permutation(before.flip(0), before, before)
        True
    """
    in_pool, counts = torch.unique(pool, return_counts=True)
    if not len(in_pool):
        return True
    indices = torch.searchsorted(in_pool, before).clamp(max=len(in_pool) - 1)
    expected = float((counts[indices] * (in_pool[indices] == before)).sum()) / len(pool)
    num_unchanged = int((values == before).sum())
    return num_unchanged <= expected + MAX_DEVIATIONS * math.sqrt(expected) + 2 * MAX_DEVIATIONS


def consistent_with_hypergeometric(hits: int, draws: int, marked: int, total: int) -> bool:
    """Return whether a number of hits may result from draws without replacement.

    Args:
        hits: Number of marked items among the drawn ones.
        draws: Number of drawn items.
        marked: Number of marked items among all.
        total: Number of all items.

    Returns:
        False if `hits` is too far from its expectation, draws · marked / total.

    Example:
        >>> [consistent_with_hypergeometric(*case) for case in ((50, 100, 500, 1000), (100, 100, 500, 1000))]
        [True, False]
    """
    if total == 0:
        return hits == 0
    fraction = marked / total
    deviation = math.sqrt(draws * fraction * (1 - fraction) * (total - draws) / max(total - 1, 1))
    return abs(hits - draws * fraction) <= MAX_DEVIATIONS * (
        deviation + (draws < total and 0 < marked < total)
    )


def consistent_with_selected_sample(values: Tensor, layer: Tensor) -> bool:
    """Return whether values may be those that some criterion kept of a new draw of a layer's distribution.

    No more of the values than of the complete draw are below or above any number. The complete draw has as many as the
    layer, up to λ√(2n) for all numbers at once, except with probability 2 exp(-2λ²) (Smirnov's test of two samples).

    Args:
        values: Kept values, at most as many as the layer has.
        layer: Another draw from the distribution.

    Returns:
        False if the values are too small or too large for the distribution.

    Example:
        >>> layer = torch.linspace(0, 1, 1000)
        >>> [consistent_with_selected_sample(factor * layer[::2], layer) for factor in (0, 1, 3)]
        [False, True, False]
    """
    slack = SMIRNOV_BOUND * math.sqrt(2 * layer.numel())
    all_sorted, kept_sorted = layer.flatten().sort().values, values.sort().values
    rank = torch.arange(len(kept_sorted), device=kept_sorted.device)
    below = torch.searchsorted(all_sorted, kept_sorted, right=True)
    above = len(all_sorted) - torch.searchsorted(all_sorted, kept_sorted)
    return bool((rank + 1 <= below + slack).all()) and bool((len(kept_sorted) - rank <= above + slack).all())
