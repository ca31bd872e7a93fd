"""The settings of a ticket experiment that a user may change: `--set key=value`."""

from collections.abc import Mapping
from typing import TypeVar

from prunus.runs.overrides import apply_overrides

T = TypeVar("T")

SHORT = ("", "baseline.", "baseline.recipe.")
"""Where a key is looked for: `epochs` is `baseline.recipe.epochs`, `eval_every` is `baseline.eval_every`."""


def changed(ticket: T, settings: Mapping[str, str]) -> T:
    """The ticket, or another spec with a `baseline`, with settings from text.

    >>> from prunus.tickets.ticket import TicketSpec
    >>> changed(TicketSpec(), {"epochs": "3"}).baseline.recipe.epochs
    3

    Raises SpecError for a key that is unknown, and for two that are one setting.
    """
    if not settings:
        return ticket
    return apply_overrides(ticket, settings, prefixes=SHORT, other_names=("network",))
