"""Executors compute the runs of a plan. A spec gives the same results whichever executor computes it.

inline: one run after the other, in this process: the one to debug with, which the other is compared with.
processes: persistent worker processes with one thread each, the fast way on a CPU.

An executor locks every run before it computes it, so that several executors can share a store.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from prunus.registry import lookup
from prunus.runs.executors.run_task import Say, SingleThread, run_to_completion
from prunus.runs.executors.scheduler import Outcome, RunScheduler, RunsProgress
from prunus.runs.executors.workers import check_main_guard, dispatch, to_picklable_error
from prunus.runs.plan import Plan, plan, seconds_per_unit
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.types import Progress

__all__ = ["EXECUTORS", "inline", "processes", "run_plan"]


def run_plan(
    specs: Sequence[RunSpec],
    store: Store,
    *,
    executor: str = "processes",
    workers: int = 2,
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> Plan:
    """Compute the runs of `specs`, and their dependencies, that `store` does not have.

    A run that fails does not stop the others. Worker processes import the main script, so that a script must call this
    under `if __name__ == "__main__":`.

    Args:
        specs: The runs.
        store: Where they are stored.
        executor: A key of EXECUTORS.
        workers: How many worker processes to use; `inline` uses none.
        say: Called with one line about the plan, and one about each run that is finished or failed.
        progress: Called with the estimated work in milliseconds, done and in total.

    Returns:
        The plan that was carried out.

    Raises:
        WorkerError: A worker process was killed, or the main script has no main guard.
        Exception: What the first run that failed raised, with how many failed, after all others are done.
    """
    check_main_guard()
    if progress is not None:
        progress("estimating how long the runs take", 0, 0)
    execute = lookup("executor", EXECUTORS, executor)
    planned = plan(specs, store)
    known = _measure_pace(planned.todo, store)
    for line in planned.lines(known, 1 if executor == "inline" else workers):
        say(line)
    if planned.todo:
        costs = {run_id(spec): spec.cost() for spec in planned.todo}
        seconds = {id: number * known.get(unit, 1.0) for id, (unit, number) in costs.items()}
        execute(RunScheduler(planned.todo, store, RunsProgress(seconds, progress)), workers, say)
    return planned


def inline(scheduler: RunScheduler, workers: int, say: Say) -> None:
    """Compute the runs one after the other in this process; `workers` is not used.

    Args:
        scheduler: The runs to compute, with their store and their progress.
        workers: Not used.
        say: Called with a line about each run that is finished or failed.

    Raises:
        Exception: What the first run that failed raised, with how many failed, after all others are done.
    """
    with SingleThread():
        while (spec := scheduler.next()) is not None:
            error, is_done = None, False
            try:
                is_done = run_to_completion(spec, scheduler.store, "inline", scheduler.progress.step)
            except Exception as failure:  # a user's own function may fail in any way
                error = failure
            scheduler.record((spec, is_done, error), say)
    scheduler.raise_first_error()


def processes(scheduler: RunScheduler, workers: int, say: Say) -> None:
    """Compute the runs in `workers` processes.

    Args:
        scheduler: The runs to compute, with their store and their progress.
        workers: The largest number of processes, at least 1.
        say: Called with a line about each run that is finished or failed.

    Raises:
        WorkerError: A worker cannot start, or was killed.
        Exception: What the first run that failed raised, with how many failed, after all others are done.
    """
    dispatch(scheduler, run_in_worker, workers, say)


def run_in_worker(spec: RunSpec, path: Path, progress: Progress | None = None) -> Outcome:
    """Compute one run in a worker process.

    Args:
        spec: The run; its dependencies must be done.
        path: The folder of the store.
        progress: Called with the training steps of all trainings of the run, done and in total. None: not reported.

    Returns:
        The run, whether it was done here, and the error if it failed, in a form that can be sent to another process.
    """
    try:
        return spec, run_to_completion(spec, Store(path), "processes", progress), None
    except Exception as error:  # a user's own function may fail in any way
        return spec, False, to_picklable_error(error)


Executor = Callable[[RunScheduler, int, Say], None]

EXECUTORS: dict[str, Executor] = {"inline": inline, "processes": processes}


def _measure_pace(todo: Sequence[RunSpec], store: Store) -> dict[str, float]:
    """Return the seconds per unit of cost: those of earlier runs, else what the spec measures now, if it can."""
    known = seconds_per_unit(store)
    with SingleThread():
        for spec in todo:
            unit, _ = spec.cost()
            pace = getattr(spec, "pace", None)
            if unit not in known and pace is not None:
                known[unit] = pace()
    return known
