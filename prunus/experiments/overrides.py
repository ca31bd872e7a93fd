"""The settings of a ticket experiment that a user may change: `--set key=value`."""

from collections.abc import Mapping
from typing import TypeVar

from prunus.errors import SpecError
from prunus.registry import suggestion
from prunus.runs.spec import apply_overrides, override_keys

T = TypeVar("T")

SHORT = ("", "dense.", "dense.recipe.")
"""Where a key is looked for: `epochs` is `dense.recipe.epochs`, `every` is `dense.every`."""


def changed(ticket: T, settings: Mapping[str, str]) -> T:
    """The ticket, or another spec with a `dense`, with settings from text.

    >>> from prunus.tickets.ticket import TicketSpec
    >>> changed(TicketSpec(), {"epochs": "3"}).dense.recipe.epochs
    3

    Raises SpecError for a key that is unknown, and for two that are one setting.
    """
    known = override_keys(ticket)
    changes: dict[str, str] = {}
    asked: dict[str, str] = {}
    for key, value in settings.items():
        name = _key(key, known)
        if name in asked:
            raise SpecError(f"{asked[name]} and {key} are one setting, {name}; set it once.")
        asked[name], changes[name] = key, value
    return apply_overrides(ticket, changes) if changes else ticket


def _key(key: str, known: list[str]) -> str:
    found = [prefix + key for prefix in SHORT if prefix + key in known]
    if not found:
        names = ["network", *known]
        short = {name.removeprefix(prefix) for name in names for prefix in SHORT if name.startswith(prefix)}
        hint = suggestion(key, sorted(short)) or f"there are: {', '.join(names)}."
        raise SpecError(f"No setting is called {key!r}; {hint}")
    return found[0]
