"""Reports of long work."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from prunus.types import Progress

T = TypeVar("T")


def tracked(
    items: Iterable[T], what: str, progress: Progress | None, total: int | None = None
) -> Iterator[T]:
    """The items, with a report after the work on each.

    Args:
        items: A list; any iterable where `total` is given.
        what: What the items are, in the report.
        progress: Called with `what`, the number of items that are done and the number of all; None: no report.
        total: The number of items; None: the length of the list.

    Yields:
        The items.

    >>> [x for x in tracked(["a", "b"], "letters", print)]
    letters 1 2
    letters 2 2
    ['a', 'b']
    """
    if total is None:
        assert isinstance(items, Sized), "the number of items is not known"
        total = len(items)
    for number, item in enumerate(items, start=1):
        yield item
        if progress:
            progress(what, number, total)
