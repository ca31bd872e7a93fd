"""Carry out a plan: say what is missing and how long it will take, then do that and nothing else."""

from collections.abc import Sequence
from typing import cast

from prunus.nouns import Progress
from prunus.runs.engines import ENGINES
from prunus.runs.engines.pool import check_main_guard
from prunus.runs.engines.work import OneThread, Procedure, Say
from prunus.runs.plan import Plan, paces, plan
from prunus.runs.progress import RunsProgress
from prunus.runs.spec import identity
from prunus.runs.store import Store
from prunus.tables import look_up


def execute(
    specs: Sequence[Procedure],
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
    carry = look_up("engine", ENGINES, engine)
    found = plan(specs, store)
    todo = cast("Sequence[Procedure]", found.todo)
    known = _paces(todo, store)
    for line in found.lines(known, 1 if engine == "inline" else workers):
        say(line)
    if todo:
        seconds = {identity(spec): spec.cost()[1] * known[spec.cost()[0]] for spec in todo}
        carry(todo, store, workers=workers, say=say, progress=RunsProgress(seconds, progress))
    return found


def _paces(todo: Sequence[Procedure], store: Store) -> dict[str, float]:
    """Seconds a unit: as earlier runs took; for a network that has none, as a few steps take now."""
    known = paces(store)
    with OneThread():
        for spec in todo:
            unit, _ = spec.cost()
            if unit not in known:
                known[unit] = spec.pace()
    return known
