"""Where a procedure puts what it has made, and finds it again after it was killed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prunus.training.constraints import pack_mask, unpack_mask
from prunus.types import MaskDict, Params

Row = Mapping[str, Any]


class RunArtifacts(Protocol):
    """Where a procedure puts what it has, and finds it again after it was killed."""

    def save_tensors(self, name: str, tensors: Params, note: Mapping[str, Any] | None = None) -> None:
        """Keep tensors under a name, with a note."""

    def load_tensors(self, name: str) -> Params:
        """The tensors of that name."""

    def load_metadata(self, name: str) -> dict[str, Any]:
        """The note of that name."""

    def has(self, name: str) -> bool:
        """Whether that name is kept."""

    def save_masks(self, name: str, masks: MaskDict) -> None:
        """Keep masks, one bit a weight."""

    def load_masks(self, name: str) -> MaskDict:
        """The masks of that name."""

    def append_row(self, row: Row) -> None:
        """Write down a level's numbers; a level that is there already is replaced."""

    def append_curve(self, rows: Sequence[Row]) -> None:
        """Write down a level's curve, a row a step; a step that is there already is replaced."""

    def rows(self) -> list[dict[str, Any]]:
        """The levels' numbers so far."""

    def checkpoint_path(self, name: str) -> Path | None:
        """Where a training may write its own checkpoint, to be dropped when it is over; None: nowhere."""

    def remove(self, name: str) -> None:
        """Keep what has that name no longer, where there is any."""

    def check_input(self, name: str, tensors: Params) -> None:
        """Compare data of a user's function with those of earlier attempts."""


class InMemoryArtifacts:
    """A shelf that is gone with the process.

    >>> InMemoryArtifacts().rows()
    []
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Params] = {}
        self._notes: dict[str, dict[str, Any]] = {}
        self._rows: dict[int, Row] = {}
        self._curve: dict[tuple[int, int], Row] = {}

    def save_tensors(self, name: str, tensors: Params, note: Mapping[str, Any] | None = None) -> None:
        """Keep copies."""
        self._tensors[name] = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        self._notes[name] = dict(note or {})

    def load_tensors(self, name: str) -> Params:
        """What `put` was given."""
        return dict(self._tensors[name])

    def load_metadata(self, name: str) -> dict[str, Any]:
        """What `put` was given."""
        return dict(self._notes[name])

    def has(self, name: str) -> bool:
        """Whether that name is kept."""
        return name in self._tensors

    def save_masks(self, name: str, masks: MaskDict) -> None:
        """Keep masks, one bit a weight."""
        self.save_tensors(
            name,
            {key: pack_mask(m) for key, m in masks.items()},
            {k: tuple(m.shape) for k, m in masks.items()},
        )

    def load_masks(self, name: str) -> MaskDict:
        """The masks of that name."""
        return {key: unpack_mask(bits, self._notes[name][key]) for key, bits in self._tensors[name].items()}

    def append_row(self, row: Row) -> None:
        """Keep the row of its level."""
        self._rows[row["level"]] = row

    def rows(self) -> list[dict[str, Any]]:
        """The levels' numbers, in order."""
        return [dict(self._rows[level]) for level in sorted(self._rows)]

    def append_curve(self, rows: Sequence[Row]) -> None:
        """Keep the rows of their levels and steps."""
        self._curve |= {(row["level"], row["step"]): row for row in rows}

    def curve(self) -> list[dict[str, Any]]:
        """The rows of the curves, by level and step."""
        return [dict(self._curve[place]) for place in sorted(self._curve)]

    def checkpoint_path(self, name: str) -> None:
        """Nowhere."""

    def remove(self, name: str) -> None:
        """Forget it."""
        self._tensors.pop(name, None)

    def check_input(self, name: str, tensors: Params) -> None:
        """There are no earlier attempts."""
