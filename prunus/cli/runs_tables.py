"""Runs as rows of tables and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.formatting import format_density, format_duration
from prunus.runs.record import RunRecord
from prunus.runs.settings import canonical_json, flatten_settings

Rows = Sequence[Mapping[str, Any]]

LISTED = (
    "run",
    "experiment",
    "status",
    "invariants",
    "level",
    "density (sparsity)",
    "final test accuracy",
    "took",
)
DIFFERENCES = ("level", "metric", "first", "second", "difference")


def text(value: object) -> str:
    """A value in a cell.

    >>> text(0.123456789), text(None), text(True), text([1, 2])
    ('0.123457', '–', 'yes', '1, 2')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return "–" if value in (None, "") else str(value)


def run_row(run: RunRecord) -> tuple[str, ...]:
    """A run in a row under LISTED."""
    last = last_metrics(run)
    return (
        run.id,
        ", ".join(run.experiments) or "–",
        run.state,
        (run.invariants or "–").partition(":")[0],
        text(last.get("level")),
        format_density(last["density"]) if "density" in last else "–",
        text(last.get("final_test_accuracy")),
        "–" if run.seconds is None else format_duration(run.seconds),
    )


def listed_json(run: RunRecord) -> dict[str, Any]:
    """A run as an object."""
    return {
        "id": run.id,
        "kind": run.kind,
        "experiment": run.experiments[0] if run.experiments else None,
        "experiments": list(run.experiments),
        "spec": run.settings,
        "status": run.state,
        "invariants": run.invariants,
        "seconds": run.seconds,
        "attempts": run.attempts,
        "metrics": last_metrics(run),
    }


def last_metrics(run: RunRecord) -> dict[str, Any]:
    """The last level's row, its receipt left out, what is nested by dotted name."""
    return flatten_settings({key: value for key, value in run.last_row.items() if key != "invariants"})


def pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, without those that are not set."""
    return [(key.replace("_", " "), text(value)) for key, value in values.items() if value not in (None, "")]


def levels(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """The columns and the rows of a table, a row a level."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "invariants"))
    cells = [
        [
            format_density(row[key]) if key == "density" and row.get(key) is not None else text(row.get(key))
            for key in columns
        ]
        for row in rows
    ]
    names = ["density (sparsity)" if key == "density" else key.replace("_", " ") for key in columns]
    return names, cells


def invariant_rows(rows: Rows) -> list[tuple[str, str]]:
    """Each sentence of the receipts, and on how many levels it holds."""
    found: dict[str, list[tuple[Any, bool]]] = {}
    for row in rows:
        for sentence, holds in (row.get("invariants") or {}).get("checks", {}).items():
            found.setdefault(sentence, []).append((row.get("level"), holds))
    return [(sentence, _held(levels)) for sentence, levels in found.items()]


def _held(levels: Sequence[tuple[Any, bool]]) -> str:
    broken = [str(level) for level, holds in levels if not holds]
    if broken:
        return f"not on level {', '.join(broken)}"
    return f"on {'the one level' if len(levels) == 1 else f'all {len(levels)} levels'}"


def other_settings(one: RunRecord, two: RunRecord) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, defaults included."""
    a, b = (flatten_settings({"kind": run.kind, **run.all_settings}) for run in (one, two))
    return {
        key: (a.get(key), b.get(key))
        for key in dict.fromkeys([*a, *b])
        if key not in a or key not in b or canonical_json(a[key]) != canonical_json(b[key])
    }


def differences(one: Rows, two: Rows) -> list[dict[str, Any]]:
    """Each number of each level that both runs have, and the second's difference from the first."""
    second = {row.get("level"): row for row in two}
    return [
        dict(zip(DIFFERENCES, (row["level"], key, value, other[key], other[key] - value), strict=True))
        for row in one
        if (other := second.get(row.get("level"))) is not None
        for key, value in row.items()
        if key != "level" and _number(value) and _number(other.get(key))
    ]


def comparison_row(level: Mapping[str, Any]) -> tuple[str, ...]:
    """One of `differences` in a row; of densities with the sparsity."""
    if level["metric"] != "density":
        return tuple(text(level[key]).replace("_", " ") for key in DIFFERENCES)
    first, second = (format_density(level[key]) for key in ("first", "second"))
    return text(level["level"]), "density (sparsity)", first, second, text(level["difference"])


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
