"""Which runs of a plan are missing, which of them can start, and how far they are, as the store tells.

Every worker has a scheduler of its own, and so has the process that started the workers, for the progress of all. They
share nothing but the store: a run is done, failed or running because its record and its lock say so.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from prunus.errors import PrunusError, StoreError, WorkerError
from prunus.runs.executors.run_task import LogFn, describe_error
from prunus.runs.plan import with_dependents
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.runs.sweeps import is_paused
from prunus.types import Progress

WAIT_SECONDS = 0.5
"""How long to wait before looking again at runs that other processes work on."""
MAX_LOST_WORKERS_PER_RUN = 5
"""If this many workers in a row end while they compute a run, and none of them kept anything new, it is reported as
failed: its use of memory may be the reason. A long run that continues from a checkpoint in many jobs is not."""


class RunsProgress:
    """Add up the progress of runs, each weighted by the seconds that it is estimated to take.

    >>> progress = RunsProgress({"a": 1.0, "b": 3.0}, print)
    >>> progress.step("b", 50, 100)
    0 of 2 runs finished, b at step 50 of 100 1500 4000
    >>> progress.finish("b")
    1 of 2 runs finished 3000 4000
    """

    def __init__(self, seconds: Mapping[str, float], report: Progress | None) -> None:
        """Take the estimated seconds of each run by its ID; `report` is called with the work in milliseconds."""
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

    def start(self, id: str) -> None:
        """Report that a run is being computed, of which no step is known."""
        if id in self.fractions:
            self._report(f", {id} is running")

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
    """The runs of a plan that are not done, dependencies first."""

    def __init__(
        self,
        todo: Sequence[RunSpec],
        store: Store,
        attempts: Mapping[str, int] | None = None,
        *,
        progress: RunsProgress | None = None,
        log: LogFn = lambda line: None,
        waits_for_others: bool = True,
    ) -> None:
        """Take the runs to do.

        Args:
            todo: The runs, dependencies first.
            store: Where they are stored.
            attempts: How many attempts at each run were made before; none by default.
            progress: Told of the steps of running runs and of finished ones.
            log: Called with a line about each run that is finished or failed.
            waits_for_others: Whether `next` waits until all runs are done. If not, it returns None as soon as every run
                that is left is being computed by another process.
        """
        self.store, self.log, self.waits_for_others = store, log, waits_for_others
        self.progress = progress or RunsProgress({}, None)
        self.waiting = {run_id(spec): spec for spec in todo}
        """The runs that are not done, those that processes work on among them."""
        self.dependencies = {
            id: [run_id(other) for other in spec.dependencies().values()] for id, spec in self.waiting.items()
        }
        self.attempts = {id: (attempts or {}).get(id, 0) for id in self.waiting}
        self.total = len(self.waiting)
        self.running: set[str] = set()
        self.is_paused = False
        """Whether the store was paused at the last update."""
        self.errors: dict[str, Exception] = {}
        self.kept_digests: dict[str, str] = {}
        """The digest of what the last attempt at each run began with; it changes when attempts make progress."""

    def next(self) -> RunSpec | None:
        """Return the first run that can start, after waiting for other processes if need be; None at the end.

        While the store is paused, no run can start.
        """
        while self.waiting:
            self.update()
            if not self.is_paused:
                for id, spec in list(self.waiting.items()):
                    if id in self.waiting and self._can_start(id):
                        return spec
                if not self.waits_for_others and self.running >= self.waiting.keys():
                    return None
            if self.waiting:
                time.sleep(WAIT_SECONDS)
        return None

    def update(self) -> None:
        """Note which runs are done, failed, or computed by a process now.

        Raises:
            StoreError: The store cannot be read.
        """
        self.running.clear()
        was_paused, self.is_paused = self.is_paused, is_paused(self.store)
        if self.is_paused and not was_paused:
            self.log("paused: no run is started before `prunus runs resume`")
        for id in [id for id in self.store.ids() if id in self.waiting]:
            try:
                self._update(id)
            except StoreError as error:
                self.fail(id, error)

    def finish(self, id: str) -> None:
        """Note and report that a run is done."""
        if self.waiting.pop(id, None) is not None:
            self.progress.finish(id)
            self.log(f"{self.total - len(self.waiting)} of {self.total}: {id}")

    def fail(self, id: str, error: Exception) -> None:
        """Note and report that a run failed, and drop the runs that depend on it.

        Args:
            id: The ID of the run; one that is not waiting is ignored.
            error: Why it failed.
        """
        if id not in self.waiting:
            return
        self.errors[id] = error
        lost = with_dependents([id], {other: self.dependencies[other] for other in self.waiting})
        for other in lost:
            del self.waiting[other]
        self.progress.drop(lost)
        more_lost = f" ({len(lost) - 1} more depend on it)" if len(lost) > 1 else ""
        self.log(f"failed: {id}: {describe_error(error)}{more_lost}")

    def raise_first_error(self) -> None:
        """Raise the first error, with the number of errors, and from it if its traceback tells more."""
        if self.errors:
            id, error = next(iter(self.errors.items()))
            prefix = f"{len(self.errors)} of {self.total} runs failed; the first, {id}: "
            raise _with_prefix(error, prefix) from (None if is_user_facing(error) else error)

    def _can_start(self, id: str) -> bool:
        if id in self.running or any(other in self.waiting for other in self.dependencies[id]):
            return False
        for other in self.dependencies[id]:
            if not self.store.is_done(other):
                error = StoreError(f"The run {other}, which it depends on, is gone; run the command again.")
                self.fail(id, error)
                return False
        return not self.store.is_locked(id)

    def _update(self, id: str) -> None:
        directory = self.store.directory(id, unfinished=True)
        if not directory.has_record():
            return
        record = directory.record()
        attempts = record.attempts - self.attempts[id]
        self.kept_digests[id] = record.kept
        if record.state == "done":
            self.finish(id)
        elif record.state == "failed" and attempts > 0:
            self.fail(id, WorkerError(record.error or "no reason is recorded"))
        elif record.state == "running" and self.store.is_locked(id):
            self.running.add(id)
            if steps := directory.steps():
                self.progress.step(id, *steps)
            else:
                self.progress.start(id)
        elif (
            (lost := min(attempts, record.stalled + 1)) >= MAX_LOST_WORKERS_PER_RUN
            and directory.kept_digest() == record.kept
            # Read again: the process that held the lock may have ended the run between the two looks.
            and directory.record() == record
        ):
            error = WorkerError(
                f"{lost} workers in a row ended while they computed it and made no progress, perhaps because memory "
                "ran out; what is done is kept: run the same command again with fewer workers."
            )
            self.fail(id, error)


def is_user_facing(error: Exception) -> bool:
    """Return whether the message says all: an error of prunus with no cause, that no other process raised."""
    return isinstance(error, PrunusError) and error.__cause__ is None and not hasattr(error, "__notes__")


def _with_prefix(error: Exception, prefix: str) -> Exception:
    """Return an error of the same type with words before its message; if its type cannot have that, a RuntimeError."""
    text = f"{prefix}{error}"
    with suppress(Exception):
        copy = type(error)(text)
        if str(copy) == text:
            return copy
    return RuntimeError(f"{prefix}{describe_error(error)}")
