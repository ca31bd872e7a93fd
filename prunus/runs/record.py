"""The record of a run: what it is and how far it got, in the one file `run.json` of its directory."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from prunus.errors import StoreError
from prunus.runs.content import Row, check_version, read_json, write_json
from prunus.runs.settings import all_settings, canonical_json, flatten_settings, nondefault_settings
from prunus.runs.spec import RunSpec, code_digests, make_id, run_id

RECORD = "run.json"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]*-[0-9a-f]{16}")

State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class RunRecord:
    """What a run is and how far it got."""

    id: str
    kind: str
    settings: Mapping[str, Any]
    """The settings that differ from their defaults."""
    all_settings: Mapping[str, Any]
    """All settings, defaults included."""
    dependencies: Mapping[str, str]
    """The ID of the run in each role."""
    code: Mapping[str, str]
    """The digest of the source of each function of the user, by its reference."""
    cost: tuple[str, float]
    """The unit that the time is proportional to, and how many of it the run takes."""
    state: State = "running"
    """The file says running, done or failed; a run that is recorded as running and has no process is interrupted."""
    attempt: str = ""
    """A random identifier of the last attempt: a process with another identifier has lost the run."""
    attempts: int = 0
    kept: str = ""
    """A digest of what the earlier attempts had kept when the last one began."""
    stalled: int = 0
    """How many attempts in a row, just before the last one, were interrupted and kept nothing new."""
    started: float = 0.0
    """When the last attempt started, in seconds since 1970."""
    seconds: float = 0.0
    """The seconds of the earlier attempts; of all attempts once the run is done or has failed."""
    error: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    invariants: str | None = None
    """"passed", or "failed: " and the checks that do not hold; None if no row has an invariant report."""
    last_row: Mapping[str, Any] = field(default_factory=dict)
    environments: tuple[Mapping[str, Any], ...] = ()
    """Versions, machine and threads of the attempts, the last one last."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The digests of data that come from a user's function or file, by its name."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """Of a finished run: the number of rows and of curve rows, and the names of the tensors."""
    imported: bool = False
    """Whether it was computed elsewhere, and its tensors are not here."""
    experiments: tuple[str, ...] = field(default=(), metadata={"derived": True})
    """The experiments that requested the run, as NAME.SIZE; not stored in the record."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """The environment of the last attempt; empty if there is none."""
        return self.environments[-1] if self.environments else {}


def describe_run(spec: RunSpec) -> RunRecord:
    """Return the record of a run before its first attempt.

    Raises:
        StoreError: A source file of a user's function has changed since the ID of `spec` was computed.
    """
    code = code_digests(spec)
    settings = nondefault_settings(spec)
    if make_id(spec.kind, settings, code) != run_id(spec):
        raise StoreError(
            f"The source of {', '.join(code)} has changed since the run {run_id(spec)} was planned; run the command "
            "again."
        )
    return RunRecord(
        id=run_id(spec),
        kind=spec.kind,
        settings=settings,
        all_settings=all_settings(spec),
        dependencies={role: run_id(dependency) for role, dependency in spec.dependencies().items()},
        code=code,
        cost=spec.cost(),
    )


def to_plain(record: RunRecord) -> dict[str, Any]:
    """Return a record as a JSON object."""
    stored = [field for field in fields(RunRecord) if not field.metadata.get("derived")]
    return {field.name: getattr(record, field.name) for field in stored}


def from_plain(value: Mapping[str, Any], path: Path) -> RunRecord:
    """Return the record that a JSON object of the file `path` holds.

    Args:
        value: What `to_plain` returned, after it was written as JSON and read again.
        path: The file, which is named in errors.

    Returns:
        The record; `check_id` checks its settings.

    Raises:
        StoreError: A field is missing, unknown, or not of its type.
    """
    try:
        unit, number = value["cost"]
        changed = {"cost": (unit, number), "environments": tuple(value["environments"])}
        return RunRecord(**{**value, **changed})
    except (KeyError, TypeError, ValueError) as error:
        _check_version(value, path)
        raise StoreError(f"{path} is damaged: it is not the record of a run ({error!r}).") from error


def _check_version(value: Mapping[str, Any], path: Path) -> None:
    """Raise StoreVersionError if a record that cannot be read was written by another version of prunus."""
    writer = None
    with suppress(KeyError, IndexError, TypeError):  # of a record that has another form
        writer = value["environments"][-1]["prunus"]
    check_version(value, RunRecord.__dataclass_fields__, path, writer)


def check_id(record: RunRecord, path: Path) -> RunRecord:
    """Return the record of the file `path`.

    Args:
        record: The record that was read.
        path: The file, which is named in errors.

    Returns:
        The same record.

    Raises:
        StoreError: The ID is not the one that the kind, the settings and the digests of the record give.
    """
    if not _ID.fullmatch(record.id) or record.id != make_id(record.kind, record.settings, record.code):
        _check_version(to_plain(record), path)
        raise StoreError(f"{path} is damaged: its settings are not those of the run {record.id}.")
    return record


def write_record(path: Path, record: RunRecord) -> None:
    """Write the record into the directory `path`.

    Args:
        path: The directory of the run, which must exist.
        record: The record; an earlier one is replaced.

    Raises:
        NonFiniteError: The record contains NaN or infinity; nothing is written.
        StoreError: The file cannot be written, or the record contains an object that JSON has no form for.
    """
    write_json(path / RECORD, to_plain(record))


def read_record(path: Path) -> RunRecord:
    """Read the record in the directory `path`. Raises StoreError if it is missing or damaged."""
    return from_plain(read_json(path / RECORD), path / RECORD)


def check_settings_match(path: Path, stored: RunRecord, requested: RunRecord) -> None:
    """Raise StoreError unless the settings stored in the directory `path` are the requested ones.

    A field that the class did not have when the run was stored does not count as a difference; a changed default does.

    Args:
        path: The directory of the run, which is named in errors.
        stored: The record that was read from it.
        requested: The record of the requested run, as `describe_run` returned it.

    Raises:
        StoreError: The settings that differ from their defaults are not the same, or a default has changed since the
            run was stored.
    """
    if canonical_json(stored.settings) != canonical_json(requested.settings):
        raise StoreError(f"{path} holds the run of another spec than its name says; remove it.")
    before, now = flatten_settings(stored.all_settings), flatten_settings(requested.all_settings)
    changed = [key for key in before if key in now and not _agree(before[key], now[key])]
    if changed:
        key = changed[0]
        raise StoreError(
            f"{path} was made when the default of {key} was {before[key]!r}, but it is {now[key]!r} now; remove the "
            "run, or restore the old default."
        )


def _agree(before: object, now: object) -> bool:
    """Whether two values are equal, except for fields that only one of them has, at any depth."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return all(_agree(before[key], now[key]) for key in before.keys() & now.keys())
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) == len(now) and all(map(_agree, before, now))
    return canonical_json(before) == canonical_json(now)


def summarize_invariants(rows: Sequence[Row]) -> str | None:
    """Summarize the invariant reports of all levels in a sentence.

    >>> summarize_invariants([{"level": 1, "invariants": {"passed": False, "checks": {"masks are nested": False}}}])
    'failed: masks are nested (level 1)'
    """
    reports = [(row.get("level"), row["invariants"]) for row in rows if row.get("invariants")]
    if not reports:
        return None
    failed = [
        f"{check} (level {level})"
        for level, report in reports
        for check, holds in report.get("checks", {}).items()
        if not holds
    ]
    if failed:
        return f"failed: {'; '.join(failed)}"
    return "passed" if all(report["passed"] for _, report in reports) else "failed: no check is named"
