"""Processes: persistent spawned workers, one a core, one thread each: the fast way on CPU.

The bits are those of `inline`.
"""

from collections.abc import Sequence
from pathlib import Path

from prunus.nouns import Progress
from prunus.runs.engines.pool import Outcome, sent, share_out
from prunus.runs.engines.queue import Queue
from prunus.runs.engines.work import Procedure, Say, carry_out
from prunus.runs.progress import RunsProgress
from prunus.runs.store import Store


def processes(
    todo: Sequence[Procedure],
    store: Store,
    *,
    workers: int = 2,
    say: Say,
    progress: RunsProgress | None = None,
) -> None:
    """Do `todo` in `workers` processes, needs first. Raises at the end, where runs failed, what the first raised."""
    share_out(Queue(todo, store, progress), one, workers, say)


def one(spec: Procedure, path: Path, progress: Progress | None = None) -> Outcome:
    """In a worker: do one run."""
    try:
        return spec, carry_out(spec, Store(path), "processes", progress), None
    except Exception as error:  # a user's own function may fail in any way at all
        return spec, False, sent(error)
