"""A spec says all that decides what a run computes; its identity is a hash of the settings that differ.

    identity = KIND-HEX,  HEX = the first 16 digits of sha256(canonical JSON of {"kind", "settings"})

A spec is a frozen dataclass with a `kind`; its fields are plain values, tuples, mappings by name, and dataclasses of
the same sort, nested specs included. A field that equals its default is left out of the settings, so that a
field added with a default renames no run; for the same reason a default, once there are runs, must not change.
A field with metadata {"identity": False} is a note, and never counts. Equal specs have equal identities: 1 and
1.0 are written alike.
"""

import hashlib
import re
from typing import ClassVar, Protocol

from prunus.errors import SpecError
from prunus.runs.overrides import apply_overrides, override_keys
from prunus.runs.settings import canonical_json, kind_of, nondefault_settings

__all__ = ["RunSpec", "apply_overrides", "nondefault_settings", "override_keys", "run_id"]

HEX = 16
_KEPT = "_identity"
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]*")


class RunSpec(Protocol):
    """What the store, the planner and the engines ask of a spec."""

    kind: ClassVar[str]
    """The first part of its identity: a word in lower case."""

    def needs(self) -> tuple["RunSpec", ...]:
        """The specs whose finished folders it reads."""

    def cost(self) -> tuple[str, float]:
        """What its time is proportional to ("lenet-300-100/60": such steps), and how many of these it takes."""


def run_id(spec: RunSpec) -> str:
    """The name of the run that `spec` describes, the same on every machine."""
    # Kept on the value itself: engines ask for it often, and equal values may be of different types.
    kept: dict[str, str] = getattr(spec, "__dict__", {})
    if _KEPT not in kept:
        kept[_KEPT] = _identity(spec)
    return kept[_KEPT]


def _identity(spec: RunSpec) -> str:
    kind = kind_of(type(spec))
    if kind is None or not _KIND.fullmatch(kind):
        raise SpecError(
            f"{type(spec).__name__} has the kind {kind!r}; a spec needs a class variable `kind`, a word in "
            "lower case."
        )
    text = canonical_json({"kind": kind, "settings": nondefault_settings(spec)})
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:HEX]}"
