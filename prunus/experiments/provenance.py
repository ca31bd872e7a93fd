"""How the runs of an experiment were made: invariant checks, settings, machines and versions, from their records."""

from collections.abc import Iterable, Mapping
from typing import Any

from prunus.report import formatting
from prunus.report.experiment_page import InvariantSummary
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.settings import flatten_settings
from prunus.runs.store import Store

PREFIXES = (
    "",
    "baseline.",
    "baseline.recipe.",
    "settings.",
    "settings.recipe.",
    "ticket.",
    "ticket.baseline.",
    "ticket.baseline.recipe.",
)
"""Prefixes of settings that `--set` may leave out: `epochs` is `baseline.recipe.epochs` of a ticket."""
DEPENDENCIES = ("masks_from", "densities_from", "inputs")
"""Settings that are other runs, with settings of their own."""


def short_name(key: str) -> str:
    """Return a setting's name without a prefix that `--set` does not need."""
    prefixes = sorted(PREFIXES, key=len, reverse=True)
    return next(key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix))


def format_label(label: Mapping[str, Any]) -> str:
    """Format the label of a run.

    >>> format_label({"curve": "random", "replicate": 3, "draw": 0, "group": "conv-2"})
    'conv-2, random, replicate 3, draw 0'
    """
    names = ("group", "curve", "over")
    first = [str(label[key]) for key in names if key in label]
    return ", ".join([*first, *(f"{key} {value}" for key, value in label.items() if key not in names)])


def requested_run_directories(store: Store, request: Request) -> list[RunDirectory]:
    """Return the directories of the requested runs, each once.

    Args:
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        Their directories, for reading, in the order of the request.

    Raises:
        StoreError: A run is not finished.
    """
    return [store.directory(id) for id in dict.fromkeys(entry.id for entry in request.entries)]


def all_run_directories(store: Store, request: Request) -> list[RunDirectory]:
    """Return the directories of the requested runs and of their dependencies, each once.

    Args:
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        The directories, for reading: first those of the request in its order, then those of dependencies and of their
        dependencies.

    Raises:
        StoreError: A run is not finished, or its files are damaged.
    """
    directories: dict[str, RunDirectory] = {}
    remaining = requested_run_directories(store, request)
    while remaining:
        directory = remaining.pop(0)
        if directory.id not in directories:
            directories[directory.id] = directory
            remaining += [store.directory(need) for need in directory.record().dependencies.values()]
    return list(directories.values())


def invariant_summary(store: Store, request: Request) -> InvariantSummary:
    """Count every check of every point, and list the failed ones.

    Args:
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        The number of rows with a report, how many of them passed all checks, the counts of each check, and the failures
        by label, density, check and run.

    Raises:
        StoreError: A run is not finished, or its files are damaged.
    """
    labels = {entry.id: format_label(entry.label) for entry in request.entries}
    points = [
        (directory.id, row)
        for directory in requested_run_directories(store, request)
        for row in directory.rows()
        if row.get("invariants")
    ]
    checks: dict[str, list[bool]] = {}
    failed = []
    for id, row in points:
        where = f"{labels[id]}, density {formatting.format_density(row['density'])}"
        for check, holds in row["invariants"]["checks"].items():
            checks.setdefault(check, []).append(holds)
            if not holds:
                failed.append((where, check, id))
    passed = sum(row["invariants"]["passed"] for _, row in points)
    counts = [(check, sum(results), len(results)) for check, results in checks.items()]
    return InvariantSummary(len(points), passed, counts, failed)


def environments(directories: Iterable[RunDirectory]) -> dict[str, str]:
    """Describe where runs were computed: versions, machine, device; with numbers of runs where they differ."""
    counts: dict[str, dict[str, int]] = {}
    for directory in directories:
        attempts = [_environment(attempt) for attempt in directory.record().environments]
        for key in attempts[-1]:
            for text in dict.fromkeys(attempt[key] for attempt in attempts):
                of_key = counts.setdefault(key, {})
                of_key[text] = of_key.get(text, 0) + 1
    return {
        key: next(iter(texts))
        if len(texts) == 1
        else "; ".join(f"{text} ({formatting.pluralize(n, 'run')})" for text, n in texts.items())
        for key, texts in counts.items()
    }


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    commit = record.get("commit")
    return {
        "prunus": f"{record.get('prunus', '–')}{f', commit {commit}' if commit else ''}",
        "libraries": ", ".join(f"{name} {record.get(name, '–')}" for name in ("torch", "numpy", "python")),
        "machine": f"{record.get('cpu', '–')}, {record.get('cores', '–')} cores",
        "device": f"{record.get('device_name') or record.get('device', '–')}, "
        f"{formatting.pluralize(record.get('threads', 1), 'thread')} per process",
        "executor": record.get("executor", "–"),
    }


def settings_of_runs(directories: Iterable[RunDirectory]) -> dict[str, str]:
    """Collect the settings of runs by the names that `--set` takes, with all values where they differ."""
    values: dict[str, dict[str, None]] = {}
    for directory in directories:
        for key, value in run_settings(directory.record().all_settings).items():
            if key != "replicate" and value not in formatting.UNSET and value != []:
                values.setdefault(key, {})[formatting.format_settings(value)] = None
    return {key: "; ".join(texts) for key, texts in values.items()}


def run_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one run by the names that `--set` takes, without those of runs that it depends on."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in DEPENDENCIES:
            flat[key] = "another run" if value else None
        elif isinstance(value, Mapping):
            flat |= {short_name(name): part for name, part in flatten_settings(value, f"{key}.").items()}
        elif key not in ("kind", "function", "version"):
            flat[key] = value
    flat.pop("kind", None)
    if "baseline" not in settings:  # the recipe is not that of scores
        flat = {name.removeprefix("recipe."): value for name, value in flat.items()}
    return flat
