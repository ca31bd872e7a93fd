"""What the schedules share: a curve of (target, progress), for one density or one a tensor."""

from collections.abc import Callable, Mapping

from prunus.errors import DensityError
from prunus.pruning.density import check_density
from prunus.types import Density


def density_path(target: Density, rounds: int, curve: Callable[[float, float], float]) -> list[Density]:
    """`curve(target, t)` at t = 1/rounds, ..., 1; the last is the target itself, to the bit.

    Raises DensityError for fewer than one round, or a density out of range.
    """
    if rounds < 1 or rounds != int(rounds):
        raise DensityError(f"{rounds!r} rounds were asked; pruning takes at least one, an integer.")
    if not isinstance(target, Mapping):
        check_density(target)
        return [*(curve(target, t / rounds) for t in range(1, rounds)), target]
    for name, density in target.items():
        check_density(density, name)
    steps = [{name: curve(d, t / rounds) for name, d in target.items()} for t in range(1, rounds)]
    return [*steps, dict(target)]
