"""What experiments asked the store for: which runs, and what each of them is called there.

Each request has a file of its own, named by what it asks for, so that no later one hides what an earlier one gave.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunus.errors import StoreError
from prunus.runs.files import read_json, write_json
from prunus.runs.settings import canonical_json
from prunus.runs.settings import nondefault_settings as settings_of
from prunus.runs.spec import HEX, RunSpec, run_id

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RequestedRun:
    """A run in an experiment."""

    label: Mapping[str, Any]
    """What it is there: {"seed": 0, "arm": "reinitialized"}, say."""
    id: str
    spec: Mapping[str, Any]
    """The settings that differ from their defaults."""


@dataclass(frozen=True)
class Request:
    """An experiment of a size, and the runs it is made of."""

    experiment: str
    size: str
    settings: Mapping[str, Any]
    entries: tuple[RequestedRun, ...]
    number: int = 0
    """The larger, the later it was asked."""

    @property
    def name(self) -> str:
        """NAME.SIZE."""
        return f"{self.experiment}.{self.size}"


def write_request(
    folder: Path,
    experiment: str,
    size: str,
    entries: Sequence[tuple[Mapping[str, Any], RunSpec]],
    settings: Mapping[str, Any],
) -> Request:
    """Write the request of an experiment beside its earlier ones; the same again becomes the latest."""
    for word in (experiment, size):
        if not _WORD.fullmatch(word):
            raise StoreError(
                f"An experiment cannot be stored as {word!r}: use letters, digits, '.', '-', '_'."
            )
    runs = tuple(RequestedRun(dict(label), run_id(spec), settings_of(spec)) for label, spec in entries)
    request = Request(experiment, size, dict(settings), runs)
    earlier = [one for one in read_requests(folder) if (one.experiment, one.size) == (experiment, size)]
    if earlier and _asked(earlier[-1]) == _asked(request):
        return earlier[-1]
    request = replace(request, number=earlier[-1].number + 1 if earlier else 1)
    hex = hashlib.sha256(_asked(request).encode()).hexdigest()[:HEX]
    write_json(folder / f"{experiment}.{size}.{hex}.json", asdict(request))
    return request


def _asked(request: Request) -> str:
    """What it is named by: all but when it was asked."""
    return canonical_json(
        {**asdict(request), "entries": [asdict(one) for one in request.entries], "number": 0}
    )


def read_requests(folder: Path) -> list[Request]:
    """All requests, by name, the latest of a name last."""
    found = [_request(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]
    return sorted(found, key=lambda request: (request.name, request.number))


def _request(path: Path) -> Request:
    found = read_json(path)
    try:
        entries = tuple(RequestedRun(**entry) for entry in found["entries"])
        return Request(found["experiment"], found["size"], found["settings"], entries, found.get("number", 0))
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: it is not the request of an experiment ({error}).") from error
