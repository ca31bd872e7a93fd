"""What stands behind the figures of an experiment: receipts, settings, machines and versions, read from its runs."""

from collections.abc import Iterable, Mapping
from typing import Any

from prunus.report import formatting
from prunus.report.experiment_page import InvariantSummary
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.settings import flatten_settings
from prunus.runs.store import Store

SHORT = ("baseline.recipe.", "baseline.")
"""What `--set` lets a key do without."""


def format_label(label: Mapping[str, Any]) -> str:
    """A label in words.

    >>> format_label({"curve": "random", "replicate": 3, "draw": 0, "group": "conv-2"})
    'conv-2, random, replicate 3, draw 0'
    """
    plain = ("group", "curve", "over")
    first = [str(label[key]) for key in plain if key in label]
    return ", ".join([*first, *(f"{k} {v}" for k, v in label.items() if k not in plain)])


def requested_run_directories(store: Store, request: Request) -> list[RunDirectory]:
    """The folders of the runs that were asked for, each once."""
    return [store.directory(id) for id in dict.fromkeys(entry.id for entry in request.entries)]


def all_run_directories(store: Store, request: Request) -> list[RunDirectory]:
    """The folders of the runs that were asked for and of those that they were made from, each once."""
    found: dict[str, RunDirectory] = {}
    left = requested_run_directories(store, request)
    while left:
        folder = left.pop(0)
        if folder.id not in found:
            found[folder.id] = folder
            left += [store.directory(need) for need in folder.record().dependencies.values()]
    return list(found.values())


def receipts(store: Store, request: Request) -> InvariantSummary:
    """Every check of every point, and the sentences that do not hold."""
    labels = {entry.id: format_label(entry.label) for entry in request.entries}
    points = [
        (folder.id, row)
        for folder in requested_run_directories(store, request)
        for row in folder.rows()
        if row.get("invariants")
    ]
    checks: dict[str, list[bool]] = {}
    failed = []
    for id, row in points:
        where = f"{labels[id]}, density {formatting.format_density(row['density'])}"
        for sentence, holds in row["invariants"]["checks"].items():
            checks.setdefault(sentence, []).append(holds)
            if not holds:
                failed.append((where, sentence, id))
    passed = sum(row["invariants"]["passed"] for _, row in points)
    counted = [(sentence, sum(held), len(held)) for sentence, held in checks.items()]
    return InvariantSummary(len(points), passed, counted, failed)


def environments(folders: Iterable[RunDirectory]) -> dict[str, str]:
    """On what the runs were computed: versions, machine, device, engine; how many runs, where they differ."""
    found: dict[str, dict[str, int]] = {}
    for folder in folders:
        ways = [_environment(one) for one in folder.record().environments]
        for key in ways[-1]:
            for words in dict.fromkeys(way[key] for way in ways):
                counts = found.setdefault(key, {})
                counts[words] = counts.get(words, 0) + 1
    return {
        key: next(iter(counts))
        if len(counts) == 1
        else "; ".join(f"{words} ({formatting.pluralize(n, 'run')})" for words, n in counts.items())
        for key, counts in found.items()
    }


def _environment(found: Mapping[str, Any]) -> dict[str, str]:
    commit = found.get("commit")
    return {
        "prunus": f"{found.get('prunus', '–')}{f', commit {commit}' if commit else ''}",
        "libraries": ", ".join(f"{name} {found.get(name, '–')}" for name in ("torch", "numpy", "python")),
        "machine": f"{found.get('cpu', '–')}, {found.get('cores', '–')} cores, {found.get('platform', '–')}",
        "device": f"{found.get('device_name') or found.get('device', '–')}, "
        f"{formatting.pluralize(found.get('threads', 1), 'thread')} a process",
        "engine": found.get("executor", "–"),
    }


def settings(folders: Iterable[RunDirectory]) -> dict[str, str]:
    """The settings of runs by the names that `--set` takes; all values, where they differ."""
    values: dict[str, dict[str, None]] = {}
    specs = [folder.record().all_settings for folder in folders]
    for spec in specs:
        for key, words in _settings(spec).items():
            values.setdefault(key, {})[words] = None
    told = {key: [words for words in found if words != "–"] for key, found in values.items()}
    return {key: "; ".join(found) for key, found in told.items() if found and key != "replicate"}


def _settings(spec: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in spec.items():
        if isinstance(value, Mapping) and "kind" in value and key != "baseline":
            found[key] = "another run"
        elif isinstance(value, Mapping):
            for name, part in flatten_settings(value, f"{key}.").items():
                found[short(name)] = _words(part)
        else:
            found[key] = _words(value)
    found.pop("kind", None)
    return found


def short(key: str) -> str:
    """A setting's name without what `--set` lets it do without."""
    return next((key.removeprefix(prefix) for prefix in SHORT if key.startswith(prefix)), key)


def _words(value: Any) -> str:
    return "–" if value in formatting.UNSET or value == [] else formatting.format_settings(value)
