"""What a figure is drawn from: the rows of an experiment's runs, read from the store, each with its label."""

from collections.abc import Sequence

from prunus.errors import StoreError
from prunus.experiments.result import SIZES, Row
from prunus.runs.folder import RunFolder
from prunus.runs.requests import Request
from prunus.runs.store import Store
from prunus.tickets.dense import Dense
from prunus.tickets.ticket import Ticket


def requested(store: Store, name: str, size: str | None) -> Request:
    """What the experiment last asked of the store, in that size or the largest there is."""
    found = {request.size: request for request in store.requests() if request.experiment == name}
    sizes = [known for known in reversed(SIZES) if known in found and size in (None, known)]
    if not sizes:
        raise StoreError(f"{name} has not been run in the store {store.path}; `prunus run {name}` does.")
    return found[sizes[0]]


def rows_of(store: Store, request: Request) -> list[Row]:
    """A row a run and level, with its label and network; the dense network is level 0 of what was made of it."""
    found: list[Row] = []
    for entry in request.entries:
        folder = store.folder(entry.id)
        for row in (row for one in _with_dense(store, folder) for row in one.rows()):
            found.append({**entry.label, **_flat(row), "network": network_of(folder), "run": entry.id})
    return found


def curves_of(store: Store, request: Request) -> list[Row]:
    """A row a run, level and step, with its label and its level's density; the dense network is level 0."""
    found: list[Row] = []
    for entry in request.entries:
        folder = store.folder(entry.id)
        folders = _with_dense(store, folder)
        levels: dict[int, Row] = {row["level"]: _flat(row) for one in folders for row in one.rows()}
        for point in (point for one in folders for point in one.curve()):
            about = levels[point["level"]]
            kept: Row = {key: about[key] for key in ("density %", "passed") if key in about}
            found.append({**entry.label, **kept, **point, "network": network_of(folder), "run": entry.id})
    return found


def _with_dense(store: Store, folder: RunFolder) -> list[RunFolder]:
    """A run, and before a ticket the dense network that it was made of."""
    needs = folder.spec()["needs"] if folder.id.startswith(f"{Ticket.kind}-") else []
    return [*(store.folder(need) for need in needs if need.startswith(f"{Dense.kind}-")), folder]


def network_of(folder: RunFolder) -> str:
    """The model and the data of a run."""
    complete = folder.spec()["complete"]
    complete = complete.get("ticket") or complete
    dense = complete.get("dense", complete)
    return ", ".join(str(dense[key]) for key in ("model", "data") if key in dense)


def receipts_line(rows: Sequence[Row]) -> str:
    """How many of the points stand on a receipt, and how many of these passed."""
    points = {(row["run"], row["level"]): row["passed"] for row in rows if "passed" in row}
    return f"receipts: {sum(points.values())} of {len(points)} points passed" if points else ""


def _flat(row: Row) -> Row:
    flat = {key: value for key, value in row.items() if key not in ("receipt", "density", "seconds")}
    if "density" in row:
        flat["density %"] = round(100 * row["density"], 3)
        flat["sparsity %"] = round(100 - 100 * row["density"], 3)
    if "receipt" in row:
        flat["passed"] = row["receipt"]["passed"]
    return flat
