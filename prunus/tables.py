"""Look a name up in a room's table of built-in variants, and suggest a known name for a misspelled one."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from prunus.errors import UnknownNameError

T = TypeVar("T")


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """`table[name]`, or an error that names what there is."""
    if name in table:
        return table[name]
    hint = suggestion(name, table) or f"there are: {', '.join(table)}."
    raise UnknownNameError(f"No {kind} is called {name!r}; {hint}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question that names the known name closest to a misspelled one; empty if none is close.

    >>> suggestion("--jso", ["--json", "--seed"]), suggestion("MNIST", ["mnist"]), suggestion("x", ["mnist"])
    ("did you mean '--json'?", "did you mean 'mnist'?", '')
    """
    closest = closest_names(name, known)
    return f"did you mean {closest[0]!r}?" if closest else ""


def closest_names(name: str, known: Iterable[str], limit: int = 1) -> list[str]:
    """At most `limit` of the known names that resemble `name`, the most similar first; case is ignored.

    >>> closest_names("LeNet5", ["lenet-5", "lenet-300-100"], limit=2)
    ['lenet-5', 'lenet-300-100']
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    matches = get_close_matches(name.lower(), by_lower_case, n=limit)
    return [by_lower_case[match] for match in matches]
