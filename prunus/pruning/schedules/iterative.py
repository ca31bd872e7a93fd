"""Iterative: the same share of what is left goes in every round.

    d_t = d^(t / n)

Source: Han et al. 2015, section 3.4; Frankle & Carbin 2019, section 2 (p^(1/n) % a round).
Also called: geometric, iterative magnitude pruning (IMP).
"""

from prunus.pruning.schedules.progress import density_path
from prunus.types import Density


def iterative(target: Density, rounds: int) -> list[Density]:
    """Densities that fall geometrically to the target.

    >>> iterative(0.25, 2)
    [0.5, 0.25]
    """
    return density_path(target, rounds, lambda d, t: d**t)
