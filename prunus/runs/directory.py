"""The folder of a run: what a procedure reads and writes, whoever runs it.

    spec.json          identity, kind, settings, the complete settings, needs, cost
    environment.json   versions, machine, threads, device, engine; `earlier`: those of earlier attempts
    metrics.jsonl      a row a level             curves.jsonl   a row a level and step
    NAME.safetensors   tensors, or masks as bits, with a note
    claim.json         while it is worked on: who works on it
    result.json        once it is finished: summary, receipt, seconds, cost, and the digests of all other files

A finished run is never changed: a file of it that is missing or differs from its digest is an error, not other numbers.
No other module spells these names. Every file is whole or not there; rows are whole lines.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunus.errors import StoreError
from prunus.files import TEMPORARY
from prunus.masks import pack_mask, unpack_mask
from prunus.runs.files import read_json, store_errors, write, write_json
from prunus.runs.jsonl import Row, append_rows, read_rows, truncate_partial_line
from prunus.types import MaskDict, Params

BEAT_SECONDS = 2.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BITS = "masks"
_SPEC = ("settings", "complete", "needs")
"""What every spec.json says."""
FINISHED = "runs"
"""The folder of a store that the finished runs are in."""
ADVICE = "remove the run, `prunus runs rm"
_CHECKED: dict[tuple[Path, int, int], str] = {}
"""The digests of files of finished runs that were checked in this process, by path, time and size."""


class Beating(Protocol):
    """What a folder asks of a claim."""

    def beat(self) -> None:
        """Say that the run is being worked on; raises LeaseLostError where it is another's by now."""


class RunFolder:
    """One run's files. Without a claim it can be read and written by hand; opened for reading, only read.

    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()))
    >>> folder.append({"level": 0, "density": 1.0}), folder.rows()
    (None, [{'level': 0, 'density': 1.0}])
    """

    def __init__(self, path: Path, claim: Beating | None = None, *, reading: bool = False) -> None:
        self.path = Path(path)
        self.claim = claim
        self.reading = reading
        self._beaten = 0.0

    @property
    def id(self) -> str:
        """The run's identity."""
        return self.path.name

    def beat(self) -> None:
        """A sign of life, at most one in two seconds; raises LeaseLostError where another has taken the run over."""
        now = time.time()  # not the monotonic clock, which stands still while a machine sleeps
        if self.claim is not None and not 0 <= now - self._beaten < BEAT_SECONDS:
            self.claim.beat()
            self._beaten = now

    def append(self, row: Row, key: str = "level") -> None:
        """One row of metrics, flushed to the disk; it takes the place of an earlier row with the same `key`."""
        self._may_write()
        append_rows(self.metrics_path, [row], [key])

    def rows(self) -> list[Row]:
        """The rows of metrics."""
        return self._rows(self.metrics_path)

    def append_curve(self, rows: Iterable[Row], keys: tuple[str, ...] = ("level", "step")) -> None:
        """Rows of the curves; each takes the place of an earlier one with the same `keys`."""
        self._may_write()
        append_rows(self.curves_path, list(rows), keys)

    def curve(self) -> list[Row]:
        """The rows of the curves."""
        return self._rows(self.curves_path)

    def put(self, name: str, tensors: Mapping[str, Tensor], note: Mapping[str, Any] | None = None) -> None:
        """Write tensors, and a note of plain values, in place of what `name` held."""
        # Cloned, because safetensors refuses tensors that share memory.
        copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        self._put(name, copies, {"note": note, "names": list(tensors)})

    def get(self, name: str) -> Params:
        """The tensors of `name`, on the CPU, in the order they were put."""
        tensors, about = self._get(name)
        if _BITS in about:
            raise StoreError(f"{self._tensors(name)} holds masks, not tensors.")
        return {key: tensors[key] for key in about["names"]}

    def note(self, name: str) -> dict[str, Any]:
        """The note put beside the tensors of `name`."""
        return self._about(name)["note"] or {}

    def put_masks(self, name: str, masks: MaskDict, note: Mapping[str, Any] | None = None) -> None:
        """Write masks, one bit a weight, all tensors in one string of bits."""
        nothing = torch.zeros(0, dtype=torch.bool)
        flat = torch.cat([nothing, *(mask.detach().cpu().reshape(-1) for mask in masks.values())])
        shapes = [[key, *mask.shape] for key, mask in masks.items()]
        self._put(name, {"bits": pack_mask(flat)}, {"note": note, _BITS: shapes})

    def get_masks(self, name: str) -> MaskDict:
        """The masks of `name`."""
        tensors, about = self._get(name)
        if _BITS not in about:
            raise StoreError(f"{self._tensors(name)} holds tensors, not masks.")
        shapes = {key: torch.Size(shape) for key, *shape in about[_BITS]}
        sizes = [shape.numel() for shape in shapes.values()]
        parts = torch.split(unpack_mask(tensors["bits"], [sum(sizes)]), sizes)
        return {
            key: part.reshape(shape).clone() for (key, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def has(self, name: str) -> bool:
        """Whether there are tensors or masks of that name."""
        path = self._tensors(name)
        return path.exists() or path.name in self._digests()

    def checkpoint(self, name: str) -> Path:
        """Where a training may write its own state of that name, to be dropped when it is over."""
        return self._tensors(name)

    def drop(self, name: str) -> None:
        """Remove the tensors or masks of that name, where there are any."""
        self._may_write()
        with store_errors(self._tensors(name)):
            self._tensors(name).unlink(missing_ok=True)

    def has_spec(self) -> bool:
        """Whether there is a spec.json: it is the first thing that is written."""
        return self._file("spec").exists()

    def spec(self) -> dict[str, Any]:
        """What spec.json says."""
        found = self._json("spec")
        if missing := [key for key in _SPEC if key not in found]:
            with self._advising():
                raise StoreError(f"{self._file('spec')} is damaged: it does not say {' and '.join(missing)}.")
        return found

    def environment(self) -> dict[str, Any]:
        """What environment.json says; empty where it is not there."""
        return self._json("environment") if self._file("environment").exists() else {}

    def result(self) -> dict[str, Any]:
        """What result.json says; empty where the run is not finished."""
        return self._json("result") if self._is_finished or self._file("result").exists() else {}

    def claimed(self) -> dict[str, Any] | None:
        """What claim.json says: who was the last to work on the run."""
        return self._json("claim") if self._file("claim").exists() else None

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write spec.json."""
        write_json(self._file("spec"), spec)

    def write_environment(self, found: Mapping[str, Any]) -> None:
        """Write environment.json; what it said before, where that differs, goes under `earlier`."""
        before = self.environment()
        earlier = before.pop("earlier", [])
        if before and before != found:
            earlier = [*earlier, before]
        write_json(self._file("environment"), {**found, **({"earlier": earlier} if earlier else {})})

    def write_claim(self, claim: Mapping[str, Any]) -> None:
        """Write claim.json."""
        write_json(self._file("claim"), claim)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, with the digests of the other files; the last thing that is written."""
        written = [
            path for path in sorted(self.path.iterdir()) if path not in map(self._file, ("result", "claim"))
        ]
        write_json(self._file("result"), {**result, "files": {path.name: _digest(path) for path in written}})

    def tidy(self) -> None:
        """Remove what a killed writer left half-written."""
        with store_errors(self.path):
            for part in self.path.glob(f".*{TEMPORARY}"):
                part.unlink(missing_ok=True)
            truncate_partial_line(self.metrics_path)
            truncate_partial_line(self.curves_path)

    def let_go(self) -> None:
        """Remove claim.json."""
        with store_errors(self.path):
            self._file("claim").unlink(missing_ok=True)

    @property
    def metrics_path(self) -> Path:
        """The file of the rows of metrics."""
        return self.path / "metrics.jsonl"

    @property
    def curves_path(self) -> Path:
        """The file of the rows of the curves."""
        return self.path / "curves.jsonl"

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    @property
    def _is_finished(self) -> bool:
        return self.path.parent.name == FINISHED

    def _digests(self) -> dict[str, str]:
        """The digests of the files of a finished run, by name; empty for one that has none."""
        return self.result().get("files", {}) if self._is_finished else {}

    def _check_content(self, path: Path) -> None:
        """Raise StoreError where a file of a finished run is not what was written."""
        expected = self._digests().get(path.name)
        if expected is None:
            return
        try:
            state = path.stat()
            key = (path.absolute(), state.st_mtime_ns, state.st_size)
            if _CHECKED.get(key) != expected:
                if _digest(path) != expected:
                    raise StoreError(
                        f"{path} is damaged: it is not what was written when the run was finished."
                    )
                _CHECKED[key] = expected
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error

    def _rows(self, path: Path) -> list[Row]:
        with self._advising():
            self._check_content(path)
            return read_rows(path)

    def _json(self, name: str) -> dict[str, Any]:
        with self._advising():
            if name != "result":
                self._check_content(self._file(name))
            found = read_json(self._file(name))
            if not isinstance(found, dict):
                raise StoreError(f"{self._file(name)} is damaged: it holds no JSON object.")
            return found

    def _tensors(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise StoreError(f"Tensors cannot be stored as {name!r}: use letters, digits, '.', '-' and '_'.")
        return self.path / f"{name}.safetensors"

    def _may_write(self) -> None:
        if self.reading:
            raise StoreError(
                f"The folder of the run {self.id} was opened to be read, or the run is finished."
            )
        self.beat()

    def _put(self, name: str, tensors: Params, about: Mapping[str, Any]) -> None:
        self._may_write()
        write(self._tensors(name), save(tensors, {"prunus": json.dumps(about, separators=(",", ":"))}))

    def _get(self, name: str) -> tuple[Params, dict[str, Any]]:
        about = self._about(name)
        with self._open(name) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118 (not a dict)

    def _about(self, name: str) -> dict[str, Any]:
        with self._open(name) as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("prunus", "{}"))
            return about

    def _open(self, name: str) -> Any:
        path = self._tensors(name)
        with self._advising():
            self._check_content(path)
            try:
                return safe_open(path, framework="pt")
            except FileNotFoundError:
                raise StoreError(f"The run {self.id} has no tensors called {name!r}.") from None
            except (OSError, SafetensorError) as error:
                raise StoreError(f"{path} cannot be read: {error}.") from error

    @contextmanager
    def _advising(self) -> Iterator[None]:
        """Inside, an error of reading says what to do about a damaged run, which the same command computes again."""
        try:
            yield
        except StoreError as error:
            if ADVICE in str(error):
                raise
            store = self.path.parent.parent
            advice = f"{ADVICE} {self.id} --store {store}`, and run the command again"
            raise StoreError(f"{str(error).rstrip('.')}; {advice}.") from error.__cause__


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
