"""Executors compute the runs of a plan. A spec gives the same results whichever executor computes it.

inline: one run after the other, in this process; for debugging, and the reference in tests of the other executors.
processes: worker processes with one thread each, the fastest executor on the CPUs of one machine.
ray: workers on the machines of a Ray cluster, or of a local Ray that is started for them.
slurm: workers in the jobs of a Slurm array.

Every worker takes from the store what is missing, and locks every run before it computes it, so that any number of
workers and commands can share a store. See docs/decisions/0028-workers-take-what-is-missing.md.
"""

import os
from collections.abc import Sequence

from prunus.errors import StoreError, WorkerError
from prunus.registry import lookup
from prunus.runs.executors.process_pool import check_main_guard, processes
from prunus.runs.executors.ray_cluster import on_ray
from prunus.runs.executors.run_task import LogFn, SingleThread
from prunus.runs.executors.scheduler import RunScheduler, RunsProgress
from prunus.runs.executors.slurm import WORKERS, on_slurm
from prunus.runs.executors.worker import Errors, Executor, MissingRuns, compute, starting_workers
from prunus.runs.plan import Plan, plan, seconds_per_unit
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.runs.sweeps import is_paused, write_sweep
from prunus.types import Progress

__all__ = ["EXECUTORS", "inline", "run_plan"]


def inline(work: MissingRuns, workers: int | None, scheduler: RunScheduler) -> Errors:
    """Compute the runs one after the other in this process.

    Args:
        work: The runs, and their store.
        workers: Not used.
        scheduler: Gives the runs, and is told of those that failed.

    Returns:
        What the runs that failed raised.
    """
    return compute(work, scheduler, scheduler.progress.step)


EXECUTORS: dict[str, Executor] = {"inline": inline, "processes": processes, "ray": on_ray, "slurm": on_slurm}


def run_plan(
    specs: Sequence[RunSpec],
    store: Store,
    *,
    executor: str | Executor = "processes",
    workers: int | None = 2,
    log: LogFn = lambda line: None,
    progress: Progress | None = None,
) -> Plan:
    """Compute the runs of `specs`, and their dependencies, that `store` does not have.

    A run that fails does not stop the others, and a worker that is lost is replaced. Worker processes import the main
    script, so that a script must call this under `if __name__ == "__main__":`.

    Args:
        specs: The runs.
        store: Where they are stored. Workers on other machines must find it under the same path.
        executor: A key of EXECUTORS, or an executor, such as `functools.partial(on_ray, address="10.0.0.1:6379")`.
        workers: How many workers to use, at least 1; `inline` uses none. None: as many as the executor takes by itself.
        log: Called with one line about the plan, and one about each run that is finished or failed.
        progress: Called with the estimated work in milliseconds, done and in total.

    Returns:
        The plan that was carried out.

    Raises:
        StoreError: The store is paused.
        WorkerError: `workers` is below 1, no worker can be started, workers are lost too often, or the main script has
            no main guard.
        Exception: What the first run that failed raised, with how many failed, after all others are done.
    """
    check_main_guard()
    if workers is not None and workers < 1:
        raise WorkerError(f"Expected at least 1 worker, got {workers}.")
    if progress is not None:
        progress("estimating how long the runs take", 0, 0)
    name, execute = _executor(executor)
    planned = plan(specs, store)
    if planned.todo and is_paused(store):
        raise StoreError(f"The store {store.path} is paused; continue with `prunus runs resume`.")
    known = _measure_pace(planned.todo, store)
    for line in planned.lines(known, _num_workers(name, workers, len(planned.todo))):
        log(line)
    if not planned.todo:
        return planned
    costs = {run_id(spec): spec.cost() for spec in planned.todo}
    seconds = {id: number * known.get(unit, 1.0) for id, (unit, number) in costs.items()}
    attempts = _attempts(store, [*costs])
    scheduler = RunScheduler(planned.todo, store, attempts, progress=RunsProgress(seconds, progress), log=log)
    if progress is not None:
        progress("starting workers", 0, 0)
    with starting_workers(store) as lock:
        write_sweep(store, planned)
        work = MissingRuns(planned.todo, store.path.resolve(), name, attempts, lock)
        errors = execute(work, workers, scheduler)
    scheduler.update()
    for id, error in errors.items():
        scheduler.fail(id, error)
    scheduler.errors |= {id: error for id, error in errors.items() if id in scheduler.errors}
    scheduler.raise_first_error()
    if scheduler.waiting:
        raise WorkerError(
            f"{len(scheduler.waiting)} of {scheduler.total} runs are not done, because their workers were lost; what "
            "is done is kept: run the same command again."
        )
    return planned


def _executor(executor: str | Executor) -> tuple[str, Executor]:
    """Return the name of an executor, which is recorded with its runs, and its function."""
    if isinstance(executor, str):
        return executor, lookup("executor", EXECUTORS, executor)
    function = getattr(executor, "func", executor)  # of a partial
    return next((name for name, each in EXECUTORS.items() if each is function), function.__name__), executor


def _num_workers(name: str, workers: int | None, num_runs: int) -> int | None:
    """Return how many workers an executor uses; None if it is not known before it starts, as with Ray."""
    if name == "inline":
        return 1
    defaults = {"processes": os.cpu_count() or 1, "slurm": WORKERS}
    if workers is None and name in defaults:
        return min(defaults[name], num_runs)
    return workers


def _attempts(store: Store, ids: Sequence[str]) -> dict[str, int]:
    """Return how many attempts at each run were made so far."""
    known = set(store.ids())
    directories = [store.directory(id, unfinished=True) for id in ids if id in known]
    return {each.id: each.record().attempts for each in directories if each.has_record()}


def _measure_pace(todo: Sequence[RunSpec], store: Store) -> dict[str, float]:
    """Return the seconds per unit of cost: those of earlier runs, else what the spec measures now, if it can."""
    known = seconds_per_unit(store.runs())
    with SingleThread():
        for spec in todo:
            unit, _ = spec.cost()
            pace = getattr(spec, "pace", None)
            if unit not in known and pace is not None:
                known[unit] = pace()
    return known
