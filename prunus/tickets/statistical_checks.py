"""What claims are made of: questions about tensors, none of which asks how they came about.

Where chance is asked about, the bounds are so wide that an honest draw fails less than once in 10^9, whatever the
criterion kept of it; in layers of a few dozen weights they let everything pass.
"""

import math

import torch
from torch import Tensor

from prunus.types import MaskDict, Params

DEVIATIONS = 8
"""How many standard deviations from what chance brings are still taken for chance."""

SMIRNOV = 3.3
"""λ of the test of two samples."""


def equal_at(places: MaskDict, left: Params, right: Params) -> bool:
    """Whether both have the same values at all `places`.

    >>> equal_at({"a": torch.tensor([True, False])}, {"a": torch.zeros(2)}, {"a": torch.arange(2.0)})
    True
    """
    return all(torch.equal(left[name][place], right[name][place]) for name, place in places.items())


def zero_at(places: MaskDict, tensors: Params) -> bool:
    """Whether zero stands at all `places`."""
    return not any(bool(tensors[name][place].any()) for name, place in places.items())


def is_sub_multiset(values: Tensor, pool: Tensor) -> bool:
    """Whether `values` are among `pool`, none of them more often than there; a permutation where as many.

    >>> is_sub_multiset(torch.tensor([2, 1, 1]), torch.tensor([1, 2, 1])), is_sub_multiset(torch.tensor([2, 2]), torch.tensor([1, 2]))
    (True, False)
    """
    there, often = torch.unique(pool, return_counts=True)
    asked, times = torch.unique(values, return_counts=True)
    if len(asked) > len(there):
        return False
    places = torch.searchsorted(there, asked).clamp(max=max(len(there) - 1, 0))
    return torch.equal(there[places], asked) and bool((times <= often[places]).all())


def consistent_with_permutation(values: Tensor, before: Tensor, pool: Tensor) -> bool:
    """Whether `values` may be a draw from `pool` that knew nothing of `before`, place by place.

    Values that stand where they stood are Poisson distributed about their expected number, which is about 1 where
    all of `pool` differ.

    >>> before = torch.arange(100.0)
    >>> consistent_with_permutation(before, before, before)
    False
    >>> consistent_with_permutation(before.flip(0), before, before)
    True
    """
    there, often = torch.unique(pool, return_counts=True)
    if not len(there):
        return True
    places = torch.searchsorted(there, before).clamp(max=len(there) - 1)
    expected = float((often[places] * (there[places] == before)).sum()) / len(pool)
    stayed = int((values == before).sum())
    return stayed <= expected + DEVIATIONS * math.sqrt(expected) + 2 * DEVIATIONS


def consistent_with_hypergeometric(hits: int, draws: int, marked: int, total: int) -> bool:
    """Whether `hits` may be how many of `marked` are among `draws` of `total`, drawn without putting back.

    >>> consistent_with_hypergeometric(50, 100, 500, 1000), consistent_with_hypergeometric(100, 100, 500, 1000), consistent_with_hypergeometric(499, 1000, 500, 1000)
    (True, False, False)
    """
    if total == 0:
        return hits == 0
    share = marked / total
    spread = math.sqrt(draws * share * (1 - share) * (total - draws) / max(total - 1, 1))
    return abs(hits - draws * share) <= DEVIATIONS * (spread + (draws < total and 0 < marked < total))


def consistent_with_selected_sample(values: Tensor, layer: Tensor) -> bool:
    """Whether `values` may be what any criterion kept of a draw from where `layer` was drawn.

    Then no more of them lie below or above a value than in the whole draw, of which there are as many as in `layer`,
    give or take λ√(2n) for all values at once, but for a chance of 2 exp(-2λ²) (Smirnov's test of two samples).

    >>> layer = torch.linspace(0, 1, 1000)
    >>> [consistent_with_selected_sample(f * layer[::2], layer) for f in (0, 1, 3)]
    [False, True, False]
    """
    slack = SMIRNOV * math.sqrt(2 * layer.numel())
    ordered, asked = layer.flatten().sort().values, values.sort().values
    rank = torch.arange(len(asked), device=asked.device)
    below = torch.searchsorted(ordered, asked, right=True)
    above = len(ordered) - torch.searchsorted(ordered, asked)
    return bool((rank + 1 <= below + slack).all()) and bool((len(asked) - rank <= above + slack).all())
