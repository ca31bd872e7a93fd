"""Do the runs of an experiment that a store lacks, and draw the page from the rows of those that are finished."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.errors import SpecError, UnknownNameError
from prunus.experiments.experiment import Experiment, FigureSpec
from prunus.experiments.joining import join_requests, requests_to_draw
from prunus.experiments.page import describe, missing_runs, repeat_command
from prunus.experiments.provenance import (
    collect_texts,
    narrowed_networks,
    run_settings,
    setting_text,
    size_texts,
)
from prunus.experiments.results import Result, write_results
from prunus.experiments.rows import (
    SIZES,
    average_draws,
    curve,
    curves_of,
    finished_subset,
    group_rows,
    invariants_line,
)
from prunus.registry import check_callbacks, lookup
from prunus.report.figure_data import FigureData
from prunus.report.figures import check_figure_libraries
from prunus.report.statistics import check_interval_library
from prunus.runs.content import Row
from prunus.runs.executors import EXECUTORS, run_plan
from prunus.runs.executors.run_task import LogFn
from prunus.runs.executors.worker import Executor
from prunus.runs.requests import Request
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.types import Progress

Settings = Mapping[str, Mapping[str, Any]]
"""The settings of each run by its ID, as `run_settings` returns them."""
SIZE_MARKS = {"smoke": " (smoke size)", "default": " (shortened)", "full": ""}


def run_experiment(
    experiment: Experiment,
    size: str,
    out: Path,
    *,
    store: Path,
    replicates: int | None = None,
    seed: int = 0,
    log: LogFn = lambda line: None,
    executor: str | Executor = "processes",
    workers: int | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Do the runs of an experiment that the store lacks, and draw its page.

    Args:
        experiment: A value of EXPERIMENTS, or an experiment of your own.
        size: "smoke", "default" or "full".
        out: Folder for the result files.
        store: Folder of the store; finished runs in it are not repeated.
        replicates: Number of replicates; None for that of the size.
        seed: Number of the first replicate.
        log: Called with each sentence about the plan and the runs.
        executor: A key of EXECUTORS, or an executor, such as `functools.partial(on_ray, address="10.0.0.1:6379")`.
        workers: Number of workers; None for as many as the executor takes by itself, "processes" one per core.
        settings: Changes of settings as texts, by setting name.
        progress: Called with the estimated work that is done.

    Returns:
        The verdicts, rows and table of the finished runs, and the paths of the files, the page first.

    Raises:
        UnknownNameError, SpecError: A name or setting is unknown or impossible; nothing was written.
        StoreError: The store is damaged or paused, or cannot be used.
        WorkerError: No worker can be started, or workers are lost too often.
    """
    _check_libraries(experiment)
    if size not in SIZES:
        raise UnknownNameError(f"Expected a size of {', '.join(SIZES)}, got {size!r}.")
    if replicates is not None and replicates < 1:
        raise SpecError(f"Expected at least 1 replicate, got {replicates}.")
    check_callbacks(log=log, progress=progress)
    changes = dict(settings or {})
    if isinstance(executor, str):
        lookup("executor", EXECUTORS, executor)
    numbers = range(seed, seed + (replicates or experiment.num_replicates(size)))
    networks = experiment.networks_and_settings(changes)[0]
    if "network" not in changes and len(networks) < len(experiment.networks):
        log(f"on {', '.join(networks)} alone; --set network={','.join(experiment.networks)} selects others")
    entries = experiment.labeled_runs(size, numbers, changes)
    experiment.warn_of_no_effect(size, numbers, changes)
    specs = [spec for _, spec in entries]
    for spec in specs:
        spec.cost()  # an impossible run is refused before anything is written
    runs = Store(store)
    request = runs.request(experiment.name, size, entries, changes)
    # A damaged dependency of a finished run that was removed is computed again, because it is plotted as well.
    done = [spec for spec in specs if runs.is_done(run_id(spec))]
    needed = [dependency for spec in done for dependency in spec.dependencies().values()]
    removed = [spec for spec in needed if not runs.is_done(run_id(spec))]
    run_plan([*specs, *removed], runs, executor=executor, workers=workers, log=log, progress=progress)
    return _draw(experiment, runs, [request], Path(out))


def draw_experiment(
    experiment: Experiment,
    store: Store,
    out: Path,
    *,
    size: str | None = None,
    log: LogFn = lambda line: None,
) -> Result:
    """Draw the page of an experiment from the rows of the finished runs in a store.

    It shows the latest request. Networks that this request lacks are added from others that differ only in the
    network, the backend and the dtype of autocast.

    Args:
        experiment: A value of EXPERIMENTS, or an experiment of your own.
        store: The store; only rows, curves and records of its runs are read.
        out: Folder for the result files.
        size: "smoke", "default" or "full"; None for the largest size with a finished run.
        log: Called with a sentence where not everything that was requested is plotted.

    Returns:
        The verdicts, rows and table of the finished runs, and the paths of the files, the page first.

    Raises:
        StoreError: No run of this experiment, in that size, is finished.
        SpecError: No row has any of the metrics of the experiment.
    """
    _check_libraries(experiment)
    return _draw(experiment, store, requests_to_draw(experiment, store, size, log), Path(out))


def _check_libraries(experiment: Experiment) -> None:
    """Raise PrunusError, before any work, if a library that the page needs is missing."""
    check_figure_libraries()
    if experiment.against or experiment.claims:
        check_interval_library()


def _draw(experiment: Experiment, store: Store, requests: Sequence[Request], out: Path) -> Result:
    requested = requests[0] if len(requests) == 1 else join_requests(experiment, requests)
    finished = finished_subset(store, requested)
    command = repeat_command(experiment, store, requests)
    content = describe(experiment, store, requested, finished, command)
    settings = {
        entry.id: run_settings(store.directory(entry.id).record().all_settings, experiment.unused)
        for entry in finished.entries
    }
    figures: dict[str, FigureData] = {}
    for figure in experiment.figures:
        rows = content["rows"] if figure.source == "rows" else curves_of(store, finished)
        figures |= _figures(figure, rows, settings, requested, finished)
    return write_results(content, figures, out)


def _figures(
    figure: FigureSpec, rows: Sequence[Row], settings: Settings, requested: Request, finished: Request
) -> dict[str, FigureData]:
    """One figure for each network, by the suffix of its files; none where it selects no row or no run is finished."""
    figures = {}
    by_group = group_rows(({"group": "", **row} for row in rows), ("group",))
    groups = [entry.label.get("group", "") for entry in finished.entries]
    narrowed = narrowed_networks(zip(groups, (settings[entry.id] for entry in finished.entries), strict=True))
    for (group,), members in by_group.items():
        selected = figure.select(members)
        plotted = [row for row in selected if figure.y in row and figure.x in row]
        missing = missing_runs(requested, finished, group)
        if not plotted and (missing or not selected):
            continue
        # Learned masks end at densities of their own, so that their points are levels.
        point = figure.point or ("level" if figure.x == "density %" else figure.x)
        curves = group_rows(plotted, (figure.curves,))
        name_format = "{:.3g} %" if figure.curves == "density %" else "{}"
        series = []
        for (name,), of_curve in curves.items():
            averaged = average_draws(of_curve, [point], {figure.x, figure.y} - {point})
            series.append(curve(name_format.format(name), averaged, figure.x, figure.y, point, figure.band))
        networks = "; ".join(filter(None, dict.fromkeys(row["network"] for row in plotted)))
        # Of a function that makes the only network of an experiment, nothing; of a user's function, the name alone.
        named = re.sub(r"prunus\.experiments\.\w+:\w+, |[\w.]+:(?=\w)", "", networks)
        # The footer names the function that narrows a network.
        group_name = f"{group} (narrowed)" if group in narrowed else group
        networks = f"{group_name}, {named}" if group and "prunus.experiments." in networks else named
        title = f"{figure.title}{' – ' if networks else ''}{networks}{SIZE_MARKS[finished.size]}"
        below = "; ".join(filter(None, (invariants_line(plotted), missing)))
        footer = "\n".join(filter(None, (_size_line(settings, finished, group), below)))
        suffix = f"{figure.suffix}.{group}" if group else figure.suffix
        figures[suffix] = FigureData(
            series,
            title,
            figure.x_label,
            figure.y_label,
            figure.log,
            figure.inverted,
            figure.y_log,
            figure.references,
            figure.band,
            footer,
        )
    return figures


def _size_line(settings: Settings, finished: Request, group: str) -> str:
    """What says how large the runs of a network are; empty in the size of the paper."""
    if finished.size == "full":
        return ""
    of_group = [settings[entry.id] for entry in finished.entries if entry.label.get("group", group) == group]
    model = collect_texts(of_group).get("model", "")
    # A function makes a network that is not the paper's.
    named = setting_text("model", model).replace("_", " ")
    network = [f"network {named}"] if ":" in model and named != "network" else []
    return textwrap.fill("; ".join([*network, *size_texts(of_group)]), 110)
