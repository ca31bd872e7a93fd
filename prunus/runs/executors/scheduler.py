"""Which of the runs to do can start now: those whose needs are done, ours or another process's."""

import time
from collections.abc import Sequence

from prunus.errors import PrunusError, StoreError
from prunus.runs.executors.run_task import ExecutableSpec, describe_error
from prunus.runs.progress import RunsProgress
from prunus.runs.spec import run_id
from prunus.runs.store import Store

PATIENCE = 0.5
"""Seconds between looks at what another process is working on."""


class RunScheduler:
    """The runs of a plan, in order."""

    def __init__(
        self, todo: Sequence[ExecutableSpec], store: Store, progress: RunsProgress | None = None
    ) -> None:
        self.store = store
        self.progress = progress or RunsProgress({}, None)
        self.left = {run_id(spec): spec for spec in todo}
        self.needs = {key: [run_id(need) for need in spec.needs()] for key, spec in self.left.items()}
        self.total = len(self.left)
        self.working: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self._elsewhere: set[str] = set()

    def ready(self) -> list[ExecutableSpec]:
        """Those that can start now, in order."""
        self._look()
        free = self.left.keys() - self.working - self._elsewhere
        return [
            spec
            for key, spec in self.left.items()
            if key in free and all(self.store.done(need) for need in self.needs[key])
        ]

    def next(self) -> ExecutableSpec | None:
        """The first that can start, after waiting for other processes where nothing else is left; None at the end."""
        while self.left:
            ready = self.ready()
            if ready:
                return ready[0]
            if self.working:
                return None
            time.sleep(PATIENCE)
            self._elsewhere.clear()
        return None

    def start(self, spec: ExecutableSpec) -> None:
        """A worker of ours has it."""
        self.working.add(run_id(spec))

    def finished(self, spec: ExecutableSpec) -> str:
        """It is done; returns a line that says so."""
        self.working.discard(run_id(spec))
        self.left.pop(run_id(spec), None)
        self.progress.finish(run_id(spec))
        return f"{self.total - len(self.left)} of {self.total}: {run_id(spec)}"

    def failed(self, spec: ExecutableSpec, error: Exception) -> str:
        """It cannot be done, nor can what needs it; returns a line that says so."""
        key = run_id(spec)
        self.working.discard(key)
        self.errors[key] = error
        lost = {key}
        while more := {key for key in self.left if lost & set(self.needs[key])} - lost:
            lost |= more
        for one in lost:
            self.left.pop(one, None)
        self.progress.drop(lost)
        return f"failed: {key}: {describe_error(error)}" + (
            f" ({len(lost) - 1} more need it)" if len(lost) > 1 else ""
        )

    def end(self) -> None:
        """Raise the first error, with how many there were, and from it where its traceback says more."""
        if self.errors:
            key, error = next(iter(self.errors.items()))
            count = f"{len(self.errors)} of {self.total} runs failed; the first, {key}: "
            raise _again(error, count) from (None if is_user_facing(error) else error)

    def elsewhere(self, spec: ExecutableSpec) -> None:
        """Another process holds it: look again later."""
        self.working.discard(run_id(spec))
        self._elsewhere.add(run_id(spec))

    def _look(self) -> None:
        for key in list(self._elsewhere):
            if self.store.done(key):
                self._elsewhere.discard(key)
                self.left.pop(key, None)
                self.progress.finish(key)
        for key, spec in list(self.left.items()):
            gone = [need for need in self.needs[key] if need not in self.left and not self.store.done(need)]
            if gone and key in self.left and key not in self.working:
                self.failed(
                    spec, StoreError(f"The run {gone[0]}, which it needs, is gone; run the command again.")
                )


def is_user_facing(error: Exception) -> bool:
    """Whether its sentence says all: an error of ours that did not come of another, nor of another process's."""
    return isinstance(error, PrunusError) and error.__cause__ is None and not hasattr(error, "__notes__")


def _again(error: Exception, before: str) -> Exception:
    """An error of the same type with words before its own; where the type takes no words, one that names it."""
    text = f"{before}{error}"
    try:
        made = type(error)(text)
    except Exception:
        made = None
    return (
        made if made is not None and str(made) == text else RuntimeError(f"{before}{describe_error(error)}")
    )
