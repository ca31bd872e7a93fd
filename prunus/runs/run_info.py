"""A run as a reader of the store sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prunus.runs.leases import LeaseRecord

Status = Literal["running", "done", "failed", "stale"]


@dataclass(frozen=True)
class RunInfo:
    """One run of a store, finished or not."""

    id: str
    kind: str
    experiments: tuple[str, ...]
    """Which asked for it, as NAME.SIZE."""
    spec: Mapping[str, Any]
    """The settings that differ from their defaults."""
    status: Status
    """"stale": cut short by a kill, and to be resumed."""
    invariants: str | None
    """"passed", or "failed: " and what does not hold; None where no row of its metrics has a receipt."""
    summary: Mapping[str, Any]
    seconds: float | None
    attempts: int
    cost: tuple[str, float] | None = None
    """What its time is proportional to, and how many of these it takes."""
    needs: tuple[str, ...] = ()
    error: str | None = None


def status(finished: bool, entry: LeaseRecord | None) -> Status:
    """Where a run stands: its folder says whether it is done, the ledger whether anybody is at it."""
    if finished:
        return "done"
    if entry is not None and entry.state == "failed":
        return "failed"
    return "running" if entry is not None and entry.held else "stale"


def summarize_invariants(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The receipts of all levels in a sentence.

    >>> summarize_invariants([{"level": 1, "invariants": {"passed": False, "checks": {"masks are nested": False}}}])
    'failed: masks are nested (level 1)'
    """
    receipts = [(row.get("level"), row["invariants"]) for row in rows if row.get("invariants")]
    if not receipts:
        return None
    broken = [
        f"{sentence} (level {level})"
        for level, found in receipts
        for sentence, holds in found.get("checks", {}).items()
        if not holds
    ]
    if broken or not all(found["passed"] for _, found in receipts):
        return f"failed: {'; '.join(broken)}" if broken else "failed: no check is named"
    return "passed"
