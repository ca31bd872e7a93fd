"""What a figure is drawn from: the rows of an experiment's runs, read from the store, each with its label."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunus.errors import StoreError
from prunus.experiments.results import SIZES, Row, Say
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.ticket import TicketSpec


def latest_request(store: Store, name: str, size: str | None, say: Say) -> Request:
    """Of what the experiment asked of the store, what there is to draw, in that size or the largest that has a run.

    The last request all of whose runs are finished, or, where there is none, the last that has a finished run. What
    was asked later, and is passed over, is said.

    Raises StoreError where no run of the experiment, in that size, is finished.
    """
    of_size = f" in the size {size}" if size else ""
    asked = [one for one in store.requests() if one.experiment == name and size in (None, one.size)]
    if not asked:
        raise StoreError(
            f"{name} has not been run in the store {store.path}{of_size}; `prunus run {name}` does."
        )
    for known in reversed(SIZES):
        latest_first = [one for one in reversed(asked) if one.size == known]
        whole = [one for one in latest_first if 0 < _runs(finished_subset(store, one)) == _runs(one)]
        begun = [one for one in latest_first if finished_subset(store, one).entries]
        if begun:
            chosen = (whole or begun)[0]
            for later in latest_first[: latest_first.index(chosen)]:
                say(
                    f"{name}.{known} was asked for again since, {_said(later.settings)}: "
                    f"{_runs(finished_subset(store, later))} of {_runs(later)} runs of that are finished; "
                    f"drawn is what was asked for before, {_said(chosen.settings)}"
                )
            return chosen
    raise StoreError(
        f"No run of {name}{of_size} is finished in the store {store.path}; run `prunus run {name}` again."
    )


def finished_subset(store: Store, request: Request) -> Request:
    """The request with those of its runs that are finished."""
    return replace(request, entries=tuple(entry for entry in request.entries if store.is_done(entry.id)))


def missing_line(request: Request, drawn: Request, command: str) -> str:
    """How many of the runs are drawn, and how to get the others; empty where all are."""
    if _runs(drawn) == _runs(request):
        return ""
    return (
        f"{_runs(drawn)} of {_runs(request)} runs are drawn; the others are not finished or failed: "
        f"run `{command}` again"
    )


def _runs(request: Request) -> int:
    return len({entry.id for entry in request.entries})


def _said(settings: Mapping[str, str]) -> str:
    return (
        f"with {', '.join(f'{key}={value}' for key, value in settings.items())}"
        if settings
        else "with nothing set"
    )


def rows_of(store: Store, request: Request) -> list[Row]:
    """A row a run and level, with its label and network; the dense network is level 0 of what was made of it."""
    found: list[Row] = []
    for entry in request.entries:
        folder = store.directory(entry.id)
        for row in (row for one in _with_dense(store, folder) for row in one.rows()):
            found.append({**entry.label, **_flat(row), "network": network_of(folder), "run": entry.id})
    return found


def curves_of(store: Store, request: Request) -> list[Row]:
    """A row a run, level and step, with its label and its level's density; the dense network is level 0."""
    found: list[Row] = []
    for entry in request.entries:
        folder = store.directory(entry.id)
        folders = _with_dense(store, folder)
        levels: dict[int, Row] = {row["level"]: _flat(row) for one in folders for row in one.rows()}
        for point in (point for one in folders for point in one.curve()):
            about = levels[point["level"]]
            kept: Row = {key: about[key] for key in ("density %", "passed") if key in about}
            found.append({**entry.label, **kept, **point, "network": network_of(folder), "run": entry.id})
    return found


def _with_dense(store: Store, folder: RunDirectory) -> list[RunDirectory]:
    """A run, and before a ticket the dense network that it was made of."""
    needs = folder.record().dependencies.values() if folder.id.startswith(f"{TicketSpec.kind}-") else ()
    return [*(store.directory(need) for need in needs if need.startswith(f"{BaselineSpec.kind}-")), folder]


def network_of(folder: RunDirectory) -> str:
    """The model and the data of a run."""
    complete = folder.record().all_settings
    complete = complete.get("ticket") or complete
    dense = complete.get("baseline", complete)
    return ", ".join(str(dense[key]) for key in ("model", "data") if key in dense)


def invariants_line(rows: Sequence[Row]) -> str:
    """How many of the points stand on a receipt, and how many of these passed."""
    points = {(row["run"], row["level"]): row["passed"] for row in rows if "passed" in row}
    return f"receipts: {sum(points.values())} of {len(points)} points passed" if points else ""


def _flat(row: Row) -> Row:
    flat = {key: value for key, value in row.items() if key not in ("invariants", "density", "seconds")}
    if "density" in row:
        flat["density %"] = round(100 * row["density"], 3)
        flat["sparsity %"] = round(100 - 100 * row["density"], 3)
    if "invariants" in row:
        flat["passed"] = row["invariants"]["passed"]
    return flat
