"""The page of an experiment: its question, verdicts, figures, tables, provenance, and how it differs from the paper."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.experiments.comparisons import METRICS, Difference, comparison_tables
from prunus.experiments.experiment import Experiment
from prunus.experiments.provenance import (
    all_run_directories,
    environments,
    format_label,
    requested_run_directories,
    run_settings,
    settings_of_runs,
)
from prunus.experiments.results import cell
from prunus.experiments.rows import network_of
from prunus.report import formatting
from prunus.report.experiment_page import Cell, ExperimentPage, InvariantSummary, KeyFigure, Table
from prunus.report.figure_data import FigureData
from prunus.report.figures import files_of
from prunus.report.interactive_figure import chart
from prunus.report.statistics import Verdict
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.settings import all_settings
from prunus.runs.store import Store

SIZES_IN_WORDS = {
    "smoke": ("smoke", "A smoke run tests that everything works; its numbers mean nothing."),
    "default": ("shortened", "This run is shortened to take a fraction of the paper's time."),
    "full": ("full", "This run has the size of the paper."),
}
"""Name and explanation of each size."""
SETTING_NAMES = {
    "examples": "training examples",
    "eval_every": "steps between evaluations",
    "num_scoring_examples": "examples for gradient criteria",
}
"""Names of settings whose keys are not clear."""
DESCRIBED_ELSEWHERE = ("levels", "checkpoint_steps", "rewind_step", "step")
"""Settings that follow from others, or are described elsewhere."""
SUPERMASK_PARTS = {"recipe.": "the scores' ", "mask.": "the mask's "}
"""Groups of settings that only learned supermasks have."""


@dataclass(frozen=True)
class Content:
    """Everything that the files of an experiment say."""

    experiment: Experiment
    store: Store
    request: Request
    """The runs that are finished."""
    seeds: Sequence[int]
    command: str
    missing: str
    """How many runs are missing; empty where none is."""
    table: Sequence[Row]
    differences: Sequence[Difference]
    verdicts: Sequence[Verdict]
    size_differences: Sequence[str]
    invariants: InvariantSummary


def make_page(
    content: Content, figures: Sequence[tuple[FigureData, Path]], files: Sequence[Path]
) -> ExperimentPage:
    """Make the page of an experiment.

    Args:
        content: Everything that the page says.
        figures: The figures, each with the path of its files without their suffixes.
        files: The files to list beside the page.

    Returns:
        The content of the page, with the figures read from their files.
    """
    experiment, request, store = content.experiment, content.request, content.store
    directories = all_run_directories(store, request)
    seeds = (
        f"{', '.join(map(str, content.seeds))}; each random role has a seed of its own, derived from these"
    )
    about_size = SIZES_IN_WORDS[request.size][1]
    return ExperimentPage(
        name=experiment.name,
        title=experiment.title,
        question=experiment.question,
        place=experiment.place,
        paper=experiment.paper,
        notes=experiment.differences,
        size=request.size,
        about_size=f"{about_size} {content.missing}.".replace("`", "") if content.missing else about_size,
        size_differences=content.size_differences,
        key_figures=_key_figures(content, directories),
        charts=[
            chart(figure, numbers.read_text(encoding="utf-8"), numbers.name, svg.read_text(encoding="utf-8"))
            for figure, path in figures
            for _, svg, _, numbers in [files_of(path)]
        ],
        verdicts=content.verdicts,
        about_comparisons=_about_comparisons(experiment, content.differences),
        comparisons=comparison_tables(content.differences, experiment.described),
        table=_table(experiment, content.table),
        about_table=experiment.note,
        published=[
            (", ".join(str(part) for part in value.where.values()), value.metric, value.value, value.source)
            for value in experiment.published
        ],
        invariants=content.invariants,
        command=content.command,
        settings=settings_of_runs(requested_run_directories(store, request)),
        evidence={**environments(directories), "seeds": seeds},
        runs=_runs(request, directories),
        files=[file.name for file in files],
    )


def repeat_command(experiment: Experiment, store: Store, request: Request, seeds: Sequence[int]) -> str:
    """Return the command that makes the same runs again.

    Args:
        experiment: The experiment.
        store: Where its runs are.
        request: Which runs were requested.
        seeds: The numbers of its replicates.

    Returns:
        The command line, quoted for a shell.
    """
    words = ["prunus", "run", experiment.name]
    words += [f"--{request.size}"] if request.size != "default" else []
    if len(seeds) != experiment.num_replicates(request.size):
        words += ["--replicates", str(len(seeds))]
    words += ["--seed", str(seeds[0])] if seeds[0] else []
    networks, _ = networks_of(experiment, request)
    settings = dict(request.settings)
    if (
        networks != experiment.networks_and_settings(settings)[0]
    ):  # older than the experiment's other networks
        settings["network"] = ",".join(networks)
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join([*words, "--store", str(store.path)])


def networks_of(experiment: Experiment, request: Request) -> tuple[list[str], dict[str, str]]:
    """Return the networks of a request and its other settings; one network where its runs have no group.

    Args:
        experiment: The experiment.
        request: Which runs were requested, with the settings that were changed.

    Returns:
        The names of the networks, and the changed settings other than `network`.
    """
    networks, rest = experiment.networks_and_settings(request.settings)
    return (networks if any("group" in entry.label for entry in request.entries) else networks[:1]), rest


def size_differences(experiment: Experiment, store: Store, request: Request) -> list[str]:
    """List where the runs differ from the paper's size: "5 replicates instead of 20", "epochs 5 instead of 55".

    Args:
        experiment: The experiment.
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        One phrase per difference, for all networks together where they differ alike; empty where there is none.

    Raises:
        StoreError: A run is not finished, or its files are damaged.
    """
    n, full = len({entry.label["replicate"] for entry in request.entries}), experiment.replicates[-1]
    lines = [f"{formatting.pluralize(n, 'replicate')} instead of {full}"] if n != full else []
    networks, rest = networks_of(experiment, request)
    differences = {name: _run_differences(experiment, name, request.size, rest) for name in networks}
    if all(texts == differences[networks[0]] for texts in differences.values()):
        lines += differences[networks[0]]
    else:
        lines += [f"{name}, {text}" for name, texts in differences.items() for text in texts]
    specs = [directory.record().all_settings for directory in requested_run_directories(store, request)]
    return [*lines, *level_differences(specs)]


def level_differences(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which levels runs have, where they do not have all; one line at most.

    Args:
        specs: The complete settings of the runs.
    """
    selected = [(spec.get("ticket") or spec).get("levels", ()) for spec in specs]
    levels = sorted({level for some in selected for level in some})
    if not levels:
        return []
    return [f"levels {', '.join(map(str, levels))} instead of all{'' if all(selected) else ' in some runs'}"]


def _run_differences(
    experiment: Experiment, network: str, size: str, settings: Mapping[str, str]
) -> list[str]:
    """Describe how runs differ from those of the full size: what all share, then a line per curve or several alike."""
    runs = _settings_by_curve(experiment, experiment.changed_template(network, size, settings), size)
    full = _settings_by_curve(experiment, experiment.template(network, "full"), "full")
    texts = {curve: _settings_that_differ(runs[curve], full[curve]) for curve in runs if curve in full}
    texts_by_key: dict[str, set[str]] = {}
    for of_curve in texts.values():
        for key, text in of_curve.items():
            texts_by_key.setdefault(key, set()).add(text)
    shared = {key: min(texts) for key, texts in texts_by_key.items() if len(texts) == 1}
    curves_by_text: dict[str, list[str]] = {}
    for curve, of_curve in texts.items():
        line = ", ".join(text for key, text in of_curve.items() if text and key not in shared)
        curves_by_text.setdefault(line, []).append(curve)
    lines = [f"{'; '.join(curves)}: {line}" for line, curves in curves_by_text.items() if line]
    return [*filter(None, shared.values()), *lines]


def _settings_by_curve(experiment: Experiment, template: Any, size: str) -> dict[str, dict[str, Any]]:
    """The settings of the first run of each curve."""
    settings: dict[str, dict[str, Any]] = {}
    for label, spec in experiment.runs(template, size):
        settings.setdefault(label["curve"], run_settings(all_settings(spec)))
    return settings


def _settings_that_differ(settings: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, str]:
    """A text for each setting, which is empty where both values are equal."""
    texts = {}
    for key in (key for key in full if key in settings and key not in DESCRIBED_ELSEWHERE):
        value, full_value = _setting_text(key, settings[key]), _setting_text(key, full[key])
        texts[key] = f"{_setting_name(key)} {value} instead of {full_value}" if value != full_value else ""
    return texts


def _setting_name(key: str) -> str:
    if key in SETTING_NAMES:
        return SETTING_NAMES[key]
    part = next((part for part in SUPERMASK_PARTS if key.startswith(part)), "")
    return SUPERMASK_PARTS.get(part, "") + key.removeprefix(part).replace("_", " ")


def _setting_text(key: str, value: Any) -> str:
    if value is None:
        return "all" if key == "examples" else "–"
    return formatting.format_settings(value)


def _key_figures(content: Content, directories: Sequence[RunDirectory]) -> list[KeyFigure]:
    networks = [network_of(directory).rpartition(", ") for directory in directories]
    models, data = (
        ", ".join(dict.fromkeys(name[part] for name in networks if name[part])) for part in (0, 2)
    )
    seconds = sum(directory.record().seconds for directory in directories)
    replicates = formatting.pluralize(len(content.seeds), "replicate")
    invariants = content.invariants
    return [
        KeyFigure("Size", SIZES_IN_WORDS[content.request.size][0], replicates),
        KeyFigure("Network", models or "–", f"on {data}" if data else ""),
        KeyFigure(
            "Invariants",
            f"{invariants.passed} of {invariants.points}" if invariants.points else "–",
            "results passed all checks" if invariants.points else "no result has any to check",
            bad=invariants.passed < invariants.points,
        ),
        KeyFigure(
            "Runs",
            formatting.format_int(len(directories)),
            f"{formatting.format_duration(seconds)} of computation in total",
        ),
    ]


def _runs(request: Request, directories: Sequence[RunDirectory]) -> list[tuple[str, str]]:
    """Every run with its label; the dependencies come last."""
    labels = {entry.id: format_label(entry.label) for entry in request.entries}
    dependencies = [directory for directory in directories if directory.id not in labels]
    return [
        *((label, id) for id, label in labels.items()),
        *((f"{directory.record().kind}, a dependency", directory.id) for directory in dependencies),
    ]


def _about_comparisons(experiment: Experiment, differences: Sequence[Difference]) -> str:
    """What is compared with what, and how often chance makes a difference; or why nothing is described."""
    file = f"{experiment.name}.comparisons.csv"
    described = [difference for difference in differences if difference.metric in experiment.described]
    if not described:
        return ""
    pairs = sorted({difference.comparison.n for difference in described})
    if pairs == [1]:
        return f"One replicate cannot show a difference. The measured differences are in {file}."
    n = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    dense = f", and {experiment.against} with the dense network" if any(
        difference.curve == experiment.against for difference in described
    ) else ""  # fmt: skip
    return (
        f"Every curve is compared with {experiment.against} on the same replicates (n = {n}){dense}. A difference is "
        "significant where its 95 % interval, in brackets, excludes zero. These intervals are not corrected: without "
        f"any real difference, 1 in 20 would exclude zero by chance, and there are {len(described)} comparisons here. "
        f"All of them are in {file}."
    )


def _title(key: str) -> str:
    """The title of a column."""
    if key.startswith("published "):
        return f"published {_title(key.removeprefix('published '))}"
    return METRICS[key].column if key in METRICS else key


def _table(experiment: Experiment, rows: Sequence[Row]) -> Table:
    """The summarized rows, grouped by curve."""
    names = [key for key in ("group", "curve", "over", "from") if key in rows[0]]
    columns = [key for key in rows[0] if key not in names and not key.endswith(" ±")]
    if "density %" in experiment.points:
        columns = [key for key in columns if key != "sparsity %" or key in experiment.metrics]
    groups: dict[str, list[list[Cell]]] = {}
    for row in rows:
        cells = [
            (formatting.format_density(row[key] / 100), "")
            if key == "density %" and key in experiment.points
            else cell(row, key)
            for key in columns
        ]
        groups.setdefault(", ".join(str(row[key]) for key in names), []).append(cells)
    heads = {"density %": "density (sparsity)"} if "density %" in experiment.points else {}
    titles = [heads.get(key) or _title(key) for key in columns]
    return Table(["curve", *titles], list(groups.items()))
