"""What the files of an experiment say: its question, verdicts, table, comparisons, differences from the paper, runs."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from prunus.experiments.claims import decide_claims, measured_text
from prunus.experiments.comparisons import Difference, as_rows, compare, comparison_tables
from prunus.experiments.experiment import Experiment
from prunus.experiments.joining import join_requests, networks_of
from prunus.experiments.provenance import (
    all_run_directories,
    collect_texts,
    environments,
    format_label,
    invariant_summary,
    named_network,
    narrowed_networks,
    run_settings,
    setting_name,
    setting_text,
)
from prunus.experiments.rows import first_setting, rows_of
from prunus.experiments.table import table_cells, table_of, title
from prunus.runs.record import RunRecord
from prunus.runs.requests import Request
from prunus.runs.settings import all_settings
from prunus.runs.store import Store
from prunus.text_tables import pluralize

ABOUT_SIZE = {
    "smoke": "A smoke run tests that everything works; its numbers mean nothing.",
    "default": "This run is shortened to take a fraction of the paper's time.",
    "full": "This run has the size of the paper.",
}
UNSET = ("–", "none", "0")
"""Texts of settings that have no value."""
DESCRIBED_ELSEWHERE = ("levels", "checkpoint_steps", "rewind_step", "step", "replicate")
"""Settings that follow from others, or are described elsewhere."""


def describe(
    experiment: Experiment, store: Store, requested: Request, finished: Request, command: str
) -> dict[str, Any]:
    """Describe the finished runs of an experiment: the content of all of its files, as plain values.

    Args:
        experiment: The experiment.
        store: The store that contains the runs.
        requested: The runs that were requested.
        finished: Those of them that are finished.
        command: The command that makes the same runs again.

    Returns:
        The content of NAME.json, from which NAME.md and NAME.html are made.

    Raises:
        StoreError: A run is not finished, or its files are damaged.
        SpecError: No row has any of the metrics of the experiment.
    """
    rows, missing = rows_of(store, finished), missing_runs(requested, finished)
    selected = experiment.select(rows)
    against = experiment.against
    compared = compare(selected, against, experiment.metrics, experiment.point) if against else []
    metrics = experiment.described or experiment.metrics[:1]
    described = [difference for difference in compared if difference.metric in metrics]
    networks = networks_of(experiment, finished)
    claims = [claim for claim in experiment.claims if claim.is_about(*networks)]
    table = table_of(experiment, selected)
    directories = all_run_directories(store, finished)
    records = {directory.id: directory.record() for directory in directories}
    settings = [
        (entry.label["curve"], run_settings(records[entry.id].all_settings, experiment.unused))
        for entry in finished.entries
    ]
    groups = [entry.label.get("group", "") for entry in finished.entries]
    narrowed = narrowed_networks(zip(groups, (values for _, values in settings), strict=True))
    models, data = (
        dict.fromkeys(first_setting(record.all_settings, key) for record in records.values())
        for key in ("model", "data")
    )
    return {
        **{name: getattr(experiment, name) for name in ("title", "question", "paper", "place", "note")},
        "experiment": experiment.name,
        "size": finished.size,
        "about_size": ABOUT_SIZE[finished.size],
        "missing": f"{missing}: run `{command}` again" if missing else "",
        "verdicts": [
            {
                **asdict(decision),
                "claim": named_network(decision.claim, narrowed),
                "measured_text": measured_text(decision),
            }
            for decision in decide_claims(claims, selected, len(experiment.claims_of_networks()))
        ],
        "published": [asdict(value) for value in experiment.published],
        "published_rows": _published_rows(experiment),
        "differences": [*experiment.differences],
        "size_differences": size_differences(experiment, finished, settings),
        "command": command,
        "table": table,
        "cells": table_cells(experiment, table),
        "comparisons": as_rows(compared),
        "about_comparisons": _about_comparisons(experiment, described),
        "comparison_tables": comparison_tables(described),
        "invariants": invariant_summary(store, finished),
        "settings": {
            key: text
            for key, text in collect_texts(values for _, values in settings).items()
            if key != "replicate" and text not in UNSET
        },
        "models": "; ".join(filter(None, dict.fromkeys(map(_model_name, models)))),
        "data": "; ".join(filter(None, data)),
        "runs": _runs(finished, records),
        "seconds": sum(record.seconds for record in records.values()),
        "rows": rows,
        "evidence": {
            "experiment": experiment.name,
            "seeds": _seeds(finished),
            "settings": dict(finished.settings),
            **{library: version(library) for library in ("torch", "numpy", "constriction")},
            **environments(records.values()),
        },
    }


def _published_rows(experiment: Experiment) -> list[tuple[str, str, str]]:
    """The published values of each row of the table: the row, the values with their metrics, and the source."""
    texts: dict[tuple[str, str], list[str]] = {}
    for value in experiment.published:
        row = ", ".join(map(str, value.where.values()))
        texts.setdefault((row, value.source), []).append(f"{title(value.metric)} {value.value:g}")
    return [(row, "; ".join(values), source) for (row, source), values in texts.items()]


def _model_name(reference: str) -> str:
    """The name of a model: of a user's function, without its module; empty for the only network of an experiment."""
    return "" if reference.startswith("prunus.experiments.") else reference.rpartition(":")[2]


def _seeds(request: Request) -> list[int]:
    """The numbers of the replicates."""
    return sorted({entry.label["replicate"] for entry in request.entries})


def missing_runs(requested: Request, finished: Request, group: str = "") -> str:
    """Say how many of the requested runs are drawn.

    Args:
        requested: The runs that were requested.
        finished: Those of them that are finished.
        group: The network of a figure, as runs are labeled with it; empty for all runs.

    Returns:
        A sentence without its period; empty where all runs are drawn.
    """
    num_finished, num_requested = (
        len({entry.id for entry in request.entries if group in ("", entry.label.get("group"))})
        for request in (finished, requested)
    )
    if num_finished == num_requested:
        return ""
    return f"{num_finished} of {num_requested} runs are drawn; the others are not finished or failed"


def repeat_command(experiment: Experiment, store: Store, requests: Sequence[Request]) -> str:
    """Return the command that makes the same runs again.

    Args:
        experiment: The experiment.
        store: Where its runs are.
        requests: Which runs were requested, of one size.

    Returns:
        A command line, quoted for a shell, for all requests that differ only in the network; several are joined by
        "&&".
    """
    alike: dict[tuple[object, ...], list[Request]] = {}
    for request in requests:
        others = {key: value for key, value in request.settings.items() if key != "network"}
        alike.setdefault((*_seeds(request), *others.items()), []).append(request)
    joined = [some[0] if len(some) == 1 else join_requests(experiment, some) for some in alike.values()]
    return " && ".join(_command_of(experiment, store, request) for request in joined)


def _command_of(experiment: Experiment, store: Store, request: Request) -> str:
    """The command that makes the runs of one request again."""
    seeds, words = _seeds(request), ["prunus", "run", experiment.name]
    words += [f"--{request.size}"] if request.size != "default" else []
    if len(seeds) != experiment.num_replicates(request.size):
        words += ["--replicates", str(len(seeds))]
    words += ["--seed", str(seeds[0])] if seeds[0] else []
    for key, value in request.settings.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join([*words, "--store", str(store.path)])


def size_differences(
    experiment: Experiment, request: Request, settings: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[str]:
    """List where the runs differ from the full size: "5 replicates instead of 20", "epochs 5 instead of 55".

    Args:
        experiment: The experiment.
        request: The requested runs.
        settings: The curve of each of these runs, and its settings by the names that `--set` takes.

    Returns:
        One phrase per difference that all curves have, and one for all differences of the same other curves, which it
        names; empty where there is none. Curves that the full size does not have are left out.
    """
    n, full_n = len(_seeds(request)), experiment.replicates[-1]
    networks = networks_of(experiment, request)
    lines = [f"{pluralize(n, 'replicate')} instead of {full_n}"] if n != full_n else []
    full = [
        (label["curve"], run_settings(all_settings(spec), experiment.unused))
        for network in experiment.networks_and_settings(request.settings)[0]
        if network in networks
        for label, spec in experiment.runs(experiment.template(network, "full"), "full")
    ]
    shared = [curve for curve in dict(settings) if curve in dict(full)]
    curves_by_text: dict[str, list[str]] = {}
    for curve in shared:
        for text in _setting_differences(*([s for c, s in side if c == curve] for side in (settings, full))):
            curves_by_text.setdefault(text, []).append(curve)
    texts_by_curves: dict[tuple[str, ...], list[str]] = {}
    for text, curves in curves_by_text.items():
        texts_by_curves.setdefault(tuple(curves), []).append(text)
    for some, texts in texts_by_curves.items():
        lines += texts if list(some) == shared else [f"{'; '.join(some)}: {'; '.join(texts)}"]
    selected = [values.get("levels") or [] for _, values in settings]
    if levels := sorted({level for some in selected for level in some}):
        which = "all" if all(selected) else "some"
        lines.append(f"{which} runs have no other levels than {', '.join(map(str, levels))}")
    return lines


def _setting_differences(
    settings: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """A phrase for each setting that differs between runs and those of the full size."""
    texts, full_texts = collect_texts(settings), collect_texts(full)
    for key in (key for key in full_texts if key in texts and key not in DESCRIBED_ELSEWHERE):
        text, full_text = texts[key], full_texts[key]
        if text != full_text:
            yield f"{setting_name(key)} {setting_text(key, text)} instead of {setting_text(key, full_text)}"


def _runs(request: Request, records: Mapping[str, RunRecord]) -> list[tuple[str, str]]:
    """The label and the ID of every run; the dependencies come last."""
    labels = {entry.id: format_label(entry.label) for entry in request.entries}
    others = {id: f"{record.kind}, a dependency" for id, record in records.items() if id not in labels}
    return [(label, id) for id, label in (labels | others).items()]


def _about_comparisons(experiment: Experiment, described: Sequence[Difference]) -> str:
    """What is compared with what, and how often chance makes a difference; or why nothing is described."""
    if not described:
        return ""
    file, pairs = f"{experiment.name}.comparisons.csv", sorted({each.comparison.n for each in described})
    if pairs == [1]:
        return (
            f"One replicate cannot show a difference. `prunus run` writes the measured differences to {file}."
        )
    n = " to ".join(map(str, dict.fromkeys((pairs[0], pairs[-1]))))
    with_dense = any(difference.curve == experiment.against for difference in described)
    dense = f", and {experiment.against} with the dense network" if with_dense else ""
    return (
        f"Every curve is compared with {experiment.against} on the same replicates (n = {n}){dense}. A difference is "
        "significant where its 95 % interval, in brackets, excludes zero. These intervals are not corrected: without "
        f"any real difference, 1 in 20 would exclude zero by chance, and there are {len(described)} comparisons here. "
        f"`prunus run` writes all of them to {file}."
    )
