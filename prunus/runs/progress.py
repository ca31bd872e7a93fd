"""The progress of several runs together: how many are finished, and the estimated work that is done of all."""

from collections.abc import Iterable, Mapping

from prunus.types import Progress


class RunsProgress:
    """Adds up the progress of runs, each weighted by the seconds that it is estimated to take.

    >>> progress = RunsProgress({"a": 1.0, "b": 3.0}, print)
    >>> progress.step("b", 50, 100)
    0 of 2 runs finished, b at step 50 of 100 1500 4000
    >>> progress.finish("b")
    1 of 2 runs finished 3000 4000
    """

    def __init__(self, seconds: Mapping[str, float], report: Progress | None) -> None:
        """Take the estimated seconds of each run by its identity; `report` is told of the work in milliseconds."""
        self.seconds = dict(seconds)
        self.report = report
        self.fractions = dict.fromkeys(seconds, 0.0)
        self.done, self.total = 0.0, sum(seconds.values())
        """Seconds of work that are done, of all that will be; kept up, because every step asks."""
        self.num_finished = 0

    def step(self, id: str, done: int, total: int) -> None:
        """Report that `done` of the `total` steps of a run are done."""
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
        """Leave out the work of runs that will not be done, because they or their needs failed."""
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
        what = f"{self.num_finished} of {len(self.seconds)} runs finished{detail}"
        self.report(what, round(1000 * self.done), round(1000 * self.total))
