"""Processes: persistent spawned workers, one a core, one thread each: the fast way on CPU.

The bits are those of `inline`.
"""

from collections.abc import Sequence
from pathlib import Path

from prunus.runs.executors.run_task import ExecutableSpec, Say, run_to_completion
from prunus.runs.executors.scheduler import RunScheduler
from prunus.runs.executors.worker_pool import Outcome, dispatch, to_picklable_error
from prunus.runs.progress import RunsProgress
from prunus.runs.store import Store
from prunus.types import Progress


def processes(
    todo: Sequence[ExecutableSpec],
    store: Store,
    *,
    workers: int = 2,
    say: Say,
    progress: RunsProgress | None = None,
) -> None:
    """Do `todo` in `workers` processes, needs first. Raises at the end, where runs failed, what the first raised."""
    dispatch(RunScheduler(todo, store, progress), one, workers, say)


def one(spec: ExecutableSpec, path: Path, progress: Progress | None = None) -> Outcome:
    """In a worker: do one run."""
    try:
        return spec, run_to_completion(spec, Store(path), "processes", progress), None
    except Exception as error:  # a user's own function may fail in any way at all
        return spec, False, to_picklable_error(error)
