"""Schedules: a target density and a number of rounds -> the density after each round; the last is the target itself.

one_shot          d_t = d
iterative         d_t = d^(t / n)
cubic             d_t = d + (1 - d) (1 - t / n)³
layer_by_layer    d_t[l] = d[l] for the layers up to t, 1 for the others
"""

from collections.abc import Callable, Mapping, Sequence

from prunus.errors import DensityError
from prunus.pruning.density import check_densities
from prunus.registry import call_user_function, lookup
from prunus.types import Density

Schedule = Callable[[Density, int], list[Density]]
"""(target, rounds) -> densities."""


def one_shot(target: Density, rounds: int = 1) -> list[Density]:
    """One-shot: the target in the first round; further rounds repeat it, so that retraining is as long as elsewhere.

    Source: Han et al. 2015, section 3.4 (there "single-step pruning").

    Args:
        target: One density in (0, 1], or one per tensor.
        rounds: At least 1.

    Returns:
        One density per round.

    Raises:
        DensityError: Fewer than one round, or a density out of range.

    >>> one_shot(0.1)
    [0.1]
    """
    return _densities(target, rounds, lambda d, t: d)


def iterative(target: Density, rounds: int) -> list[Density]:
    """Iterative: every round prunes the same fraction of the remaining weights.

    Source: Han et al. 2015, section 3.4; Frankle & Carbin 2019, section 2 (p^(1/n) % per round).
    Also called: geometric, iterative magnitude pruning (IMP).

    Args:
        target: One density in (0, 1], or one per tensor.
        rounds: At least 1.

    Returns:
        Densities that fall geometrically.

    Raises:
        DensityError: Fewer than one round, or a density out of range.

    >>> iterative(0.25, 2)
    [0.5, 0.25]
    """
    return _densities(target, rounds, lambda d, t: d**t)


def cubic(target: Density, rounds: int) -> list[Density]:
    """Cubic: the first rounds prune most, the last ones little.

    Source: Zhu & Gupta 2017, eq. 1 (there of the sparsity, s = 1 - d, from s_0 = 0).
    Also called: gradual magnitude pruning (GMP).

    Args:
        target: One density in (0, 1], or one per tensor.
        rounds: At least 1.

    Returns:
        Densities that fall along a cubic.

    Raises:
        DensityError: Fewer than one round, or a density out of range.

    >>> cubic(0.125, 2)
    [0.234375, 0.125]
    """
    return _densities(target, rounds, lambda d, t: d + (1 - d) * (1 - t) ** 3)


def layer_by_layer(target: Density, rounds: int = 0) -> list[Density]:
    """Layer by layer: one layer is pruned per round, from the input to the output.

    Source: Han et al. 2015, section 3.3 (layers pruned in turn, the others held, against vanishing gradients).

    Args:
        target: One density per tensor, in the order of the rounds.
        rounds: 0, or the number of tensors.

    Returns:
        Densities by name; 1.0 for the layers of later rounds.

    Raises:
        DensityError: One density for all layers, another number of rounds, or a density out of range.

    >>> layer_by_layer({"a": 0.1, "b": 0.2})
    [{'a': 0.1, 'b': 1.0}, {'a': 0.1, 'b': 0.2}]
    """
    if not isinstance(target, Mapping):
        raise DensityError(f"Expected one density per layer, by name, for layer_by_layer, got {target}.")
    if rounds not in (0, len(target)):
        raise DensityError(
            f"Expected {len(target)} rounds for layer_by_layer, one for each of {list(target)}, got {rounds} rounds."
        )
    check_densities(target)
    names = list(target)
    return [
        {name: target[name] if place <= done else 1.0 for place, name in enumerate(names)}
        for done in range(len(names))
    ]


SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "iterative": iterative,
    "layer_by_layer": layer_by_layer,
    "cubic": cubic,
}


def densities_of(schedule: str | Schedule, target: Density, rounds: int) -> list[Density]:
    """The densities of a schedule.

    Args:
        schedule: A key of SCHEDULES, or a function (target, rounds) -> densities.
        target: One density in (0, 1], or one per tensor.
        rounds: The number of rounds.

    Returns:
        One density per round.

    Raises:
        UnknownNameError: There is no schedule of this name.
        DensityError: A number is out of range, or the function fails or returns no densities.

    >>> densities_of("one_shot", 0.1, 2), densities_of(lambda target, rounds: [0.5, target], 0.1, 2)
    ([0.1, 0.1], [0.5, 0.1])
    """
    if isinstance(schedule, str):
        return lookup("schedule", SCHEDULES, schedule)(target, rounds)
    densities = call_user_function("The schedule", DensityError, schedule, target, rounds)
    if not isinstance(densities, Sequence) or not densities:
        raise DensityError(
            f"Expected the schedule {getattr(schedule, '__name__', schedule)!r} to return a list of densities, one "
            f"after each round, got {densities!r}; correct the function."
        )
    for density in densities:
        check_densities(density)
    return list(densities)


def _densities(target: Density, rounds: int, curve: Callable[[float, float], float]) -> list[Density]:
    """`curve(target, t)` at t = 1/rounds, ..., 1; the last is the target itself, bit for bit."""
    if not hasattr(rounds, "__index__") or rounds < 1:
        raise DensityError(f"Expected a number of rounds of at least 1, an integer, got {rounds!r} rounds.")
    check_densities(target)
    if not isinstance(target, Mapping):
        return [*(curve(target, t / rounds) for t in range(1, rounds)), target]
    steps = [{name: curve(d, t / rounds) for name, d in target.items()} for t in range(1, rounds)]
    return [*steps, dict(target)]
