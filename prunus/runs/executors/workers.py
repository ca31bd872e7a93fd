"""Worker processes that stay alive from one task to the next, because importing torch takes seconds.

Workers are spawned, use one thread each and have a pipe of their own to the parent, so that one that dies blocks no
other. They ignore Ctrl-C; the parent ends them when it ends, for any reason, and a worker whose parent has ended exits.
What a worker had not finished is in the store, to be resumed.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType

import torch

from prunus.errors import WorkerError
from prunus.runs.executors.run_task import Say, describe_error
from prunus.runs.executors.scheduler import WAIT_SECONDS, Outcome, RunScheduler, is_user_facing
from prunus.runs.spec import RunSpec
from prunus.types import Progress

Task = Callable[[RunSpec, Path, Progress], Outcome]
"""Computes a run of the store at a path. It must be a function of a module, so that it can be sent to a process."""

REPORT_SECONDS = 0.5
"""A worker reports its progress no more often than this."""
EXIT_SECONDS = 5.0
"""How long an idle worker may take to exit before it is killed."""
SIGNAL_SECONDS = 0.2
"""How long after a worker was ended by a signal the same signal may take to reach this process."""

UNGUARDED = (
    "The worker processes could not start: each of them imports the main script, which must start its work under "
    '`if __name__ == "__main__":` and must be a file; add that guard, or use the executor "inline".'
)


def check_main_guard() -> None:
    """End a worker process in which the main script, without a main guard, is about to start the work again.

    A spawned process imports the main script before it does anything else. The parent learns from the exit of the
    process that the guard is missing, and raises the error that says so.
    """
    # The test that `multiprocessing` itself makes before it starts a process.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)


def dispatch(scheduler: RunScheduler, task: Task, workers: int, say: Say) -> None:
    """Give the runs that can start to `workers` processes until none is left.

    Args:
        scheduler: The runs to compute, with their store and their progress.
        task: Computes one run in a worker process.
        workers: The largest number of processes, at least 1.
        say: Called with a line about each run that is finished or failed.

    Raises:
        WorkerError: A worker cannot start, or was killed.
        Exception: What the first run that failed raised.
    """
    with _Pool(workers) as pool:
        while scheduler.waiting:
            for spec in scheduler.ready()[: pool.num_free]:
                scheduler.start(spec)
                pool.submit(task, spec, scheduler.store.path)
            if not pool.is_busy:
                if scheduler.next() is None:
                    break
                continue
            for message in pool.messages(timeout=10 * WAIT_SECONDS):
                if isinstance(message, _Step):
                    scheduler.progress.step(message.id, message.done, message.total)
                else:
                    scheduler.record(message, say)
    scheduler.raise_first_error()


@dataclass(frozen=True)
class _Step:
    """The progress of a run, as a worker reports it."""

    id: str
    done: int
    total: int


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    is_ready: bool = False
    spec: RunSpec | None = None
    """The run that it works on; None while it is idle."""


class _Pool:
    """At most `size` worker processes, started when they are needed; none runs after the block."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.workers: list[_Worker] = []

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: TracebackType | BaseException | None) -> None:
        if kind is None:
            for worker in self.workers:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
            deadline = time.monotonic() + EXIT_SECONDS
            for worker in self.workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()

    @property
    def num_free(self) -> int:
        """The number of tasks that can be submitted."""
        return self.size - sum(worker.spec is not None for worker in self.workers)

    @property
    def is_busy(self) -> bool:
        """Whether any worker has a task."""
        return any(worker.spec is not None for worker in self.workers)

    def submit(self, task: Task, spec: RunSpec, path: Path) -> None:
        """Send a task to an idle worker, or to a new one."""
        worker = next((worker for worker in self.workers if worker.spec is None), None) or self._start()
        worker.spec = spec
        with contextlib.suppress(OSError):  # it is dead: `messages` raises
            worker.connection.send((task, spec, path))

    def messages(self, timeout: float) -> list[_Step | Outcome]:
        """Wait at most `timeout` seconds for messages of the workers. Raises WorkerError if one has died."""
        messages: list[_Step | Outcome] = []
        for connection in wait([worker.connection for worker in self.workers], timeout):
            worker = next(worker for worker in self.workers if worker.connection is connection)
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                raise self._death(worker) from None
            worker.is_ready = True
            if isinstance(message, Exception) and worker.spec is not None:
                message = (worker.spec, False, message)
            if isinstance(message, tuple):
                worker.spec = None
            if message is not None:
                messages.append(message)
        return messages

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,))
        if (
            sys.platform != "win32"
        ):  # the start of the tracker unblocks SIGINT, so it comes before it is blocked
            resource_tracker.ensure_running()
        with _signals_deferred():
            process.start()
            self.workers.append(worker := _Worker(process, ours))
        theirs.close()
        return worker

    def _death(self, worker: _Worker) -> WorkerError:
        """Return the error that names the reason why a worker is dead."""
        worker.process.join()
        code = worker.process.exitcode or 0
        if code < 0:
            # If the signal was sent to the whole process group, this process is about to receive it too, and its own
            # handler reports it.
            time.sleep(SIGNAL_SECONDS)
            why = ", perhaps because memory ran out" if code == -9 else ""
            return WorkerError(
                f"A worker was killed by signal {-code}{why}; what is done is kept: run the same command again."
            )
        if not worker.is_ready:
            return WorkerError(UNGUARDED)
        return WorkerError(
            f"A worker exited with code {code}; what is done is kept: run the same command again, with the executor "
            '"inline" to see why.'
        )


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


def _work(connection: Connection) -> None:
    """Run a worker process: report that it is ready, then do one task after another until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr  # what a user's own function prints is not a result
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    last = 0.0

    def report(id: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            connection.send(_Step(id, done, total))

    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        connection.send(None)
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                raise
            except Exception as error:  # a type that this process cannot import
                connection.send(to_picklable_error(error))
                continue
            if message is None:
                return
            task, spec, path = message
            connection.send(task(spec, path, report))


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
