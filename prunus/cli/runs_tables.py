"""Runs as cells of tables and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.formatting import format_density, format_duration, format_settings
from prunus.runs.record import RunRecord
from prunus.runs.settings import canonical_json, flatten_settings

Rows = Sequence[Mapping[str, Any]]

LISTED = (
    *("run", "experiments", "status", "invariants"),
    *("level", "density (sparsity)", "final test accuracy", "duration"),
)
"""The columns of a list of runs."""


def list_cells(run: RunRecord) -> tuple[str, ...]:
    """Return a run as cells under LISTED."""
    last = _last_metrics(run)
    return (
        run.id,
        ", ".join(run.experiments) or "–",
        run.state,
        (run.invariants or "–").partition(":")[0],
        format_settings(last.get("level")),
        _metric("density", last.get("density")),
        format_settings(last.get("final_test_accuracy")),
        format_duration(run.seconds),
    )


def list_json(run: RunRecord) -> dict[str, Any]:
    """Return a run as a JSON object."""
    return {
        "id": run.id,
        "kind": run.kind,
        "experiment": run.experiments[0] if run.experiments else None,
        "experiments": list(run.experiments),
        "spec": run.settings,
        "status": run.state,
        "imported": run.imported,
        "invariants": run.invariants,
        "seconds": run.seconds,
        "attempts": run.attempts,
        "metrics": _last_metrics(run),
    }


def run_sections(run: RunRecord) -> dict[str, dict[str, Any]]:
    """Return the properties of a run by section."""
    progress = {
        "status": run.state,
        "imported": run.imported or None,
        "experiments": ", ".join(run.experiments),
        "invariants": run.invariants,
        "seconds": run.seconds,
        "attempts": run.attempts,
        "dependencies": dict(run.dependencies) or None,
        "code": dict(run.code) or None,
        "error": run.error,
    }
    return {
        run.id: progress,
        "settings that differ from their defaults": flatten_settings(run.settings),
        "environment": dict(run.environment),
        "summary": flatten_settings(run.summary),
    }


def pair_cells(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values as cells, without those that are not set."""
    cells = {key.replace("_", " "): value for key, value in values.items() if value not in (None, "")}
    return [(name, format_settings(value)) for name, value in cells.items()]


def level_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the cells of a table with one row per level."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "invariants"))
    return [*map(_title, columns)], [[_metric(key, row.get(key)) for key in columns] for row in rows]


def invariant_cells(rows: Rows) -> list[tuple[str, str]]:
    """Return each check of the invariant reports, and at how many levels it holds."""
    levels: dict[str, dict[Any, bool]] = {}
    for row in rows:
        for check, holds in (row.get("invariants") or {}).get("checks", {}).items():
            levels.setdefault(check, {})[row.get("level")] = holds
    return [(check, _describe_levels(holds_by_level)) for check, holds_by_level in levels.items()]


def different_settings(first: RunRecord, second_run: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Compare the settings of two runs, defaults included.

    Args:
        first: A run.
        second_run: Another run.

    Returns:
        Both values of each setting that differs, by name; None for a setting that a run does not have.
    """
    a, b = (flatten_settings({"kind": run.kind, **run.all_settings}) for run in (first, second_run))
    return {
        key: (a.get(key), b.get(key))
        for key in dict.fromkeys([*a, *b])
        if key not in a or key not in b or canonical_json(a[key]) != canonical_json(b[key])
    }


def level_differences(first: Rows, second_run: Rows) -> list[dict[str, Any]]:
    """Compare the numbers of each level that both runs have.

    Args:
        first: The rows of a run, one per level.
        second_run: The rows of another run.

    Returns:
        One object per level and metric, with both values and their difference.
    """
    second = {row.get("level"): row for row in second_run}
    differences = []
    for row in first:
        other = second.get(row.get("level"), {})
        for key, a in row.items():
            b = other.get(key)
            if key != "level" and _is_number(a) and _is_number(b):
                values = {"first": a, "second": b, "difference": b - a}
                differences.append({"level": row["level"], "metric": key, **values})
    return differences


def difference_cells(level: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one of `level_differences` as cells; densities with the sparsity."""
    metric = level["metric"]
    values = (_metric(metric, level[key]) for key in ("first", "second"))
    return str(level["level"]), _title(metric), *values, format_settings(level["difference"])


def _title(key: str) -> str:
    return "density (sparsity)" if key == "density" else key.replace("_", " ")


def _metric(key: str, value: Any) -> str:
    return format_density(value) if key == "density" and value is not None else format_settings(value)


def _last_metrics(run: RunRecord) -> dict[str, Any]:
    """Return the row of the last level, without its invariants, nested values by dotted name."""
    return flatten_settings({key: value for key, value in run.last_row.items() if key != "invariants"})


def _describe_levels(levels: Mapping[Any, bool]) -> str:
    failed = [str(level) for level, holds in levels.items() if not holds]
    if failed:
        return f"not on level {', '.join(failed)}"
    return f"on {'the one level' if len(levels) == 1 else f'all {len(levels)} levels'}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
