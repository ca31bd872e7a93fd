"""What the page of an experiment says, gathered from its runs in the store."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunus.experiments.comparisons import METRICS, Difference, comparison_tables
from prunus.experiments.provenance import (
    all_run_directories,
    environments,
    format_label,
    requested_run_directories,
    settings,
)
from prunus.experiments.results import SIZES, Record, Result, Row, cell
from prunus.experiments.size_differences import networks_of, shortened
from prunus.experiments.store_rows import network_of
from prunus.report import formatting
from prunus.report.experiment_page import Card, Cell, ExperimentPage, InvariantSummary, Table
from prunus.report.figures import files_of
from prunus.report.interactive_figure import chart
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.store import Store

if TYPE_CHECKING:
    from prunus.experiments.stored_experiment import StoredExperiment

SIZE = {
    "smoke": ("smoke", "A smoke run shows that everything works; its numbers mean nothing."),
    "default": ("shortened", "Shortened, to take a fraction of the paper's time."),
    "full": ("full", "The size of the paper."),
}
"""What a size is called, and what is said of it."""
NAMES = ("group", "curve", "over", "from")
"""What names the rows of a table."""


def page_of(
    laboratory: "StoredExperiment",
    store: Store,
    request: Request,
    record: Record,
    result: Result,
    found: Sequence[Difference],
    checked: InvariantSummary,
) -> ExperimentPage:
    """The page of what was just drawn."""
    about, _, more = laboratory.about.strip().partition("\n")
    place, colon, title = about.rstrip(".").rpartition(": ")
    paper, notes = paper_and_notes(laboratory)
    runs, made = requested_run_directories(store, request), all_run_directories(store, request)
    seeds = f"{', '.join(map(str, record.seeds))}; each random role has a seed of its own, derived from these"
    return ExperimentPage(
        name=laboratory.name,
        title=title[:1].upper() + title[1:],
        place=place if colon else "",
        paper=paper,
        notes=[" ".join(note.replace("`", "").split()) for note in (more, *notes) if note.strip()],
        size=request.size,
        about_size=SIZE[request.size][1],
        shortened=shortened(laboratory, request, [folder.record().all_settings for folder in runs]),
        cards=_cards(request, record, made, checked),
        charts=[
            chart(drawing, numbers.read_text(encoding="utf-8"), numbers.name, svg.read_text(encoding="utf-8"))
            for drawing, path in record.drawn
            for _, svg, _, numbers in [files_of(path)]
        ],
        about_comparisons=_about(laboratory, found),
        comparisons=comparison_tables(found, laboratory.said),
        table=_table(result.rows, laboratory.metrics),
        receipts=checked,
        command=command(laboratory, store, request, record.seeds),
        settings=settings(runs),
        evidence={**environments(made), "seeds": seeds},
        runs=_runs(request, made),
        files=[file.name for file in result.files],
    )


def paper_and_notes(laboratory: "StoredExperiment") -> tuple[str, list[str]]:
    """The paper, and where we depart from it, as the module says that makes the experiment's runs."""
    parts = (sys.modules[laboratory.wanted.__module__].__doc__ or "").strip().split("\n\n")
    return parts[0].partition("\n")[0], [part for part in parts[1:] if part.startswith("Where we depart")]


def command(laboratory: "StoredExperiment", store: Store, request: Request, seeds: Sequence[int]) -> str:
    """What makes the same runs again."""
    words = ["prunus", "run", laboratory.name]
    words += [f"--{request.size}"] if request.size != "default" else []
    if len(seeds) != laboratory.replicates[SIZES.index(request.size)]:
        words += ["--replicates", str(len(seeds))]
    words += ["--seed", str(seeds[0])] if seeds[0] else []
    networks, _ = networks_of(laboratory, request)
    settings = dict(request.settings)
    if networks != laboratory.asked(settings)[0]:  # the request is older than the experiment's other networks
        settings["network"] = ",".join(networks)
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join([*words, "--store", str(store.path)])


def _cards(
    request: Request, record: Record, made: Sequence[RunDirectory], checked: InvariantSummary
) -> list[Card]:
    networks = [network_of(folder).partition(", ") for folder in made]
    models, data = (", ".join(dict.fromkeys(name[place] for name in networks)) for place in (0, 2))
    time = sum(folder.record().seconds for folder in made)
    return [
        Card("Size", SIZE[request.size][0], formatting.pluralize(len(record.seeds), "replicate")),
        Card("Network", models, f"on {data}"),
        Card(
            "Receipts",
            f"{checked.passed} of {checked.points}" if checked.points else "–",
            "points passed" if checked.points else "no point has one",
            bad=checked.passed < checked.points,
        ),
        Card(
            "Runs",
            formatting.format_int(len(made)),
            f"{formatting.format_duration(time)} of computing, all together",
        ),
    ]


def _runs(request: Request, made: Sequence[RunDirectory]) -> list[tuple[str, str]]:
    """Every run with what it is here; those that others were made from come last."""
    labels = {entry.id: format_label(entry.label) for entry in request.entries}
    rest = [folder for folder in made if folder.id not in labels]
    return [
        *((words, id) for id, words in labels.items()),
        *((f"{folder.record().kind}, read by these", folder.id) for folder in rest),
    ]


def _about(laboratory: "StoredExperiment", found: Sequence[Difference]) -> str:
    """What is compared with what, and how often chance makes a difference; or why nothing is said."""
    where = f"{laboratory.name}.comparisons.csv"
    asked = [one for one in found if one.metric in laboratory.said]
    if not asked:
        return ""
    pairs = sorted({one.comparison.n for one in asked})
    if pairs == [1]:
        return f"One replicate proves no difference; what differences there are stand in {where}."
    n = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    return (
        f"Every curve is compared with {laboratory.against} on the same replicates (n = {n}), and {laboratory.against} "
        "with the dense network. A difference is shown where its 95 % interval, in brackets, leaves zero out; where "
        f"nothing differs, one in 20 does so all the same, and here are {len(asked)}. All of them are in {where}."
    )


def _table(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """The summarized rows, a group a curve."""
    kept = [key for key in ("level", "density %") if key in rows[0]]
    heads = {"density %": "density (sparsity)", "level": "level"}
    groups: dict[str, list[list[Cell]]] = {}
    for row in rows:
        name = ", ".join(str(row[key]) for key in NAMES if key in row)
        first = [
            (formatting.format_density(row[k] / 100) if k == "density %" else str(row[k]), "") for k in kept
        ]
        numbers = [cell(row, key) for key in ("n", *metrics)]
        groups.setdefault(name, []).append([*first, *numbers])
    names = [METRICS[metric].column if metric in METRICS else metric for metric in metrics]
    return Table(["curve", *(heads[key] for key in kept), "n", *names], list(groups.items()))
