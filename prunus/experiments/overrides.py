"""The settings of an experiment that a user may change: `--set key=value`."""

from collections.abc import Mapping
from typing import TypeVar

from prunus.errors import SpecError
from prunus.registry import suggestion
from prunus.runs.spec import apply_overrides, override_keys

T = TypeVar("T")

PREFIXES = ("", "dense.", "dense.recipe.", "settings.", "settings.recipe.")
"""Prefixes that a key may leave out: `epochs` is `dense.recipe.epochs`, `every` is `dense.every`."""


def changed(spec: T, settings: Mapping[str, str]) -> T:
    """Change settings of a spec from texts, by names that may leave out a prefix.

    Args:
        spec: The template of an experiment.
        settings: Texts by setting name.

    Raises:
        SpecError: A name is unknown, or two names are one setting.

    >>> from prunus.tickets.ticket import TicketSpec
    >>> changed(TicketSpec(), {"epochs": "3"}).dense.recipe.epochs
    3
    """
    known = override_keys(spec)
    changes: dict[str, str] = {}
    given: dict[str, str] = {}
    for key, value in settings.items():
        name = _full_name(key, known)
        if name in given:
            raise SpecError(f"{given[name]} and {key} are one setting, {name}; set it once.")
        given[name], changes[name] = key, value
    return apply_overrides(spec, changes) if changes else spec


def short_name(key: str) -> str:
    """Return a setting's name without a prefix that `--set` does not need."""
    prefixes = sorted(PREFIXES, key=len, reverse=True)
    return next(key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix))


def _full_name(key: str, known: list[str]) -> str:
    names = [prefix + key for prefix in PREFIXES if prefix + key in known]
    if not names:
        all_names = ["network", *known]
        short = {n.removeprefix(prefix) for n in all_names for prefix in PREFIXES if n.startswith(prefix)}
        hint = suggestion(key, sorted(short)) or f"there are: {', '.join(all_names)}."
        raise SpecError(f"No setting is called {key!r}; {hint}")
    return names[0]
