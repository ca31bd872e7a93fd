"""What every worker does, whatever started it: take from the store what is missing, until nothing is.

Workers on different machines share only the folder of the store. The system, or the server of a network file system,
releases the locks of one that is lost, and another takes over its run, so that no clock of another machine counts.
"""

import os
import pickle
import secrets
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunus.errors import StoreError
from prunus.runs.executors.run_task import SingleThread, describe_error, run_to_completion
from prunus.runs.executors.scheduler import RunScheduler, is_user_facing
from prunus.runs.locking import acquire, is_locked
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.types import Progress
from prunus.version import __version__

Errors = dict[str, Exception]
"""What the runs that failed raised, by ID."""
MAX_RESTARTS = 10
"""How often, at most, each worker is started again after it was lost; see `on_slurm` for jobs."""


def versions() -> dict[str, str]:
    """Return the versions that all workers of a sweep must share to give the same bits."""
    return {"prunus": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class MissingRuns:
    """What the workers of one command do; it is sent to each of them."""

    todo: tuple[RunSpec, ...]
    """The runs that were missing when the command started, dependencies first."""
    store: Path
    executor: str
    attempts: Mapping[str, int]
    """How many attempts at each run had been made before."""
    lock: str = ""
    """The name of a file in the folder of locks, which the process that started the workers holds."""
    folder: Path = field(default_factory=Path.cwd)
    """The current folder, from which modules of the user are imported."""
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def num_gpus(self) -> int:
        """The number of GPUs that a worker needs: 1 if any of the runs computes on one."""
        return int(any(getattr(spec, "device", "cpu").startswith("cuda") for spec in self.todo))


Executor = Callable[[MissingRuns, int | None, RunScheduler], Errors]
"""Starts workers that do some work, and updates the scheduler until they have ended; see `EXECUTORS`."""


@contextmanager
def starting_workers(store: Store) -> Iterator[str]:
    """Hold a lock in the block, so that workers can tell whether this store is theirs, and whether its locks work."""
    name = f"workers-{secrets.token_hex(8)}.lock"
    lock = acquire(store.locks_path / name)
    try:
        yield name
    finally:
        if lock is not None:
            lock.release()
        with suppress(OSError):
            (store.locks_path / name).unlink(missing_ok=True)


def do_missing_runs(work: MissingRuns, number: int = 0, workers: int = 1) -> Errors:
    """Compute, in this process, the runs that the store lacks and no other process works on.

    Args:
        work: The runs, and their store.
        number: Which of the workers this is, from 0. Each begins at another part of the list, so that two of them
            rarely try to lock the same run. The first waits until all is done; the others end when nothing is left to
            start.
        workers: How many workers there are.

    Returns:
        What the runs that failed here raised, in a form that can be sent to another process.
    """
    try:
        _check_machine(work)
        with suppress(OSError):  # without that folder, runs that need no module of the user can be done
            os.chdir(work.folder)
        first = number * len(work.todo) // workers
        todo = (*work.todo[first:], *work.todo[:first])
        store = Store(work.store, create=False)
        scheduler = RunScheduler(todo, store, work.attempts, waits_for_others=number == 0)
        errors = compute(work, scheduler)
    except StoreError as error:  # nothing can be done here
        errors = {run_id(spec): error for spec in work.todo}
    return {id: to_picklable_error(error) for id, error in errors.items()}


def compute(work: MissingRuns, scheduler: RunScheduler, progress: Progress | None = None) -> Errors:
    """Compute runs one after the other, in one thread, until the scheduler has no more.

    Args:
        work: Names the executor, which is recorded.
        scheduler: Gives the runs, and is told of those that failed.
        progress: Called with the training steps of all trainings of the run, done and in total.

    Returns:
        What the runs that failed here raised; not those that failed in another process.
    """
    errors: Errors = {}
    with SingleThread():
        while (spec := scheduler.next()) is not None:
            try:
                attempts = scheduler.attempts[run_id(spec)]
                if run_to_completion(spec, scheduler.store, work.executor, progress, attempts=attempts):
                    scheduler.finish(run_id(spec))
            except Exception as error:  # a user's own function may fail in any way
                errors[run_id(spec)] = error
                scheduler.fail(run_id(spec), error)
    return errors


def _check_machine(work: MissingRuns) -> None:
    """Raise StoreError unless this machine has the store, its locks, and the versions of the one that sent the work."""
    if (installed := versions()) != work.versions:
        both = (work.versions, installed)
        expected, got = (", ".join(f"{name} {value}" for name, value in each.items()) for each in both)
        raise StoreError(
            f"Expected {expected} on the machine of a worker, got {got}; install the same versions."
        )
    if work.lock and not is_locked(work.store / "locks" / work.lock):
        raise StoreError(
            f"The store {work.store} is not shared with the machine of a worker, its file system does not share locks "
            "between machines, or the command that started the worker has ended; name a folder on a file system that "
            "all machines share."
        )


def to_picklable_error(error: Exception) -> Exception:
    """Return an error of a worker as it can be sent to the parent, with its traceback and cause in a note."""
    if not is_user_facing(error):
        error.add_note(f"In its worker:\n{''.join(traceback.format_exception(error))}")
    try:
        back = pickle.loads(pickle.dumps(error))
    except Exception:  # of a type that cannot be pickled
        back = None
    if type(back) is type(error) and str(back) == str(error):
        return error
    other = RuntimeError(describe_error(error))
    other.__notes__ = getattr(error, "__notes__", [])
    return other
