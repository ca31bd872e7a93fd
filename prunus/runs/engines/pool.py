"""A pool of spawned workers, one thread each, that stay alive from task to task: importing torch takes seconds."""

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from prunus.errors import StoreError
from prunus.runs.engines.queue import PATIENCE, Queue, foreseen
from prunus.runs.engines.work import Procedure, Say, words

Outcome = tuple[Procedure, bool, Exception | None]
"""A run, whether it was done here, and why not where it failed."""

WORKER = "In its worker:"

Task = Callable[[Sequence[Procedure], Path], list[Outcome]]
"""Do some runs together on the store at a path; a module's own function, so that a process can be handed it."""


def share_out(
    queue: Queue,
    task: Task,
    group: Callable[[list[Procedure]], list[list[Procedure]]],
    workers: int,
    say: Say,
) -> None:
    """Hand groups of the runs that can start to `workers` processes until nothing is left."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_settle) as pool:
        going: dict[Future[list[Outcome]], list[Procedure]] = {}
        try:
            while queue.left:
                for specs in group(queue.ready())[: workers - len(going)]:
                    for spec in specs:
                        queue.start(spec)
                    going[pool.submit(task, specs, queue.store.path)] = specs
                if not going:
                    if queue.next() is None:
                        break
                    continue
                for future in wait(going, return_when=FIRST_COMPLETED, timeout=10 * PATIENCE).done:
                    del going[future]
                    _note(queue, future.result(), say)
        except BrokenProcessPool as error:
            raise StoreError(
                "A worker was killed, perhaps for want of memory; what is done is kept: run the same command again."
            ) from error
    queue.end()


def sent(error: Exception) -> Exception:
    """In a worker: `error` as it can go to the parent, which would see neither its traceback nor its cause."""
    notes = getattr(error, "__notes__", [])
    if not foreseen(error) and not any(note.startswith(WORKER) for note in notes):  # a stack shares an error
        error.add_note(f"{WORKER}\n{''.join(traceback.format_exception(error))}")
    try:
        back = pickle.loads(pickle.dumps(error))
    except Exception:  # of a type whose errors can be made in one place only
        back = None
    if type(back) is type(error) and str(back) == str(error):
        return error
    other = RuntimeError(words(error))
    other.__notes__ = getattr(error, "__notes__", [])
    return other


def _settle() -> None:
    """In a worker, at first: one thread, and an end of it when the parent dies, who cannot say so any more."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _note(queue: Queue, outcomes: list[Outcome], say: Say) -> None:
    for spec, here, error in outcomes:
        if error is not None:
            say(queue.failed(spec, error))
        elif here:
            say(queue.finished(spec))
        else:
            queue.elsewhere(spec)
