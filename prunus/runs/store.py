"""The store of runs: one directory per run, whose run.json alone states what the run is and how far it got.

    STORE/runs/ID/                       the files of a run (RunDirectory)
    STORE/locks/ID.lock                  locked by the process that works on the run; empty
    STORE/experiments/NAME.SIZE.HEX.json the runs that an experiment requested, each request once

A run is done when its record says so. The system releases the lock of a process that dies, so that a run that is
recorded as running and is not locked was interrupted, and anybody may resume it. Reading writes nothing.
"""

import gc
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from prunus.errors import StoreError, StoreVersionError
from prunus.runs.content import Row, store_errors, vanished
from prunus.runs.directory import RunDirectory
from prunus.runs.environment import environment
from prunus.runs.locking import acquire, is_locked
from prunus.runs.record import (
    RunRecord,
    State,
    check_settings_match,
    describe_run,
    read_record,
    summarize_invariants,
)
from prunus.runs.requests import Request, RequestedRun, add_request, read_requests
from prunus.runs.settings import nondefault_settings
from prunus.runs.spec import RunSpec, run_id


class Store:
    """Runs in the folder `path`, which is created if it does not exist (unless `create` is False)."""

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self.path = Path(path)
        self.runs_path, self.locks_path = self.path / "runs", self.path / "locks"
        self.requests_path = self.path / "experiments"
        if not create:
            if not self.runs_path.is_dir():
                raise StoreError(
                    f"There is no store of runs at {self.path}; pass the directory of `prunus run --store`."
                )
            return
        with store_errors(self.path):
            for folder in (self.locks_path, self.requests_path, self.runs_path):
                folder.mkdir(parents=True, exist_ok=True)

    def is_done(self, id: str) -> bool:
        """Return whether the run is finished. Raises StoreError if its record is damaged."""
        directory = RunDirectory(self.runs_path / id, read_only=True)
        return directory.has_record() and directory.record().state == "done"

    def directory(self, id: str, *, unfinished: bool = False) -> RunDirectory:
        """Return the directory of a run, for reading.

        Args:
            id: The ID of the run.
            unfinished: Whether the run may be one that is not finished.

        Returns:
            The directory, to which nothing can be written.

        Raises:
            StoreError: The run is not in the store, or not finished.
        """
        if unfinished and not (self.runs_path / id).is_dir():
            raise StoreError(f"The store {self.path} has no run {id!r}.")
        if not unfinished and not self.is_done(id):
            raise StoreError(f"The run {id} is not finished in the store {self.path}.")
        return RunDirectory(self.runs_path / id, read_only=True)

    def open(
        self, spec: RunSpec, executor: str, device: str = "cpu", *, attempts: int | None = None
    ) -> RunDirectory | None:
        """Lock a run and open its directory, with what earlier attempts wrote there.

        Args:
            spec: What the run computes.
            executor: The executor that computes it; recorded.
            device: The device that it computes on; recorded.
            attempts: The number of attempts before the command that computes it, which does not repeat one that failed
                since; None: one that failed is repeated.

        Returns:
            The directory, to be passed to `finish` or `fail`; None if the run is done, has failed since, or another
            process works on it.

        Raises:
            StoreError: The directory is that of another spec, or damaged.
        """
        id = run_id(spec)
        if self.is_done(id) or self.is_locked(id):  # one that is locked is not waited for
            return None
        lock = acquire(self._lock_path(id))
        if lock is None:
            return None
        directory = RunDirectory(self.runs_path / id, lock=lock)
        try:
            # It may have ended between the two checks.
            if not self.is_done(id) and not _failed_since(directory, attempts):
                self._begin(directory, describe_run(spec), environment(executor, device))
                return directory
        except BaseException:
            directory.release()
            raise
        directory.release()
        return None

    def finish(
        self, directory: RunDirectory, summary: Mapping[str, Any], seconds: float | None = None
    ) -> None:
        """Record that a run is finished, and release it.

        Args:
            directory: What `open` returned.
            summary: The main results; plain values.
            seconds: The time that the run took; None: that of this and the earlier attempts.

        Raises:
            StoreError: The directory was not opened by this process, or another process took the run over.
        """
        self._check_open(directory)
        record = _ended(directory, "done", error=None, summary=dict(summary))
        directory.finish(record if seconds is None else replace(record, seconds=round(seconds, 3)))

    def fail(self, directory: RunDirectory, error: BaseException | str) -> None:
        """Record that a run failed, and release it; what it wrote is kept for another attempt.

        Args:
            directory: What `open` returned.
            error: Why it failed.
        """
        self._check_open(directory)
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        try:
            with suppress(StoreError):  # a full disk: the run is shown as interrupted
                directory.write_record(_ended(directory, "failed", error=text))
        finally:
            directory.release()

    def runs(self) -> list[RunRecord]:
        """Return the records of all runs, finished or not, in the order of their IDs.

        The record of a run that cannot be read is left out, with a warning.
        """
        records = []
        with without_garbage_collection():
            for path in self._paths():
                try:
                    records.append(self._with_state(read_record(path)))
                except StoreError as error:
                    # A run without files was removed, or has only started.
                    if path.is_dir() and not RunDirectory(path).is_empty():
                        warnings.warn(f"The run {path.name} is left out: {error}", stacklevel=2)
            dependencies = {record.id: record.dependencies.values() for record in records}
            requesting = self._requesting_experiments(lambda id: dependencies.get(id, ()))
            return [
                replace(record, experiments=requesting[record.id]) if record.id in requesting else record
                for record in records
            ]

    def run(self, id: str) -> RunRecord:
        """Return the record of a run, finished or not. Raises StoreError if it cannot be read."""
        record = self._with_state(self.directory(id, unfinished=True).record())
        requesting = self._requesting_experiments(cache(self._dependencies))
        return replace(record, experiments=requesting.get(id, ()))

    def find(self, prefix: str) -> str:
        """Return the ID that begins with `prefix`, or whose hash does.

        Raises:
            StoreError: There is no such run, or there are several.
        """
        ids = self.ids()
        begins = [id for id in ids if id.startswith(prefix) or id.rpartition("-")[2].startswith(prefix)]
        matches = begins if prefix else []
        if prefix in ids or len(matches) == 1:
            return prefix if prefix in ids else matches[0]
        if matches:
            more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
            raise StoreError(f"{prefix!r} could be {', '.join(matches[:5])}{more}; give more of the ID.")
        raise StoreError(f"The store {self.path} has no run {prefix!r}; `prunus runs list` lists them.")

    def request(
        self,
        experiment: str,
        size: str,
        entries: Sequence[tuple[Mapping[str, Any], RunSpec]],
        settings: Mapping[str, Any],
    ) -> Request:
        """Write which runs an experiment requests; what it requested before is kept.

        Args:
            experiment: The name of the experiment, of letters, digits, ".", "-" and "_".
            size: Its size, of the same characters.
            entries: The label of each run in the experiment, and its spec.
            settings: The settings that the user changed, by name.

        Returns:
            The request, with its number.

        Raises:
            StoreError: The names of the experiment and its size are not names of files, or the file cannot be written.
        """
        runs = tuple(
            RequestedRun(dict(label), run_id(spec), nondefault_settings(spec)) for label, spec in entries
        )
        return add_request(self.requests_path, Request(experiment, size, dict(settings), runs))

    def requests(self) -> list[Request]:
        """Return what experiments requested, by name, the latest of a name last."""
        return read_requests(self.requests_path)

    def add(self, record: RunRecord, rows: Sequence[Row], curve: Sequence[Row]) -> bool:
        """Add a finished run that was computed in another store, without its tensors.

        Args:
            record: Its record.
            rows: Its rows.
            curve: The rows of its curve.

        Returns:
            Whether it was added; False if the store has the run, finished or not, or a process works on it.
        """
        lock = acquire(self._lock_path(record.id))
        if lock is None:
            return False
        directory = RunDirectory(self.runs_path / record.id, lock=lock)
        try:
            if directory.has_record():
                return False
            with store_errors(directory.path):
                shutil.rmtree(directory.path, ignore_errors=True)  # of an import that was killed
                directory.path.mkdir()
            directory.append_rows(rows)
            directory.append_curve(curve)
            directory.write_record(record)
        finally:
            directory.release()
        return True

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a run, finished or not.

        Args:
            id: The ID of the run.
            force: Whether to remove it also if another run was made from it, or is being made from it.

        Raises:
            StoreError: The run is not in the store, or a process works on it. Without `force` also: a run that is
                finished or running reads it, or it cannot be read what another run reads.
        """
        if not force:
            self._check_unused(id)
        if id not in self.ids():  # "" and ".." are directories as well
            raise StoreError(f"The store {self.path} has no run {id!r}.")
        lock = acquire(self._lock_path(id))
        if lock is None:
            raise StoreError(f"The run {id} is running; stop its process first.")
        try:
            with store_errors(self.path):
                # Renamed first, so that no reader finds half of a run.
                (self.runs_path / id).rename(self.path / f"removed-{secrets.token_hex(4)}")
                for removed in self.path.glob("removed-*"):
                    shutil.rmtree(removed, ignore_errors=True)
        finally:
            lock.release()

    def ids(self) -> list[str]:
        """Return the IDs of all runs, finished or not, in order. Raises StoreError if the store cannot be read."""
        return [path.name for path in self._paths()]

    def is_locked(self, id: str) -> bool:
        """Return whether a process works on the run."""
        return is_locked(self._lock_path(id))

    def _begin(self, directory: RunDirectory, new: RunRecord, environment: Mapping[str, Any]) -> None:
        """Write the record of a new attempt over that of the earlier ones."""
        with store_errors(directory.path):
            directory.path.mkdir(exist_ok=True)
        digest = directory.kept_digest()
        if directory.has_record() or not directory.is_empty():  # without a record: raises that it is missing
            old = directory.record()
            check_settings_match(directory.path, old, new)
            was_interrupted = old.state == "running"
            interrupted = directory.seconds_since(old.started) if was_interrupted else 0.0
            environments = tuple(earlier for earlier in old.environments if earlier != environment)
            stalled = old.stalled + 1 if was_interrupted and digest == old.kept else 0
            new = replace(new, attempts=old.attempts, inputs=old.inputs, environments=environments)
            new = replace(new, seconds=old.seconds + interrupted, stalled=stalled)
        environments = (*new.environments, environment)
        directory.remove_partial_files()  # after `seconds_since`: it changes the times of files
        directory.begin_attempt(
            replace(new, attempts=new.attempts + 1, kept=digest, environments=environments)
        )

    def _lock_path(self, id: str) -> Path:
        return self.locks_path / f"{id}.lock"

    def _check_open(self, directory: RunDirectory) -> None:
        if directory.lock is None or not directory.lock.is_locked:
            raise StoreError(
                f"The run {directory.id} was not opened by this process, or is finished already."
            )

    def _with_state(self, record: RunRecord) -> RunRecord:
        """Return a record with the state that a reader is shown, and the seconds of an attempt that has not ended."""
        if record.state != "running":
            return record
        directory = RunDirectory(self.runs_path / record.id)
        return replace(
            record,
            state="running" if self.is_locked(record.id) else "interrupted",
            seconds=round(record.seconds + directory.seconds_since(record.started), 3),
            **_describe_rows(directory.rows()),
        )

    def _dependencies(self, id: str) -> Collection[str]:
        """Return the IDs of the runs that a run was made from; none if its record cannot be read."""
        try:
            return read_record(self.runs_path / id).dependencies.values()
        except StoreError:
            return ()

    def _requesting_experiments(
        self, dependencies_of: Callable[[str], Collection[str]]
    ) -> dict[str, tuple[str, ...]]:
        """Return for each requested run, and each that one was made from, the experiments that requested it."""
        names: dict[str, dict[str, None]] = {}
        for request in self.requests():
            waiting = [entry.id for entry in request.entries]
            while waiting:
                id = waiting.pop()
                if request.name not in names.setdefault(id, {}):
                    names[id][request.name] = None
                    waiting += dependencies_of(id)
        return {id: tuple(names_of) for id, names_of in names.items()}

    def _check_unused(self, id: str) -> None:
        """Raise StoreError unless it is certain that no run that is finished or running reads this one."""
        users: list[str] = []
        for path in self._paths():
            if path.name == id or (path.is_dir() and RunDirectory(path).is_empty()):
                continue  # a run without a record has read nothing
            try:
                record = self._with_state(read_record(path))
            except StoreError as error:
                if not path.is_dir():
                    continue  # it was removed meanwhile
                is_damaged = not isinstance(error, StoreVersionError)
                advice = f" Remove {path.name} first, or use --force." if is_damaged else ""
                raise StoreError(
                    f"Whether the run {path.name} was made from {id} cannot be read: {error}{advice}"
                ) from error
            if id in record.dependencies.values() and record.state in ("done", "running"):
                users.append(f"{path.name} ({record.state})")
        if users:
            more = f" and {len(users) - 3} more" if len(users) > 3 else ""
            raise StoreError(
                f"The run {id} is read by {', '.join(users[:3])}{more}; remove or stop them first, or use --force."
            )

    def _paths(self) -> Iterator[Path]:
        """Return the directories of all runs, in the order of their IDs. Raises as `ids`."""
        try:
            with os.scandir(self.runs_path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir())
        except FileNotFoundError:
            raise vanished(f"The store {self.path}") from None
        except OSError as error:
            raise StoreError(f"The store {self.path} cannot be read: {error.strerror or error}.") from error
        return (self.runs_path / name for name in names)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Do not search for cycles in the block: a third of the time to read or list many records, which have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _failed_since(directory: RunDirectory, attempts: int | None) -> bool:
    """Whether a run failed after this number of attempts; None: it does not count."""
    if attempts is None or not directory.has_record():
        return False
    record = directory.record()
    return record.state == "failed" and record.attempts > attempts


def _ended(directory: RunDirectory, state: State, **changes: Any) -> RunRecord:
    """Return the record of a run whose last attempt is made by this process and ends now."""
    rows, record = directory.rows(), directory.record()
    seconds = round(record.seconds + time.monotonic() - directory.begun, 3)
    return replace(record, state=state, seconds=seconds, **_describe_rows(rows), **changes)


def _describe_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the fields of a record that describe the rows of a run."""
    return {"invariants": summarize_invariants(rows), "last_row": rows[-1] if rows else {}}
