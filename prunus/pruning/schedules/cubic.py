"""Cubic: much in the first rounds, little in the last.

    d_t = d + (1 - d) (1 - t / n)³

Source: Zhu & Gupta 2017, eq. 1 (there of the sparsity, s = 1 - d, from s_0 = 0).
Also called: gradual magnitude pruning (GMP).
"""

from prunus.pruning.schedules.progress import density_path
from prunus.types import Density


def cubic(target: Density, rounds: int) -> list[Density]:
    """Densities that fall to the target along a cubic.

    >>> cubic(0.125, 2)
    [0.234375, 0.125]
    """
    return density_path(target, rounds, lambda d, t: d + (1 - d) * (1 - t) ** 3)
