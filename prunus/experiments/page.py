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
    settings_of_runs,
    short_name,
)
from prunus.experiments.results import cell
from prunus.experiments.rows import Row, network_of
from prunus.report import formatting
from prunus.report.experiment_page import Cell, ExperimentPage, InvariantSummary, KeyFigure, Table
from prunus.report.figure_data import FigureData
from prunus.report.figures import files_of
from prunus.report.interactive_figure import chart
from prunus.report.statistics import Verdict
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.settings import all_settings, flatten_settings
from prunus.runs.store import Store

SIZES_IN_WORDS = {
    "smoke": ("smoke", "A smoke run tests that everything works; its numbers mean nothing."),
    "default": ("shortened", "This run is shortened to take a fraction of the paper's time."),
    "full": ("full", "This run has the size of the paper."),
}
"""Name and explanation of each size."""
SETTING_NAMES = {
    "examples": "training examples",
    "every": "steps between evaluations",
    "num_scoring_examples": "examples for gradient criteria",
}
"""Names of settings whose keys are not clear."""
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
    content: Content, drawn: Sequence[tuple[FigureData, Path]], files: Sequence[Path]
) -> ExperimentPage:
    """Make the page of an experiment.

    Args:
        content: Everything that the page says.
        drawn: The figures, each with the path of its files without their suffixes.
        files: The files to list beside the page.
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
            for figure, path in drawn
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
    """Return the networks of a request and its other settings; one network where its runs have no group."""
    networks, rest = experiment.networks_and_settings(request.settings)
    return (networks if any("group" in entry.label for entry in request.entries) else networks[:1]), rest


def size_differences(experiment: Experiment, store: Store, request: Request) -> list[str]:
    """List where the runs differ from the paper's size: "5 replicates instead of 20", "epochs 5 instead of 55"."""
    n, full = len({entry.label["replicate"] for entry in request.entries}), experiment.replicates[-1]
    lines = [f"{formatting.pluralize(n, 'replicate')} instead of {full}"] if n != full else []
    networks, rest = networks_of(experiment, request)
    of_networks = [_template_differences(experiment, network, request.size, rest) for network in networks]
    if all(differences == of_networks[0] for differences in of_networks):
        lines += of_networks[0]
    else:
        named = zip(networks, of_networks, strict=True)
        lines += [f"{network}: {', '.join(differences)}" for network, differences in named if differences]
    for network in networks:
        where = f"{network}, " if len(networks) > 1 else ""
        lines += [where + line for line in _supermask_differences(experiment, network, request.size, rest)]
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


def _template_differences(
    experiment: Experiment, network: str, size: str, settings: Mapping[str, str]
) -> list[str]:
    """The settings in which the template of this size, with changed settings, differs from the paper's."""
    here, there = (
        flatten_settings(all_settings(template))
        for template in (
            experiment.changed_template(network, size, settings),
            experiment.template(network, "full"),
        )
    )
    return _settings_that_differ(here, there, of_supermasks=False)


def _supermask_differences(
    experiment: Experiment, network: str, size: str, settings: Mapping[str, str]
) -> list[str]:
    """The same of learned supermasks: one line for those that differ in the same way."""
    here, there = (
        {
            label["curve"]: flatten_settings(all_settings(spec))
            for label, spec in experiment.runs(template, of_size, [0])
            if hasattr(spec, "samples")
        }
        for template, of_size in (
            (experiment.changed_template(network, size, settings), size),
            (experiment.template(network, "full"), "full"),
        )
    )
    names_by_text: dict[str, list[str]] = {}
    for name in (name for name in here if name in there):
        text = ", ".join(_settings_that_differ(here[name], there[name], of_supermasks=True))
        names_by_text.setdefault(text, []).append(name)
    return [f"{'; '.join(names)}: {text}" for text, names in names_by_text.items() if text]


def _settings_that_differ(
    here: Mapping[str, Any], there: Mapping[str, Any], *, of_supermasks: bool
) -> list[str]:
    return [
        f"{_setting_name(short_name(key))} {_setting_text(key, here[key])} "
        f"instead of {_setting_text(key, there[key])}"
        for key in there
        if key in here
        and here[key] != there[key]
        and short_name(key).startswith(tuple(SUPERMASK_PARTS)) == of_supermasks
    ]


def _setting_name(key: str) -> str:
    if key in SETTING_NAMES:
        return SETTING_NAMES[key]
    part = next((part for part in SUPERMASK_PARTS if key.startswith(part)), "")
    return SUPERMASK_PARTS.get(part, "") + key.removeprefix(part).replace("_", " ")


def _setting_text(key: str, value: Any) -> str:
    if value is None:
        return "all" if short_name(key) == "examples" else "–"
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
    described = [one for one in differences if one.metric in experiment.described]
    if not described:
        return ""
    pairs = sorted({one.comparison.n for one in described})
    if pairs == [1]:
        return f"One replicate cannot show a difference. The measured differences are in {file}."
    n = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    dense = f", and {experiment.against} with the dense network" if any(
        one.curve == experiment.against for one in described
    ) else ""  # fmt: skip
    return (
        f"Every curve is compared with {experiment.against} on the same replicates (n = {n}){dense}. A difference is "
        "significant where its 95 % interval, in brackets, excludes zero. These intervals are not corrected: without "
        f"any real difference, 1 in 20 would exclude zero by chance, and there are {len(described)} comparisons here. "
        f"All of them are in {file}."
    )


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
    titles = [heads.get(key) or (METRICS[key].column if key in METRICS else key) for key in columns]
    return Table(["curve", *titles], list(groups.items()))
