"""Look a name up in a room's table of built-in variants."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from prunus.errors import UnknownNameError

T = TypeVar("T")


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """`table[name]`, or an error that names what there is."""
    if name in table:
        return table[name]
    near = get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(table)}."
    raise UnknownNameError(f"No {kind} is called {name!r}; {hint}")
