"""One shot: the target at once.

    d_1 = d

Source: Han et al. 2015, section 3.4 (there "single-step pruning"). For `rounds` > 1 the target is repeated,
so that its retraining has the same length as another schedule's.
"""

from prunus.pruning.schedules.progress import density_path
from prunus.types import Density


def one_shot(target: Density, rounds: int = 1) -> list[Density]:
    """`rounds` times the target.

    >>> one_shot(0.1)
    [0.1]
    """
    return density_path(target, rounds, lambda d, t: d)
