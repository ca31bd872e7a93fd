"""A spec states everything that decides what a run computes; the ID of the run is a hash of it.

    ID = KIND-HEX,  HEX = the first 16 digits of SHA-256(canonical JSON of {"kind", "settings", "code"})

A spec is a frozen dataclass with a class variable `kind`; its fields are plain values, tuples, mappings by name, and
dataclasses of the same sort, nested specs included. A field that equals its default is left out of the settings, so
that a field that is added with a default changes no ID; for the same reason a default must not change once there are
runs.
A field with metadata {"identity": False} is a note and never counts. "code" holds the digest of the source of each
function of the user that the run or its dependencies call; it is left out where there is none.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from prunus.errors import SpecError
from prunus.registry import source_digest
from prunus.runs.settings import canonical_json, kind_of, nondefault_settings

HEX = 16
_CACHE = "_run_id"
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]*")


class RunSpec(Protocol):
    """What the store, the planner and the executors require of a spec.

    Two more attributes are optional: `device` (default "cpu"), which is recorded with the run, and `pace()`, the
    seconds that a unit of the cost takes on this machine, for an estimate before the first run of its kind.
    """

    kind: ClassVar[str]
    """The first part of the ID: a lower-case word."""
    procedure: ClassVar[str]
    """"package.module:function", called as `function(spec, directory, needed, report_steps=None)`; returns a summary.

    `directory` is the RunDirectory of the run, `needed` has the RunDirectory of each dependency by its role, and
    `report_steps` is called with the number of training steps since the last call.
    """

    def dependencies(self) -> Mapping[str, "RunSpec"]:
        """Return the specs of the finished runs that this run reads, by role."""

    def cost(self) -> tuple[str, float]:
        """Return the unit that the time is proportional to ("lenet-300-100/60": such steps), and how many."""

    def code_references(self) -> tuple[str, ...]:
        """Return the references "package.module:function" of the user's functions that this run itself calls."""


def run_id(spec: RunSpec) -> str:
    """Return the ID of the run that `spec` describes, which is the same on every machine.

    The ID is computed once for each spec, so that all processes of a plan use the same one.

    Raises:
        SpecError: The spec is not a frozen dataclass with a kind and with settings that can be stored.
        UnknownNameError: A function of the user cannot be found.
    """
    # Equal values may be of different types, so that the value itself holds its ID.
    cache: dict[str, str] = getattr(spec, "__dict__", {})
    if _CACHE not in cache:
        settings, kind = nondefault_settings(spec), kind_of(type(spec))
        if kind is None or not _KIND.fullmatch(kind):
            raise SpecError(
                f"{type(spec).__name__} has the kind {kind!r}; a spec needs a class variable `kind`, a word in "
                "lower case."
            )
        cache[_CACHE] = make_id(kind, settings, code_digests(spec))
    return cache[_CACHE]


def make_id(kind: str, settings: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """Return the ID of a run with this kind, these settings and these digests of the user's functions.

    Args:
        kind: The kind of the run, a word in lower case.
        settings: The settings that differ from their defaults, as plain values.
        code: The digest of the source of each of the user's functions, by its reference; may be empty.

    Returns:
        The kind, a hyphen and 16 hexadecimal digits.
    """
    identity = {"kind": kind, "settings": settings, **({"code": code} if code else {})}
    return f"{kind}-{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:HEX]}"


def code_digests(spec: RunSpec) -> dict[str, str]:
    """Return the digest of the source of each user's function that a run or its dependencies call, by reference."""
    specs: list[RunSpec] = []
    waiting = [spec]
    while waiting:
        current = waiting.pop()
        if not any(current is known for known in specs):
            specs.append(current)
            waiting += current.dependencies().values()
    references = {reference for current in specs for reference in current.code_references()}
    return {reference: source_digest(reference) for reference in sorted(references)}
