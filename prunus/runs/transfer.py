"""Move runs between stores: their records, rows and curves, and the requests of experiments, but not their tensors.

A file is JSON lines, each with its digest: a header, then one line per run and one per request. It names versions, the
CPU and threads, but no host and no folder. An imported run is done; what needs its tensors raises a StoreError.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prunus.errors import StoreError
from prunus.files import write_atomic
from prunus.registry import suggestion
from prunus.runs.content import Row, read_rows, to_lines
from prunus.runs.environment import EXPORTED
from prunus.runs.record import check_id, from_plain, to_plain
from prunus.runs.requests import add_request, request_from_plain
from prunus.runs.store import Store

FORMAT, VERSION = "prunus runs", 1


@dataclass(frozen=True)
class Transferred:
    """What was exported or imported."""

    runs: tuple[str, ...]
    """The IDs of the runs."""
    skipped: tuple[str, ...] = ()
    """The IDs of runs that are not finished, or that the store has already."""
    requests: int = 0


def export_runs(store: Store, path: Path, experiments: Collection[str] = ()) -> Transferred:
    """Write finished runs of a store, and what experiments requested, to the file `path`.

    Args:
        store: The store; nothing is written to it.
        path: The file to write; an existing one is replaced.
        experiments: The names of experiments: only what they requested, of any size, and the runs that it depends on.
            Empty: all runs and requests.

    Returns:
        What was written; `skipped` has the runs that are not finished.

    Raises:
        StoreError: A file of a run is damaged, or the store has no request of an experiment.
        OutputError: The file cannot be written.
    """
    runs, requests = store.runs(), store.requests()
    if experiments:
        known = {request.experiment for request in requests}
        if missing := [name for name in experiments if name not in known]:
            hint = suggestion(missing[0], known) or f"it has {', '.join(sorted(known)) or 'none'}."
            raise StoreError(f"The store {store.path} has no experiment {missing[0]!r}; {hint}")
        requests = [request for request in requests if request.experiment in experiments]
        names = {request.name for request in requests}
        runs = [run for run in runs if not names.isdisjoint(run.experiments)]
    done = [run for run in runs if run.state == "done"]
    lines: list[Row] = []
    for run in done:
        directory = store.directory(run.id)
        environments = tuple({k: v for k, v in each.items() if k in EXPORTED} for each in run.environments)
        record = to_plain(replace(run, attempt="", started=0.0, environments=environments))
        lines.append({"run": record, "rows": directory.rows(), "curve": directory.curve()})
    lines += [{"request": asdict(request)} for request in requests]
    header = {"format": FORMAT, "version": VERSION, "lines": len(lines)}
    write_atomic(path, to_lines(path, [header, *lines]))
    skipped = tuple(run.id for run in runs if run.state != "done")
    return Transferred(tuple(run.id for run in done), skipped, len(requests))


def import_runs(path: Path, store: Store) -> Transferred:
    """Add the runs and requests of a file that `export_runs` wrote to a store.

    Args:
        path: The file.
        store: The store; a run that it has already, finished or not, is not changed.

    Returns:
        What was added; `skipped` has the runs that the store has already, or that another process works on.

    Raises:
        StoreError: The file is missing, damaged, or of another format; nothing is written.
    """
    if not path.is_file():
        raise StoreError(f"There is no file {path} to import.")
    header, *lines = read_rows(path) or [{}]
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise StoreError(f"Expected a file of `prunus runs export`, version {VERSION}, got {path}.")
    if header["lines"] != len(lines):
        raise StoreError(
            f"{path} is damaged: expected {header['lines']} lines after the first, got {len(lines)}."
        )
    runs, requests = [], []
    for line in lines:
        if "request" in line:
            requests.append(request_from_plain(line["request"], path))
            continue
        record = replace(check_id(from_plain(line.get("run", {}), path), path), imported=True)
        if record.state != "done":
            raise StoreError(f"{path} is damaged: the run {record.id} in it is not finished.")
        runs.append((record, _rows(line, "rows", path), _rows(line, "curve", path)))
    added = {record.id: store.add(record, rows, curve) for record, rows, curve in runs}
    for request in sorted(requests, key=lambda request: request.number):
        add_request(store.requests_path, request)
    new, known = (tuple(id for id in added if added[id] == is_new) for is_new in (True, False))
    return Transferred(new, known, len(requests))


def _rows(line: Row, key: str, path: Path) -> Sequence[Row]:
    rows = line.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StoreError(f"{path} is damaged: expected a list of rows, got {rows!r}.")
    return rows
