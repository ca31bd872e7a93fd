"""Carry out a plan: say what is missing and how long it will take, then do that and nothing else."""

from collections.abc import Sequence
from typing import cast

from prunus.registry import lookup
from prunus.runs.executors import ENGINES
from prunus.runs.executors.run_task import ExecutableSpec, Say, SingleThread
from prunus.runs.executors.worker_pool import check_main_guard
from prunus.runs.plan import Plan, plan, seconds_per_unit
from prunus.runs.progress import RunsProgress
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.types import Progress


def run_plan(
    specs: Sequence[ExecutableSpec],
    store: Store,
    *,
    engine: str = "processes",
    workers: int = 2,
    say: Say,
    progress: Progress | None = None,
) -> Plan:
    """Do the runs of `specs`, and those they need, that `store` does not have.

    A run that fails, be it by a fault in a user's own function, does not stop the others. Raises at the end, where
    runs failed, what the first raised, with how many they are. Worker processes import the main script, so that a
    script must call this under `if __name__ == "__main__":`; raises WorkerError where it does not.

    `progress` is told of the estimated work that is done, in milliseconds.
    """
    check_main_guard()
    if progress is not None:
        progress("estimating how long the runs take", 0, 0)
    carry = lookup("engine", ENGINES, engine)
    found = plan(specs, store)
    todo = cast("Sequence[ExecutableSpec]", found.todo)
    known = _paces(todo, store)
    for line in found.lines(known, 1 if engine == "inline" else workers):
        say(line)
    if todo:
        seconds = {run_id(spec): spec.cost()[1] * known[spec.cost()[0]] for spec in todo}
        carry(todo, store, workers=workers, say=say, progress=RunsProgress(seconds, progress))
    return found


def _paces(todo: Sequence[ExecutableSpec], store: Store) -> dict[str, float]:
    """Seconds a unit: as earlier runs took; for a network that has none, as a few steps take now."""
    known = seconds_per_unit(store)
    with SingleThread():
        for spec in todo:
            unit, _ = spec.cost()
            if unit not in known:
                known[unit] = spec.pace()
    return known
