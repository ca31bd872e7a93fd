"""When to stop, from the validation losses alone."""

from collections.abc import Sequence


def best_index(losses: Sequence[float]) -> int:
    """The index of the lowest loss, the first of equals.

    >>> best_index([0.3, 0.1, 0.1, 0.2])
    1
    """
    return min(range(len(losses)), key=losses.__getitem__)


def should_stop(losses: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` losses all failed to go below the best before them.

    >>> should_stop([0.3, 0.1, 0.2, 0.1], patience=2), should_stop([0.3, 0.1, 0.2], patience=2)
    (True, False)
    """
    return patience is not None and len(losses) > 0 and len(losses) - 1 - best_index(losses) >= patience
