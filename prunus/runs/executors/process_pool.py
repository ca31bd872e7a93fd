"""The executor `processes`: worker processes on this machine.

Workers are spawned, because importing torch takes seconds and a fork of a process with threads may hang. They use one
thread each and ignore Ctrl-C; the parent ends them when it ends, for any reason, and a worker whose parent has ended
exits. What a worker had not finished is in the store, to be resumed by the worker that takes its place.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from prunus.errors import WorkerError
from prunus.runs.executors.run_task import LogFn
from prunus.runs.executors.scheduler import WAIT_SECONDS, RunScheduler
from prunus.runs.executors.worker import (
    MAX_RESTARTS,
    Errors,
    MissingRuns,
    do_missing_runs,
    to_picklable_error,
)

EXIT_SECONDS = 5.0
"""How long a worker that has no work left may take to exit before it is killed."""
SIGNAL_SECONDS = 0.2
"""How long after a worker was ended by a signal the same signal may take to reach this process."""

READY = "ready"

UNGUARDED = (
    "The worker processes could not start: each of them imports the main script, which must start its work under "
    '`if __name__ == "__main__":` and must be a file; add that guard, or use the executor "inline".'
)


def processes(work: MissingRuns, workers: int | None, scheduler: RunScheduler) -> Errors:
    """Do the work in processes on this machine. A worker that is killed is replaced.

    Args:
        work: The runs, and their store.
        workers: The number of processes, at least 1; None for one per core.
        scheduler: Updated until all workers have ended.

    Returns:
        What the runs that failed raised.

    Raises:
        WorkerError: A worker cannot start, or was lost too often.
    """
    pool = _Pool(work, min(workers or os.cpu_count() or 1, len(work.todo)), scheduler.log)
    try:
        for number in range(pool.size):
            pool.start(number)
        while pool.workers:
            pool.wait(WAIT_SECONDS)
            scheduler.update()
    finally:
        pool.end()
    return pool.errors


def check_main_guard() -> None:
    """End a worker process in which the main script, without a main guard, is about to start the work again.

    A spawned process imports the main script before it does anything else. The parent learns from the exit of the
    process that the guard is missing, and raises the error that says so.
    """
    # The test that `multiprocessing` itself makes before it starts a process.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    is_ready: bool = False


class _Pool:
    """The worker processes that have not ended; none runs after `end`."""

    def __init__(self, work: MissingRuns, size: int, log: LogFn) -> None:
        self.work, self.size, self.log = work, size, log
        self.workers: list[_Worker] = []
        self.errors: Errors = {}
        self.lost = 0

    def wait(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for workers to end. Raises WorkerError if one was lost too often."""
        for connection in wait([worker.connection for worker in self.workers], timeout):
            worker = next(worker for worker in self.workers if worker.connection is connection)
            message = None
            with contextlib.suppress(EOFError, OSError):
                message = worker.connection.recv()
            # Not in an except block, whose error would be shown with that of a lost worker.
            if message is None:
                self._replace(worker)
                continue
            worker.is_ready = True
            if isinstance(message, Exception):
                raise message
            if message != READY:
                self.errors |= message
                self._remove(worker, EXIT_SECONDS)

    def end(self) -> None:
        """Kill the workers."""
        for worker in self.workers:
            worker.process.kill()
        for worker in [*self.workers]:
            self._remove(worker)

    def _remove(self, worker: _Worker, seconds: float | None = None) -> None:
        worker.process.join(seconds)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in the place of one that died. Raises WorkerError if that makes no sense."""
        worker.process.join()
        code = worker.process.exitcode or 0
        if code < 0:
            # If the signal was sent to the whole process group, this process is about to receive it too, and its own
            # handler reports it.
            time.sleep(SIGNAL_SECONDS)
            why = f"was killed by signal {-code}{', perhaps because memory ran out' if code == -9 else ''}"
        elif not worker.is_ready:
            raise WorkerError(UNGUARDED)
        else:
            why = f"exited with code {code}"
        self.lost += 1
        if self.lost > MAX_RESTARTS * self.size:
            raise WorkerError(
                f"A worker {why}, the {self.lost}th that was lost; what is done is kept: run the same command again, "
                'with the executor "inline" to see why.'
            )
        self.log(f"a worker {why}; another one takes its place")
        self._remove(worker)
        self.start(worker.number)

    def start(self, number: int) -> None:
        """Start the worker with this number."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,))
        if sys.platform != "win32":  # it unblocks SIGINT, so it is started before that is blocked
            resource_tracker.ensure_running()
        with _signals_deferred():
            process.start()
            self.workers.append(_Worker(number, process, ours))
        theirs.close()
        with contextlib.suppress(OSError):  # it is dead: `wait` finds out
            ours.send((self.work, number, self.size))


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Delay signals that end this process to the end of the block; a process that is started in it ignores SIGINT.

    A process whose start is interrupted would print a traceback of its own.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers: list[int] = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # A handler that was not set by Python cannot be restored, and a signal that is ignored must stay so.
    before = {number: signal.getsignal(number) for number in numbers} if is_main else {}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, note)
    blocks = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
    try:
        yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in received[:1]:
            signal.raise_signal(number)


def _work(connection: Connection) -> None:
    """Run a worker process: report that it is ready, receive the work, do it, and send what failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr  # what a user's own function prints is not a result
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        connection.send(READY)
        try:
            work, number, workers = connection.recv()
        except (EOFError, OSError):
            raise
        except Exception as error:  # a type that this process cannot import
            connection.send(to_picklable_error(error))
            return
        connection.send(do_missing_runs(work, number, workers))


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
