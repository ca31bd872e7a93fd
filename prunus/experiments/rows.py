"""Rows of numbers: read from runs, averaged over draws, summarized over replicates, made into curves."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from prunus.errors import StoreError
from prunus.report.figure_data import Curve
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.runs.executors.run_task import LogFn
from prunus.runs.requests import Request
from prunus.runs.settings import flatten_settings
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.ticket import TicketSpec

SIZES = ("smoke", "default", "full")
_NOT_FOR_TABLES = ("invariants", "density", "seconds")


def latest_request(store: Store, name: str, size: str | None, log: LogFn) -> Request:
    """Find the request to draw: the last one that is finished, else the last one with a finished run.

    Args:
        store: Where the runs are.
        name: Name of the experiment.
        size: "smoke", "default" or "full"; None means the largest size with a finished run.
        log: Called with a sentence for each later request that is passed over.

    Returns:
        The request, with its unfinished runs. Where `size` is None, a larger size with a finished run has precedence
        over a later request of a smaller one.

    Raises:
        StoreError: No run of the experiment, in that size, is finished.
    """
    of_size = f" in the size {size}" if size else ""
    requests = [r for r in store.requests() if r.experiment == name and size in (None, r.size)]
    if not requests:
        raise StoreError(
            f"{name} has not been run in the store {store.path}{of_size}; `prunus run {name}` does."
        )
    for known_size in reversed(SIZES):
        latest_first = [request for request in reversed(requests) if request.size == known_size]
        finished = {request.number: finished_subset(store, request) for request in latest_first}
        complete = [r for r in latest_first if 0 < num_runs(finished[r.number]) == num_runs(r)]
        started = [request for request in latest_first if finished[request.number].entries]
        if started:
            latest = (complete or started)[0]
            for later in latest_first[: latest_first.index(latest)]:
                log(
                    f"{name}.{known_size} was requested again since, {_settings_text(later.settings)}: "
                    f"{num_runs(finished[later.number])} of {num_runs(later)} runs of that are finished; "
                    f"the earlier request is drawn, {_settings_text(latest.settings)}"
                )
            return latest
    raise StoreError(
        f"No run of {name}{of_size} is finished in the store {store.path}; run `prunus run {name}` again."
    )


def finished_subset(store: Store, request: Request) -> Request:
    """Return the request with only those of its runs that are finished.

    Args:
        store: The store in which the runs are looked up.
        request: The requested runs, finished or not.

    Returns:
        A copy of the request; without entries where no run is finished.
    """
    return replace(request, entries=tuple(entry for entry in request.entries if store.is_done(entry.id)))


def num_runs(request: Request) -> int:
    """Count the different runs of a request."""
    return len({entry.id for entry in request.entries})


def _settings_text(settings: Mapping[str, str]) -> str:
    if not settings:
        return "without --set"
    return f"with {', '.join(f'{key}={value}' for key, value in settings.items())}"


def rows_of(store: Store, request: Request) -> list[Row]:
    """Read one row per run and level, with its label and network; the dense network is level 0 of its tickets.

    Args:
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        The rows in the order of the request. Each has the keys of its label, the metrics of the run, "network" and
        "run", the ID; where it has a density, "density %" and "sparsity %"; where it has an invariant report, "passed".

    Raises:
        StoreError: A run is not finished, or its files are damaged.
    """
    rows: list[Row] = []
    for entry in request.entries:
        directories = _with_baseline(store, store.directory(entry.id))
        names = {"network": network_of(directories[-1]), "run": entry.id}
        rows += [{**entry.label, **_flat(row), **names} for each in directories for row in each.rows()]
    return rows


def curves_of(store: Store, request: Request) -> list[Row]:
    """Read one row per run, level and step, with its label and its level's density.

    Args:
        store: The store that contains the runs.
        request: The requested runs, all of them finished.

    Returns:
        The rows in the order of the request. Each has the keys of its label, "level", "step", the metrics at that step,
        "network" and "run", the ID; where its level has them, "density %" and "passed".

    Raises:
        StoreError: A run is not finished, or its files are damaged.
    """
    points: list[Row] = []
    for entry in request.entries:
        directories = _with_baseline(store, store.directory(entry.id))
        levels = {row["level"]: _flat(row) for directory in directories for row in directory.rows()}
        network = network_of(directories[-1])
        for point in (point for directory in directories for point in directory.curve()):
            level = levels[point["level"]]
            shared: Row = {key: level[key] for key in ("density %", "passed") if key in level}
            points.append({**entry.label, **shared, **point, "network": network, "run": entry.id})
    return points


def _with_baseline(store: Store, directory: RunDirectory) -> list[RunDirectory]:
    """A run, and before a ticket the dense network that it was made of."""
    if not directory.id.startswith(f"{TicketSpec.kind}-"):
        return [directory]
    dependencies = directory.record().dependencies.values()
    baselines = [id for id in dependencies if id.startswith(f"{BaselineSpec.kind}-")]
    return [*map(store.directory, baselines), directory]


def network_of(directory: RunDirectory) -> str:
    """Describe the model and the data of a run, "lenet-300-100, mnist"; empty where its settings name neither."""
    names = (first_setting(directory.record().all_settings, name) for name in ("model", "data"))
    return ", ".join(name for name in names if name)


def first_setting(settings: Mapping[str, Any], name: str) -> str:
    """Return the first setting with a name, in this run or in the runs that it depends on; empty where none has it.

    Args:
        settings: The complete settings of a run, nested.
        name: Name of the setting, without the names of the groups that contain it.

    Returns:
        The value as text.

    >>> first_setting({"rounds": 3, "baseline": {"model": "lenet-5"}}, "model")
    'lenet-5'
    """
    flat = flatten_settings(settings)
    return str(next((value for key, value in flat.items() if key.rpartition(".")[2] == name), ""))


def invariants_line(rows: Sequence[Row]) -> str:
    """Say how many points have an invariant report, and how many of these passed; empty where none has."""
    points = {(row["run"], row["level"]): row["passed"] for row in rows if "passed" in row}
    return f"invariants: {sum(points.values())} of {len(points)} points passed all checks" if points else ""


def _flat(row: Row) -> Row:
    flat = {key: value for key, value in row.items() if key not in _NOT_FOR_TABLES}
    if "density" in row:
        flat["density %"] = round(100 * row["density"], 3)
        flat["sparsity %"] = round(100 - 100 * row["density"], 3)
    if "invariants" in row:
        flat["passed"] = row["invariants"]["passed"]
    return flat


def average_draws(rows: Iterable[Row], by: Sequence[str], values: Iterable[str]) -> list[Row]:
    """Average the draws of each replicate: one row per group and replicate.

    A replicate has passed where every one of its draws has.

    Args:
        rows: Each with the keys `by`, "replicate" and `values`.
        by: The keys that define a group.
        values: The keys to average.

    Returns:
        One row per group and replicate, with the keys `by`, "replicate" and `values`, and "passed": False where a draw
        has not passed.

    >>> rows = [{"arm": "a", "replicate": 0, "draw": draw, "error": 2.0 * draw} for draw in range(3)]
    >>> average_draws(rows, ["arm"], ["error"])
    [{'arm': 'a', 'replicate': 0, 'error': 2.0}]
    """
    values = list(values)
    return [
        {
            **dict(zip((*by, "replicate"), key, strict=True)),
            **{value: _mean([row[value] for row in draws]) for value in values},
            **({} if all(row.get("passed", True) for row in draws) else {"passed": False}),
        }
        for key, draws in group_rows(rows, (*by, "replicate")).items()
    ]


def group_rows(rows: Iterable[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of some keys, in the order of their first rows.

    Args:
        rows: Each with the keys `by`.
        by: The keys that define a group; with none, all rows are one group.

    Returns:
        The rows of each group, by the values of `by` in their order.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    return groups


def _mean(values: Sequence[float]) -> float:
    """The mean; equal values without a rounding error."""
    return values[0] if len(set(values)) == 1 else mean(values)


BANDS: Mapping[str, Callable[[Sequence[float]], tuple[float, float]]] = {
    "min to max": lambda values: (min(values), max(values)),
    "mean ± standard deviation": lambda values: (
        mean(values) - (stdev(values) if len(values) > 1 else 0.0),
        mean(values) + (stdev(values) if len(values) > 1 else 0.0),
    ),
}
"""The lower and the upper end of a band, from the values of the replicates at a point."""


def curve(
    name: str, rows: Iterable[Row], x: str, y: str, by: str | None = None, band: str = "min to max"
) -> Curve:
    """Make one curve of rows: at each point the mean of y, in a band.

    A point has failed where the invariant report of any of its rows has.

    Args:
        name: The name of the curve.
        rows: One row per replicate and point.
        x: Key of the horizontal coordinate; where the replicates differ in it, a point is at their mean.
        y: Key of the vertical coordinate.
        by: Key whose values are the points; `x` by default.
        band: What the band is, a key of BANDS.

    Returns:
        The curve, its points in the order of x; `n` is the largest number of rows at a point.

    >>> rows = [{"level": 1, "density": d, "accuracy": 90 + d} for d in (2, 4)]
    >>> curve("learned", rows, "density", "accuracy", "level")
    Curve(name='learned', x=[3], mean=[93], low=[92], high=[94], n=2, failed=[])
    """
    groups = [(_mean([row[x] for row in group]), group) for group in group_rows(rows, (by or x,)).values()]
    groups.sort(key=lambda group: group[0])
    positions = [position for position, _ in groups]
    ys = [[row[y] for row in group] for _, group in groups]
    means, bands = [mean(values) for values in ys], [BANDS[band](values) for values in ys]
    low, high = [low for low, _ in bands], [high for _, high in bands]
    failed = [i for i, (_, group) in enumerate(groups) if not all(row.get("passed", True) for row in group)]
    return Curve(name, positions, means, low, high, max(map(len, ys)), failed)
