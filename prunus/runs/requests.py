"""What experiments asked the store for: which runs, and what each of them is called there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.errors import StoreError
from prunus.runs.files import read_json, write_json
from prunus.runs.settings import settings as settings_of
from prunus.runs.spec import Spec, identity

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Wanted:
    """A run in an experiment."""

    label: Mapping[str, Any]
    """What it is there: {"seed": 0, "arm": "reinitialised"}, say."""
    id: str
    spec: Mapping[str, Any]
    """The settings that differ from their defaults."""


@dataclass(frozen=True)
class Request:
    """An experiment of a size, and the runs it is made of."""

    experiment: str
    size: str
    settings: Mapping[str, Any]
    entries: tuple[Wanted, ...]

    @property
    def name(self) -> str:
        """NAME.SIZE."""
        return f"{self.experiment}.{self.size}"


def write_request(
    folder: Path,
    experiment: str,
    size: str,
    entries: Sequence[tuple[Mapping[str, Any], Spec]],
    settings: Mapping[str, Any],
) -> None:
    """Write the request of an experiment in place of an earlier one."""
    for word in (experiment, size):
        if not _WORD.fullmatch(word):
            raise StoreError(
                f"An experiment cannot be stored as {word!r}: use letters, digits, '.', '-', '_'."
            )
    runs = [
        {"label": dict(label), "id": identity(spec), "spec": settings_of(spec)} for label, spec in entries
    ]
    write_json(
        folder / f"{experiment}.{size}.json",
        {"experiment": experiment, "size": size, "settings": dict(settings), "entries": runs},
    )


def read_requests(folder: Path) -> list[Request]:
    """All requests, by the names of their files."""
    return [_request(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]


def _request(path: Path) -> Request:
    found = read_json(path)
    try:
        entries = tuple(Wanted(**entry) for entry in found["entries"])
        return Request(found["experiment"], found["size"], found["settings"], entries)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: it is not the request of an experiment ({error}).") from error
