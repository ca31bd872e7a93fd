"""Which of the runs of a plan can start: those whose dependencies are done, here or by another process.

Also the progress of the runs together: how many are finished, and the estimated work that is done of all.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from prunus.errors import PrunusError, StoreError
from prunus.runs.executors.run_task import Say, describe_error
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.types import Progress

Outcome = tuple[RunSpec, bool, Exception | None]
"""A run, whether it was done here, and the error if it failed."""

WAIT_SECONDS = 0.5
"""How long to wait before looking again at a run that another process works on."""


class RunsProgress:
    """Add up the progress of runs, each weighted by the seconds that it is estimated to take.

    >>> progress = RunsProgress({"a": 1.0, "b": 3.0}, print)
    >>> progress.step("b", 50, 100)
    0 of 2 runs finished, b at step 50 of 100 1500 4000
    >>> progress.finish("b")
    1 of 2 runs finished 3000 4000
    """

    def __init__(self, seconds: Mapping[str, float], report: Progress | None) -> None:
        """Take the estimated seconds of each run by its identity; `report` is called with the work in milliseconds."""
        self.seconds = dict(seconds)
        self.report = report
        self.fractions = dict.fromkeys(seconds, 0.0)
        self.done, self.total = 0.0, sum(seconds.values())
        """Seconds of work that are done, and of all work; updated at every step."""
        self.num_finished = 0

    def step(self, id: str, done: int, total: int) -> None:
        """Report that `done` of the `total` steps of a run are done.

        Args:
            id: The ID of the run; one that is not among these runs, or was dropped, is ignored.
            done: The number of steps done.
            total: The number of all steps of the run.
        """
        if id in self.fractions:
            self._set(id, min(done / max(total, 1), 1.0))
            self._report(f", {id} at step {done} of {total}")

    def finish(self, id: str) -> None:
        """Report that a run is finished."""
        if id in self.fractions:
            self._set(id, 1.0)
            self.num_finished += 1
            self._report("")

    def drop(self, ids: Iterable[str]) -> None:
        """Leave out the work of runs that will not be done, because they or their dependencies failed."""
        for id in ids:
            if id in self.fractions:
                self._set(id, 0.0)
                self.total -= self.seconds[id]
                del self.fractions[id]

    def _set(self, id: str, fraction: float) -> None:
        self.done += (fraction - self.fractions[id]) * self.seconds[id]
        self.fractions[id] = fraction

    def _report(self, detail: str) -> None:
        if self.report is None:
            return
        text = f"{self.num_finished} of {len(self.seconds)} runs finished{detail}"
        self.report(text, round(1000 * self.done), round(1000 * self.total))


class RunScheduler:
    """The runs of a plan that are to do, dependencies first."""

    def __init__(self, todo: Sequence[RunSpec], store: Store, progress: RunsProgress | None = None) -> None:
        self.store = store
        self.progress = progress or RunsProgress({}, None)
        self.waiting = {run_id(spec): spec for spec in todo}
        """The runs that are not done, those that workers have among them."""
        self.dependencies = {
            id: [run_id(other) for other in spec.dependencies().values()] for id, spec in self.waiting.items()
        }
        self.total = len(self.waiting)
        self.running: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self._locked_elsewhere: set[str] = set()

    def ready(self) -> list[RunSpec]:
        """Return the runs that can start now, in order."""
        self._update()
        free = self.waiting.keys() - self.running - self._locked_elsewhere
        return [
            spec
            for id, spec in self.waiting.items()
            if id in free and all(self.store.is_done(other) for other in self.dependencies[id])
        ]

    def next(self) -> RunSpec | None:
        """Return the first run that can start, after waiting for other processes if need be; None at the end."""
        while self.waiting:
            ready = self.ready()
            if ready:
                return ready[0]
            if self.running:
                return None
            time.sleep(WAIT_SECONDS)
            self._locked_elsewhere.clear()
        return None

    def start(self, spec: RunSpec) -> None:
        """Note that a worker has a run."""
        self.running.add(run_id(spec))

    def record(self, outcome: Outcome, say: Say) -> None:
        """Note what came of a run, and report it in a line.

        Args:
            outcome: The run, whether it was done here, and the error if it failed. A run that was neither done nor
                failed is one that another process works on.
            say: Called with the line; not for a run that another process works on.
        """
        spec, is_done, error = outcome
        id = run_id(spec)
        self.running.discard(id)
        if error is not None:
            say(self._fail(id, error))
        elif is_done:
            self._finish(id)
            say(f"{self.total - len(self.waiting)} of {self.total}: {id}")
        else:
            self._locked_elsewhere.add(id)

    def raise_first_error(self) -> None:
        """Raise the first error, with the number of errors, and from it if its traceback tells more."""
        if self.errors:
            id, error = next(iter(self.errors.items()))
            prefix = f"{len(self.errors)} of {self.total} runs failed; the first, {id}: "
            raise _with_prefix(error, prefix) from (None if is_user_facing(error) else error)

    def _finish(self, id: str) -> None:
        self.waiting.pop(id, None)
        self.progress.finish(id)

    def _fail(self, id: str, error: Exception) -> str:
        """Drop a run, and the runs that depend on it; return a line about it."""
        self.errors[id] = error
        lost = {id}
        while more := {other for other in self.waiting if lost & set(self.dependencies[other])} - lost:
            lost |= more
        for other in lost:
            self.waiting.pop(other, None)
        self.progress.drop(lost)
        return f"failed: {id}: {describe_error(error)}" + (
            f" ({len(lost) - 1} more depend on it)" if len(lost) > 1 else ""
        )

    def _update(self) -> None:
        """Note the runs that other processes have finished, and drop those whose dependency was removed."""
        for id in list(self._locked_elsewhere):
            if self.store.is_done(id):
                self._locked_elsewhere.discard(id)
                self._finish(id)
        for id in list(self.waiting.keys() - self.running):
            gone = [
                other
                for other in self.dependencies[id]
                if other not in self.waiting and not self.store.is_done(other)
            ]
            if gone and id in self.waiting:
                self._fail(
                    id, StoreError(f"The run {gone[0]}, which it depends on, is gone; run the command again.")
                )


def is_user_facing(error: Exception) -> bool:
    """Return whether the message says all: an error of prunus with no cause, that no other process raised."""
    return isinstance(error, PrunusError) and error.__cause__ is None and not hasattr(error, "__notes__")


def _with_prefix(error: Exception, prefix: str) -> Exception:
    """Return an error of the same type with words before its message; if its type cannot have that, a RuntimeError."""
    text = f"{prefix}{error}"
    try:
        copy = type(error)(text)
    except Exception:
        copy = None
    return (
        copy if copy is not None and str(copy) == text else RuntimeError(f"{prefix}{describe_error(error)}")
    )
