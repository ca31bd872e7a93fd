"""Do the runs of an experiment that a store lacks, and draw the page from the rows of those that are finished."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from prunus.errors import UnknownNameError
from prunus.experiments.claims import verdicts
from prunus.experiments.comparisons import as_rows, compare, comparison_lines
from prunus.experiments.experiment import Experiment, FigureSpec
from prunus.experiments.page import Content, make_page, repeat_command, size_differences
from prunus.experiments.provenance import all_run_directories, environments, invariant_summary
from prunus.experiments.results import SIZE_MARKS, Result, ResultFiles
from prunus.experiments.rows import (
    SIZES,
    average_draws,
    curve,
    curves_of,
    finished_subset,
    group_rows,
    invariants_line,
    latest_request,
    num_runs,
    rows_of,
    spread,
)
from prunus.files import after_writing
from prunus.registry import lookup
from prunus.report.experiment_page import write_experiment_page
from prunus.report.figure_data import FigureData
from prunus.report.figures import check_figure_libraries
from prunus.report.statistics import check_interval_library
from prunus.runs.content import Row
from prunus.runs.executors import EXECUTORS, run_plan
from prunus.runs.executors.run_task import Say
from prunus.runs.requests import Request
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.types import Progress


def run_experiment(
    experiment: Experiment,
    size: str,
    out: Path,
    *,
    store: Path,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    executor: str = "processes",
    workers: int | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Do the runs of an experiment that the store lacks, and draw its page.

    Args:
        experiment: A value of EXPERIMENTS, or an own one.
        size: "smoke", "default" or "full".
        out: Folder for the result files.
        store: Folder of the store; finished runs in it are not repeated.
        replicates: Number of replicates; None for that of the size.
        seed: Number of the first replicate.
        report: Called with sentences about the plan and the runs.
        executor: A key of EXECUTORS.
        workers: Number of processes; None for one per core.
        settings: Changes of settings as texts, by setting name.
        progress: Called with the estimated work that is done.

    Returns:
        The verdicts, rows and table of the finished runs, and the paths of the files, the page first.

    Raises:
        UnknownNameError, SpecError: A name or setting is unknown or impossible; nothing was written.
        StoreError: The store is damaged or cannot be used.
    """
    _check_libraries(experiment)
    if size not in SIZES:
        raise UnknownNameError(f"Expected a size of {', '.join(SIZES)}, got {size!r}.")
    say, changes = report or (lambda line: None), dict(settings or {})
    lookup("executor", EXECUTORS, executor)
    numbers = range(seed, seed + (replicates or experiment.num_replicates(size)))
    networks = experiment.networks_and_settings(changes)[0]
    if "network" not in changes and len(networks) < len(experiment.networks):
        say(f"on {', '.join(networks)} alone; --set network={','.join(experiment.networks)} selects others")
    entries = experiment.labeled_runs(size, numbers, changes)
    experiment.warn_of_no_effect(size, numbers, changes)
    for _, spec in entries:
        spec.cost()  # an impossible run is refused before anything is written
    runs = Store(store)
    request = runs.request(experiment.name, size, [(label, spec) for label, spec in entries], changes)
    specs = [spec for _, spec in entries]
    # A damaged dependency of a finished run that was removed is computed again, because it is drawn as well.
    done = [spec for spec in specs if runs.is_done(run_id(spec))]
    needed = [dependency for spec in done for dependency in spec.dependencies().values()]
    removed = [spec for spec in needed if not runs.is_done(run_id(spec))]
    run_plan(
        [*specs, *removed],
        runs,
        executor=executor,
        workers=workers or os.cpu_count() or 1,
        say=say,
        progress=progress,
    )
    return _draw(experiment, runs, request, Path(out), say)


def draw_experiment(
    experiment: Experiment, store: Store, out: Path, *, size: str | None = None, report: Say | None = None
) -> Result:
    """Draw the page of an experiment from the rows of the finished runs in a store.

    Args:
        experiment: A value of EXPERIMENTS, or an own one.
        store: The store; only rows, curves and records of its runs are read.
        out: Folder for the result files.
        size: "smoke", "default" or "full"; None for the largest size with a finished run.
        report: Called with a sentence where not everything that was requested is drawn.

    Returns:
        The verdicts, rows and table of the finished runs, and the paths of the files, the page first.

    Raises:
        StoreError: No run of this experiment, in that size, is finished.
    """
    _check_libraries(experiment)
    say = report or (lambda line: None)
    return _draw(experiment, store, latest_request(store, experiment.name, size, say), Path(out), say)


def _check_libraries(experiment: Experiment) -> None:
    """Raise PrunusError, before any work, if a library that the page needs is missing."""
    check_figure_libraries()
    if experiment.against or experiment.claims:
        check_interval_library()


def _draw(experiment: Experiment, store: Store, requested: Request, out: Path, say: Say) -> Result:
    request = finished_subset(store, requested)
    seeds, all_seeds = (
        sorted({entry.label["replicate"] for entry in part.entries}) for part in (request, requested)
    )
    command = repeat_command(experiment, store, request, all_seeds)
    missing = _missing(requested, request, command)
    files = ResultFiles(experiment.name, request.size, out)
    rows = rows_of(store, request)
    for figure in experiment.figures:
        _draw_figure(files, figure, rows if figure.source == "rows" else curves_of(store, request), missing)
    selected = experiment.select(rows)
    differences = (
        compare(selected, experiment.against, experiment.metrics, experiment.point)
        if experiment.against
        else []
    )
    if differences:
        files.add_rows("comparisons", as_rows(differences))
    content = Content(
        experiment, store, request, seeds, command, missing,
        table=table_of(experiment, selected), differences=differences,
        verdicts=verdicts(experiment.claims, selected),
        size_differences=size_differences(experiment, store, request), invariants=invariant_summary(store, request),
    )  # fmt: skip
    result = files.finish(_json(content, rows), content.table, _notes(content, rows), len(seeds))
    page = out / f"{experiment.name}.html"
    with after_writing(*result.files):
        write_experiment_page(page, make_page(content, files.figures, result.files))
    return Result(result.name, result.content, result.table, result.text, [page, *result.files])


def _missing(requested: Request, selected: Request, command: str) -> str:
    """How many of the runs are drawn, and how to get the others; empty where all are."""
    if num_runs(selected) == num_runs(requested):
        return ""
    return (
        f"{num_runs(selected)} of {num_runs(requested)} runs are drawn; the others are not finished or failed: "
        f"run `{command}` again"
    )


def _json(content: Content, rows: Sequence[Row]) -> dict[str, Any]:
    """What NAME.json contains."""
    experiment, request = content.experiment, content.request
    return {
        "experiment": experiment.name,
        "question": experiment.question,
        "paper": experiment.paper,
        "size": request.size,
        "verdicts": [asdict(verdict) for verdict in content.verdicts],
        "published": [asdict(value) for value in experiment.published],
        "differences": [*experiment.differences, *content.size_differences],
        "command": content.command,
        "table": list(content.table),
        "rows": list(rows),
        "evidence": {
            "experiment": experiment.name,
            "seeds": list(content.seeds),
            "settings": dict(request.settings),
            **environments(all_run_directories(content.store, request)),
            **{library: version(library) for library in ("prunus", "torch", "numpy", "constriction")},
        },
    }


def _notes(content: Content, rows: Sequence[Row]) -> str:
    """The markdown below the table."""
    experiment = content.experiment
    failed = [f"- failed: {where}: {check} ({run})" for where, check, run in content.invariants.failed]
    claims = [
        f"- {verdict.verdict}: {verdict.claim} ({verdict.source}; n = {verdict.n})"
        for verdict in content.verdicts
    ]
    lines = comparison_lines(content.differences, experiment.described, f"{experiment.name}.comparisons.csv")
    paragraphs = (
        experiment.note, "\n".join(claims), invariants_line(rows), content.missing, "\n".join(failed),
        "\n".join(lines),
    )  # fmt: skip
    return "\n\n".join(filter(None, paragraphs))


def table_of(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    """Summarize rows over the replicates: one row per curve and point, with published values beside the measured.

    A density and its sparsity are rounded together, so that they add up to 100 as they are printed.

    Args:
        experiment: The experiment, which names the metrics, the keys of a point and the published values.
        rows: One row per run and point, as `Experiment.select` returns them; those without any of the metrics are left
            out.

    Returns:
        Rows with the same columns: "group" where there are several networks, "curve", the keys of the point, "n", the
        number of replicates, then each metric with its standard deviation, "METRIC ±", and its published value. A cell
        without a value is an empty text.
    """
    with_metrics = [row for row in rows if any(metric in row for metric in experiment.metrics)]
    by = [key for key in ("group", "curve", *experiment.points) if all(key in row for row in with_metrics)]
    if "density %" not in by:
        by = [key for key in by if key != "level"]  # positions between two networks, not levels of density
    table = []
    for key, members in group_rows(with_metrics, by).items():
        row: Row = {
            **dict(zip(by, key, strict=True)),
            "n": len({member["replicate"] for member in members}),
        }
        for metric in experiment.metrics:
            row |= _summary(metric, members, by)
            row |= {
                f"published {metric}": value.value
                for value in experiment.published
                if value.metric == metric and value.where.items() <= members[0].items()
            }
        table.append(row)
    columns = dict.fromkeys(column for row in table for column in row)
    return [{column: row.get(column, "") for column in columns} for row in table]


def _summary(metric: str, rows: Sequence[Row], by: Sequence[str]) -> Row:
    """Mean and standard deviation of a metric over the replicates, or an empty cell."""
    key = metric.replace("sparsity %", "density %")
    values = [row[key] for row in average_draws((row for row in rows if key in row), by, (key,))]
    if not values:
        return {metric: ""}
    if key != metric:
        return {metric: round(100 - round(mean(values), 2), 2)}
    average = round(mean(values), 2) if metric.startswith("density %") else mean(values)
    return {metric: average, f"{metric} ±": spread(values)}


def _draw_figure(files: ResultFiles, figure: FigureSpec, rows: Sequence[Row], missing: str) -> None:
    """Draw a figure for each network."""
    selected = [row for row in figure.select(rows) if figure.y in row and figure.x in row]
    for group in dict.fromkeys(row.get("group", "") for row in rows):
        members = [row for row in selected if row.get("group", "") == group]
        if missing and not members:
            continue  # none of the runs in the figure is finished
        # Learned masks end at densities of their own, so that their points are levels.
        point = figure.point or ("level" if figure.x == "density %" else figure.x)
        curves: dict[str, list[Row]] = {}
        for row in members:
            value = row[figure.curves]
            curves.setdefault(f"{value:.3g} %" if figure.curves == "density %" else value, []).append(row)
        networks = "; ".join(filter(None, dict.fromkeys(row["network"] for row in members)))
        series = [
            curve(
                name,
                average_draws(of_curve, [point], {figure.x, figure.y} - {point}),
                figure.x,
                figure.y,
                point,
            )
            for name, of_curve in curves.items()
        ]
        networks = re.sub(
            r"prunus\.experiments\.\w+:\w+, ", "", networks
        )  # the only network of that experiment
        networks = re.sub(r"[\w.]+:(\w+)", r"\1", networks)  # of a user's function, the name alone
        title = f"{figure.title}{' – ' if networks else ''}{networks}{SIZE_MARKS[files.size]}"
        footer = "; ".join(filter(None, (invariants_line(members), missing.partition(":")[0])))
        files.add_figure(
            f"{figure.suffix}.{group}" if group else figure.suffix,
            FigureData(
                series, title, figure.x_label, figure.y_label, figure.log, figure.inverted, figure.references,
                footer=footer,
            ),
        )  # fmt: skip
