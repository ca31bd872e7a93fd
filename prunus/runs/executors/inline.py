"""Inline: one run after the other, in this process.

The engine to debug with, and the one the others are compared with.
"""

from collections.abc import Sequence

from prunus.runs.executors.run_task import ExecutableSpec, Say, SingleThread, run_to_completion
from prunus.runs.executors.scheduler import RunScheduler
from prunus.runs.progress import RunsProgress
from prunus.runs.store import Store


def inline(
    todo: Sequence[ExecutableSpec],
    store: Store,
    *,
    workers: int = 1,
    say: Say,
    progress: RunsProgress | None = None,
) -> None:
    """Do `todo`, needs first. `workers` is not used. Raises at the end, where runs failed, what the first raised."""
    queue = RunScheduler(todo, store, progress)
    with SingleThread():
        while (spec := queue.next()) is not None:
            try:
                here = run_to_completion(spec, store, "inline", queue.progress.step)
            except Exception as error:  # a user's own function may fail in any way at all
                say(queue.failed(spec, error))
                continue
            if here:
                say(queue.finished(spec))
            else:
                queue.elsewhere(spec)
    queue.end()
