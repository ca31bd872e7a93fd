"""Sweeps: which runs the commands on a store are to do, how far they are, and whether the store is paused.

STORE/sweeps/HEX.json   the runs of a command; HEX is a digest of the requested IDs
STORE/paused            while this file exists, no worker starts a run
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from prunus.errors import StoreError
from prunus.runs.content import check_version, read_json, store_errors, write_file, write_json
from prunus.runs.locking import is_locked
from prunus.runs.plan import Plan, seconds_per_unit, with_dependents
from prunus.runs.record import RunRecord
from prunus.runs.spec import HEX, run_id
from prunus.runs.store import Store


@dataclass(frozen=True)
class SweepStatus:
    """How far the runs are that commands requested of a store."""

    finished: tuple[str, ...]
    running: Mapping[str, tuple[int, int] | None]
    """The steps that are done and all steps, by ID; None for a run that has not reported them yet."""
    failed: tuple[str, ...]
    """The runs that failed, and those that depend on one."""
    waiting: tuple[str, ...]
    """The runs that are not started, or were interrupted."""
    paused: bool
    active: bool
    """Whether a command that computes runs of the store has not ended."""
    seconds_left: float | None
    """The estimated time until the running and waiting runs are done, if as many are computed at once as are running
    now; None if it is not known how long runs of one of the kinds take."""


def pause(store: Store) -> None:
    """Let no worker start another run of a store; those that are running are finished.

    Raises:
        StoreError: The file cannot be written.
    """
    write_file(store.path / "paused", b"")


def resume(store: Store) -> None:
    """Let workers start runs again; nothing changes if the store is not paused.

    Raises:
        StoreError: The file cannot be removed.
    """
    with store_errors(store.path):
        (store.path / "paused").unlink(missing_ok=True)


def is_paused(store: Store) -> bool:
    """Return whether no worker may start a run."""
    return (store.path / "paused").exists()


def are_workers_active(store: Store) -> bool:
    """Return whether a command that starts workers, or computes runs itself, has not ended."""
    return any(is_locked(path) for path in store.locks_path.glob("workers-*.lock"))


def write_sweep(store: Store, planned: Plan) -> None:
    """Write which runs a command is to do, for `sweep_status`; the same command again replaces the file.

    Args:
        store: The store.
        planned: The plan of the command.

    Raises:
        StoreError: The file cannot be written.
    """
    folder = store.path / "sweeps"
    with store_errors(folder):
        folder.mkdir(exist_ok=True)
    hex = hashlib.sha256("\n".join(sorted(planned.requested)).encode()).hexdigest()[:HEX]
    costs = {run_id(spec): spec.cost() for spec in planned.todo}
    sweep = {"requested": planned.requested, "todo": costs, "dependencies": planned.waiting_on}
    write_json(folder / f"{hex}.json", sweep)


def sweep_status(store: Store) -> SweepStatus:
    """Return how far the runs are that all commands on a store were to do. Nothing is written.

    Args:
        store: The store.

    Returns:
        The IDs of the runs by state, and the time that is left.

    Raises:
        StoreError: A file of the store is damaged, of another version, or cannot be read.
    """
    active = are_workers_active(store)  # first: a command that ends meanwhile has written its last states
    costs: dict[str, tuple[str, float] | None] = {}
    dependencies: dict[str, list[str]] = {}
    for path in sorted((store.path / "sweeps").glob("[!.]*.json")):
        sweep = read_json(path)
        # Not left out: the command that wrote it may still compute runs, and they would be missing in what is reported.
        check_version(sweep, ("requested", "todo", "dependencies"), path)
        try:
            costs |= {id: costs.get(id) for id in sweep["requested"]}
            costs |= {id: (unit, number) for id, (unit, number) in sweep["todo"].items()}
            needed = sweep["dependencies"]
            dependencies |= {id: [*needed[id]] for id in needed if id in costs}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged: it does not list the runs of a command ({error!r}); remove the file."
            ) from error
    runs = store.runs()
    records = {run.id: run for run in runs if run.id in costs}
    states = {id: records[id].state if id in records else "waiting" for id in costs}
    failing = {id for id, state in states.items() if state == "failed"}
    unfinished = {
        id: needed for id, needed in dependencies.items() if states[id] in ("waiting", "interrupted")
    }
    states |= dict.fromkeys(with_dependents(failing, unfinished), "failed")
    finished, running, failed = (
        tuple(id for id, state in states.items() if state == name) for name in ("done", "running", "failed")
    )
    left = tuple(id for id, state in states.items() if state not in ("done", "failed"))
    steps = {id: store.directory(id, unfinished=True).steps() for id in running}
    pace = {**_pace_of_running(records, steps), **seconds_per_unit(runs)}
    work = [_seconds(costs[id], steps.get(id), pace) for id in left]
    known = [seconds for seconds in work if seconds is not None]
    return SweepStatus(
        finished,
        steps,
        failed,
        tuple(id for id in left if id not in steps),
        is_paused(store),
        active,
        sum(known) / max(len(running), 1) if len(known) == len(work) else None,
    )


def _pace_of_running(
    records: Mapping[str, RunRecord], steps: Mapping[str, tuple[int, int] | None]
) -> dict[str, float]:
    """Return the seconds per unit of cost of the runs that are running."""
    pace = {}
    for id, count in steps.items():
        if count is not None and count[0] > 0:
            unit, number = records[id].cost
            pace[unit] = records[id].seconds / (number * count[0] / count[1])
    return pace


def _seconds(
    cost: tuple[str, float] | None, count: tuple[int, int] | None, pace: Mapping[str, float]
) -> float | None:
    """Return the seconds that a run will take from now on; None if its pace is not known."""
    if cost is None or cost[0] not in pace:
        return None
    done, total = count or (0, 1)
    return cost[1] * pace[cost[0]] * (1 - done / total)
