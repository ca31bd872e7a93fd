"""The directory of a run: what a procedure reads and writes.

    run.json            what the run is and how far it got (RunRecord)
    rows.jsonl          one row per level
    curve.jsonl         one row per level and step
    NAME.safetensors    tensors, or masks with one bit per weight, and metadata
    .steps.part         while a process computes the run: how many of its steps are done

Each file carries a digest of its content, which every read verifies. The record of a finished run states how many rows
and which tensors there are, so that a file that is missing is an error too. No other module spells these names.

Torch is imported only when tensors are read or written, so that a store is listed without it.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock

from prunus.errors import StoreError, StoreVersionError
from prunus.files import TEMPORARY
from prunus.runs.content import (
    FILE_NAME,
    ZEROS,
    Row,
    append_rows,
    drop_partial_line,
    read_file,
    read_rows,
    store_errors,
    vanished,
    write_file,
)
from prunus.runs.record import RECORD, RunRecord, check_id, read_record, write_record

if TYPE_CHECKING:
    from torch import Tensor

    from prunus.types import MaskDict, Params

ADVICE = "remove the run, `prunus runs rm"


class RunDirectory:
    """The files of one run. One that has no record, such as an empty folder, can be read and written by hand.

    >>> import tempfile
    >>> directory = RunDirectory(Path(tempfile.mkdtemp()))
    >>> directory.append_row({"level": 0, "density": 1.0}), directory.rows()
    (None, [{'level': 0, 'density': 1.0}])
    """

    def __init__(
        self, path: Path | str, *, lock: BaseFileLock | None = None, read_only: bool = False
    ) -> None:
        """Open the directory `path`.

        Args:
            path: The directory.
            lock: The lock of the run, which this process holds; None if no store is used.
            read_only: Whether writing is refused.
        """
        self.path = Path(path)
        self.id = self.path.name
        """The ID of the run."""
        self.lock, self.read_only = lock, read_only
        self.attempt, self.begun = "", time.monotonic()
        self._rows_path, self._curve_path = self.path / "rows.jsonl", self.path / "curve.jsonl"
        self._steps_path = self.path / f".steps{TEMPORARY}"

    def append_row(self, row: Row) -> None:
        """Append a row and flush it to the disk; it takes the place of an earlier row of the same level."""
        self.append_rows([row])

    def append_rows(self, rows: Sequence[Row]) -> None:
        """Append several rows, as `append_row` appends one."""
        self._check_may_write()
        append_rows(self._rows_path, rows, ["level"])

    def rows(self) -> list[Row]:
        """Return the rows in the order of their levels' first writing."""
        return self._read_rows(self._rows_path, "rows")

    def append_curve(self, rows: Iterable[Row]) -> None:
        """Append rows of the curve; each takes the place of an earlier one of the same level and step."""
        self._check_may_write()
        append_rows(self._curve_path, list(rows), ("level", "step"))

    def curve(self) -> list[Row]:
        """Return the rows of the curve."""
        return self._read_rows(self._curve_path, "curve")

    def save_tensors(
        self, name: str, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write tensors, with plain values, in place of what `name` held.

        Args:
            name: Letters, digits, ".", "-" and "_".
            tensors: Tensors of any device and layout.
            metadata: Values that JSON has a form for.
        """
        from prunus.runs.tensor_files import tensors_to_bytes

        path = self.checkpoint_path(name)
        self._check_may_write()
        write_file(path, tensors_to_bytes(tensors, metadata))

    def load_tensors(self, name: str) -> "Params":
        """Return the tensors of `name`, on the CPU, in the order in which they were saved.

        Raises:
            StoreError: There are none, they are damaged, or `name` holds masks.
        """
        tensors, about = self._read_tensors(name)
        if "masks" in about:
            raise StoreError(f"{self.checkpoint_path(name)} holds masks, not tensors.")
        return {key: tensors[key] for key in about["names"]}

    def load_metadata(self, name: str) -> dict[str, Any]:
        """Return the plain values that were saved with the tensors of `name`."""
        return self._read_tensors(name)[1]["metadata"] or {}

    def save_masks(self, name: str, masks: "MaskDict") -> None:
        """Write masks, with one bit per weight, in place of what `name` held.

        Args:
            name: Letters, digits, ".", "-" and "_".
            masks: Boolean tensors of any shape and device by name; their order is kept.

        Raises:
            StoreError: The name is not the name of a file, the file cannot be written, the directory is read-only, or
                another process has taken the run over.
        """
        from prunus.runs.tensor_files import masks_to_bytes

        path = self.checkpoint_path(name)
        self._check_may_write()
        write_file(path, masks_to_bytes(masks))

    def load_masks(self, name: str) -> "MaskDict":
        """Return the masks of `name`.

        Raises:
            StoreError: There are none, they are damaged, or `name` holds tensors that are not masks.
        """
        from prunus.runs.tensor_files import masks_from_bits

        tensors, about = self._read_tensors(name)
        if "masks" not in about:
            raise StoreError(f"{self.checkpoint_path(name)} holds tensors, not masks.")
        return masks_from_bits(tensors["bits"], about["masks"])

    def has(self, name: str) -> bool:
        """Return whether there are tensors or masks of that name, or whether the finished run had some."""
        return self.checkpoint_path(name).exists() or name in self._finished_files().get("tensors", ())

    def checkpoint_path(self, name: str) -> Path:
        """Return the file of `name`, which a training may also write its checkpoint to.

        Raises:
            StoreError: `name` is not the name of a file, or the directory is not there any more.
        """
        if not FILE_NAME.fullmatch(name):
            raise StoreError(
                f"Expected a name of letters, digits, '.', '-' and '_' for tensors, got {name!r}; choose another."
            )
        self._check_exists()  # a training creates the folder of its checkpoint
        return self.path / f"{name}.safetensors"

    def remove(self, name: str) -> None:
        """Remove the tensors, masks or checkpoint of that name, if there are any."""
        self._check_may_write()
        with store_errors(self.checkpoint_path(name)):
            self.checkpoint_path(name).unlink(missing_ok=True)

    def check_input(self, name: str, tensors: "Mapping[str, Tensor]") -> None:
        """Record the digest of data of a user's function or file, or compare it with that of earlier computations.

        Args:
            name: Where the data are from: the reference of the function, or the name of the file.
            tensors: The data.

        Raises:
            StoreError: An earlier attempt of this run, or a run that it was made from, computed with other data.
        """
        from prunus.runs.tensor_files import tensors_digest

        if not self.has_record():
            return
        record, digest = self.record(), tensors_digest(tensors)
        runs = [read_record(self.path.parent / id) for id in record.dependencies.values()]
        for run in (*runs, record):
            if run.inputs.get(name, digest) != digest:
                raise StoreError(
                    f"{name} gives other data than the run {run.id} was computed with; restore them, or remove that "
                    f"run, `prunus runs rm {run.id} --force --store {self.path.parent.parent}`, and start again."
                )
        if name not in record.inputs:
            self.write_record(replace(record, inputs={**record.inputs, name: digest}))

    def write_steps(self, done: int, total: int) -> None:
        """Write how many steps of the run are done, for readers; the file is removed when the run ends or begins again.

        Args:
            done: The number of steps done, of all trainings of the run.
            total: The number of all steps.

        Raises:
            StoreError: The file cannot be written, or another process has taken the run over.
        """
        self._check_may_write()
        write_file(self._steps_path, f"{done} {total}".encode())

    def steps(self) -> tuple[int, int] | None:
        """Return what `write_steps` wrote last; None if there is nothing."""
        try:
            done, total = map(int, self._steps_path.read_bytes().split())
        except (OSError, ValueError):
            return None
        return done, total

    def kept_digest(self) -> str:
        """Return a digest of what another attempt would begin with: the tensors, and the numbers of rows.

        Rows that an attempt wrote again are not progress, and neither is a checkpoint of the same bits.
        """
        digest = hashlib.sha256(f"{len(self.rows())} {len(self.curve())}".encode())
        for path in sorted(self.path.glob("*.safetensors")):
            with suppress(OSError):  # another process has taken the run over, and has removed the file
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[: len(ZEROS)]

    def has_record(self) -> bool:
        """Return whether there is a run.json."""
        return (self.path / RECORD).exists()

    def record(self) -> RunRecord:
        """Return what run.json states. Raises StoreError if it is missing or damaged."""
        with self._with_advice():
            return check_id(read_record(self.path), self.path / RECORD)

    def write_record(self, record: RunRecord) -> None:
        """Write run.json, unless another process has taken the run over."""
        self._check_may_write()
        write_record(self.path, record)

    def begin_attempt(self, record: RunRecord) -> None:
        """Write the record of a run that this process starts or resumes, with an identifier of this attempt.

        The time of the start is that of the file system, whose clock also gives the times of the files: those of the
        machines that share it may differ.
        """
        self.attempt, self.begun = secrets.token_hex(8), time.monotonic()
        write_record(self.path, replace(record, attempt=self.attempt, started=file_system_time(self.path)))

    def finish(self, record: RunRecord) -> None:
        """Write the record of the finished run, as the last thing, with the number of rows and the names of tensors."""
        self.remove_partial_files()
        tensors = sorted(path.stem for path in self.path.glob("*.safetensors"))
        files = {"rows": len(self.rows()), "curve": len(self.curve()), "tensors": tensors}
        self.write_record(replace(record, files=files))
        self.release()

    def release(self) -> None:
        """Release the lock of the run; the directory can be read from now on, but not written."""
        self.read_only = True
        if self.lock is not None:
            self.lock.release()

    def remove_partial_files(self) -> None:
        """Remove what a killed writer left in part, unless another process has taken the run over."""
        self._check_may_write()
        with store_errors(self.path):
            for part in self.path.glob(f".*{TEMPORARY}"):
                part.unlink(missing_ok=True)
            drop_partial_line(self._rows_path)
            drop_partial_line(self._curve_path)

    def is_empty(self) -> bool:
        """Return whether there are no files but those of a killed writer."""
        return not any(path for path in self.path.iterdir() if not path.name.startswith("."))

    def seconds_since(self, started: float) -> float:
        """Return the seconds from `started` to the last write of a file, for an attempt that did not end itself."""
        times = [path.stat().st_mtime for path in self.path.iterdir() if path.is_file()]
        return max(0.0, max(times, default=started) - started)

    def _check_exists(self) -> None:
        """Raise StoreError if the directory is not there any more: only the store creates it, when it opens the run."""
        if not self.path.is_dir():
            raise vanished(f"The folder {self.path}")

    def _check_may_write(self) -> None:
        """Raise StoreError if the directory is read-only, or another process has taken the run over."""
        if self.read_only:
            raise StoreError(
                f"The directory of the run {self.id} was opened for reading, or the run is finished."
            )
        if self.attempt and self.record().attempt != self.attempt:
            raise StoreError(
                f"The run {self.id} was taken over by another process; this one no longer writes to it."
            )

    def _finished_files(self) -> Mapping[str, Any]:
        """Return what the record of a finished run states about its files; empty for other runs."""
        return self.record().files if self.read_only and self.has_record() else {}

    def _read_rows(self, path: Path, key: str) -> list[Row]:
        with self._with_advice():
            rows = read_rows(path)
            if (expected := self._finished_files().get(key, len(rows))) != len(rows):
                raise StoreError(f"{path} is damaged: expected {expected} rows, got {len(rows)}.")
            return rows

    def _read_tensors(self, name: str) -> "tuple[Params, dict[str, Any]]":
        from prunus.runs.tensor_files import tensors_from_bytes

        path = self.checkpoint_path(name)
        with self._with_advice():
            try:
                return tensors_from_bytes(read_file(path), path)
            except FileNotFoundError:
                raise self._missing(name) from None

    def _missing(self, name: str) -> StoreError:
        record = self.record() if self.has_record() else None
        if record is not None and record.imported:
            return StoreError(f"The run {self.id} was imported without its tensors, {name!r} among them.")
        if name in self._finished_files().get("tensors", ()):
            return StoreError(f"{self.checkpoint_path(name)} is missing.")
        return StoreError(f"The run {self.id} has no tensors called {name!r}.")

    @contextmanager
    def _with_advice(self) -> Iterator[None]:
        """Add to an error of reading what to do about a damaged run: the same command computes it again."""
        try:
            yield
        except StoreVersionError:  # the run is not damaged
            raise
        except StoreError as error:
            self._check_exists()
            if ADVICE in str(error):
                raise
            store = self.path.parent.parent
            advice = f"{ADVICE} {self.id} --store {store}`, and run the command again"
            raise StoreError(f"{str(error).rstrip('.')}; {advice}.") from error.__cause__


def file_system_time(folder: Path) -> float:
    """Return the time, in seconds since 1970, that the file system of a folder gives to what is written now."""
    with store_errors(folder):
        os.utime(folder)
        return folder.stat().st_mtime
