"""How the runs of an experiment were made: invariant checks, settings, machines and versions, from their records."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from prunus.report.formatting import format_density, format_settings
from prunus.runs.directory import RunDirectory
from prunus.runs.record import RunRecord
from prunus.runs.requests import Request
from prunus.runs.settings import flatten_settings
from prunus.runs.store import Store
from prunus.text_tables import pluralize

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
SETTING_NAMES = {
    "examples": "training examples",
    "eval_every": "steps between evaluations",
    "num_scoring_examples": "examples for gradient criteria",
}
"""Names of settings whose keys are not clear."""
PARTS = {"recipe.": "the scores' ", "mask.": "the mask's ", "compression.": ""}
"""What groups of settings are called: the first two are those of learned supermasks."""
SIZE_SETTINGS = ("data", "epochs", "retrain_epochs", "rounds", "examples", "test_examples", "networks")
"""The settings, without the names of their groups, that say how large a run is."""
WEIGHTS_FILE = ".safetensors"
"""How the setting "weights" ends where it is a file that a network is loaded from."""
NARROW = "narrow_"
"""How the functions are called that make a network with fewer channels than the paper's."""
DEPENDENCIES = ("masks_from", "densities_from", "inputs")
"""Settings that are other runs, with settings of their own."""


def short_name(key: str) -> str:
    """Return a setting's name without a prefix that `--set` does not need."""
    prefixes = sorted(PREFIXES, key=len, reverse=True)
    return next(key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix))


def setting_name(key: str) -> str:
    """Return what a setting is called in a sentence.

    >>> setting_name("eval_every"), setting_name("compression.final_retrain.epochs"), setting_name("recipe.epochs")
    ('steps between evaluations', 'final retrain epochs', "the scores' epochs")
    """
    part = next((part for part in PARTS if key.startswith(part)), "")
    name = SETTING_NAMES.get(key, key.removeprefix(part))
    return f"{PARTS.get(part, '')}{name}".replace("_", " ").replace(".", " ")


def setting_text(key: str, text: str) -> str:
    """Return the values of a setting as they are called in a sentence, a function by its name alone.

    Args:
        key: The setting, by the name that `--set` takes.
        text: Its values, as `collect_texts` returned them.

    Returns:
        The values, joined by "or".

    >>> setting_text("examples", "–; 3000"), setting_text("model", "package.networks:narrow; resnet-20")
    ('all or 3000', 'narrow or resnet-20')
    """
    text = text.replace("–", "all" if key == "examples" else "none").replace("; ", " or ")
    return re.sub(r"[\w.]+:(?=\w)", "", text) if key.endswith("model") else text


def narrowed_networks(settings: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return how the networks are called that stand for larger ones, by the names of those.

    Args:
        settings: For each run, the name of its network in the experiment, and the settings as `run_settings` returns
            them.

    Returns:
        The words for the function that makes the network, where that narrows it.

    >>> narrowed_networks([("vgg", {"model": "prunus.experiments.liu2019_networks:narrow_vgg_16"})])
    {'vgg': 'narrow vgg 16'}
    """
    functions = {name: str(values.get("model")).rpartition(":")[2] for name, values in settings}
    return {name: text.replace("_", " ") for name, text in functions.items() if text.startswith(NARROW)}


def named_network(text: str, narrowed: Mapping[str, str]) -> str:
    """Return a text that begins with the name of a network, with what that network is.

    Args:
        text: The text of a claim, after the name of its network and a colon where there are several.
        narrowed: As `narrowed_networks` returns it.

    Returns:
        The text.

    >>> named_network("vgg: Scratch-E is less accurate", {"vgg": "narrow vgg 16"})
    'vgg (narrow vgg 16): Scratch-E is less accurate'
    """
    network, colon, rest = text.partition(": ")
    return f"{network} ({narrowed[network]}): {rest}" if colon and network in narrowed else text


def format_label(label: Mapping[str, Any]) -> str:
    """Format the label of a run.

    >>> format_label({"curve": "random", "replicate": 3, "draw": 0, "group": "conv-2"})
    'conv-2, random, replicate 3, draw 0'
    """
    names = ("group", "curve", "over")
    first = [str(label[key]) for key in names if key in label]
    return ", ".join([*first, *(f"{key} {value}" for key, value in label.items() if key not in names)])


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
    remaining = [entry.id for entry in request.entries]
    while remaining:
        id = remaining.pop(0)
        if id not in directories:
            directories[id] = store.directory(id)
            remaining += directories[id].record().dependencies.values()
    return list(directories.values())


def invariant_summary(store: Store, request: Request) -> dict[str, Any]:
    """Count every check of every point, and list the failed ones.

    Args:
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        "points", the number of rows with a report; "passed", how many of them passed all checks; "checks", each with
        the number of rows that it holds for and was made for; and "failed", each with the label of its result, the
        check and the ID of the run.

    Raises:
        StoreError: A run is not finished, or its files are damaged.
    """
    labels = {entry.id: format_label(entry.label) for entry in request.entries}  # each run once
    passed: list[bool] = []
    checks: dict[str, list[bool]] = {}
    failed = []
    for id, label in labels.items():
        for row in (row for row in store.directory(id).rows() if row.get("invariants")):
            passed.append(row["invariants"]["passed"])
            for check, holds in row["invariants"]["checks"].items():
                checks.setdefault(check, []).append(holds)
                if not holds:
                    where = f"{label}, density {format_density(row['density'])}"
                    failed.append((where, check, id))
    counts = [(check, sum(results), len(results)) for check, results in checks.items()]
    return {"points": len(passed), "passed": sum(passed), "checks": counts, "failed": failed}


def environments(records: Iterable[RunRecord]) -> dict[str, str]:
    """Describe where runs were computed: versions, machine, device, with all values where they differ."""
    return collect_texts(_environment(attempt) for record in records for attempt in record.environments)


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    commit = record.get("commit")
    return {
        "prunus": f"{record.get('prunus', '–')}{f', commit {commit}' if commit else ''}",
        "libraries": ", ".join(f"{name} {record.get(name, '–')}" for name in ("torch", "numpy", "python")),
        "machine": f"{record.get('cpu', '–')}, {record.get('cores', '–')} cores",
        "device": f"{record.get('device_name') or record.get('device', '–')}, "
        f"{pluralize(record.get('threads', 1), 'thread')} per process",
        "executor": record.get("executor", "–"),
    }


def collect_texts(dicts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Format the values of many dicts by key, with all values where they differ.

    >>> collect_texts([{"epochs": 2, "rounds": 3}, {"epochs": 4}])
    {'epochs': '2; 4', 'rounds': '3'}
    """
    texts: dict[str, dict[str, None]] = {}
    for values in dicts:
        for key, value in values.items():
            texts.setdefault(key, {})[format_settings(value)] = None
    return {key: "; ".join(texts_of) for key, texts_of in texts.items()}


def is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a setting has one of the names, or belongs to a group of settings with one of them.

    Args:
        key: The setting, with or without a prefix that `--set` does not need.
        names: Names of settings and of groups of settings.

    Returns:
        Whether it does.

    >>> is_among("settings.finetune.epochs", ["finetune", "penalty"]), is_among("penalty_strength", ["penalty"])
    (True, False)
    """
    short = short_name(key)
    return any(short == name or short.startswith(f"{name}.") for name in names)


def run_settings(
    settings: Mapping[str, Any], unused: Callable[[Mapping[str, Any]], Collection[str]] | None = None
) -> dict[str, Any]:
    """Return the settings of one run by the names that `--set` takes, without those of runs that it depends on.

    Args:
        settings: All settings of the run, as `prunus.runs.settings.all_settings` returns them.
        unused: Maps the settings by their names to those, or groups of those, to leave out, because the experiment does
            not use them; None: all are used.

    Returns:
        The value of each setting by its name.
    """
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
    left_out = unused(flat) if unused else ()
    return {name: value for name, value in flat.items() if not is_among(name, left_out)}


def size_texts(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the settings that say how large runs are, each with its values.

    Args:
        settings: The settings of each run, as `run_settings` returns them.

    Returns:
        Data, epochs, rounds and numbers of examples.

    >>> size_texts([{"data": "mnist", "recipe.epochs": 5, "examples": None, "seed": 1}])
    ['data mnist', "the scores' epochs 5", 'training examples all']
    """
    return [
        f"{setting_name(key)} {setting_text(key, text)}"
        for key, text in collect_texts(settings).items()
        if key.rpartition(".")[2] in SIZE_SETTINGS or (key == "weights" and text.endswith(WEIGHTS_FILE))
    ]
