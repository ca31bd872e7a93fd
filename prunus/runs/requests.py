"""What experiments requested of the store: which runs, and the label of each of them in the experiment.

Each request has a file of its own, named by its content, so that a later request does not hide an earlier one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunus.errors import StoreError
from prunus.runs.content import FILE_NAME, check_version, read_json, write_json
from prunus.runs.settings import canonical_json
from prunus.runs.spec import HEX


@dataclass(frozen=True)
class RequestedRun:
    """A run in an experiment."""

    label: Mapping[str, Any]
    """What the run is in the experiment, for example {"replicate": 0, "curve": "reinitialized"}."""
    id: str
    settings: Mapping[str, Any]
    """The settings that differ from their defaults."""


@dataclass(frozen=True)
class Request:
    """An experiment of a size, and the runs it is made of."""

    experiment: str
    size: str
    settings: Mapping[str, Any]
    """The settings that the user changed."""
    entries: tuple[RequestedRun, ...]
    number: int = 0
    """Larger for a later request of the same name."""

    @property
    def name(self) -> str:
        """NAME.SIZE."""
        return f"{self.experiment}.{self.size}"


def add_request(folder: Path, request: Request) -> Request:
    """Write a request as the latest of its name; one that is written already becomes the latest.

    Args:
        folder: The folder of requests.
        request: The request; its number does not count.

    Returns:
        The request with its number. If its content is that of the latest request of its name, that request is returned,
        and nothing is written.

    Raises:
        StoreError: The names of the experiment and its size are not names of files, or the file cannot be written.
    """
    for word in (request.experiment, request.size):
        if not FILE_NAME.fullmatch(word):
            raise StoreError(
                f"Expected a name of letters, digits, '.', '-' and '_' for an experiment, got {word!r}; choose another."
            )
    earlier = [entry for entry in read_requests(folder) if entry.name == request.name]
    if earlier and _content(earlier[-1]) == _content(request):
        return earlier[-1]
    request = replace(request, number=earlier[-1].number + 1 if earlier else 1)
    hex = hashlib.sha256(_content(request).encode()).hexdigest()[:HEX]
    write_json(folder / f"{request.name}.{hex}.json", asdict(request))
    return request


def read_requests(folder: Path) -> list[Request]:
    """Return all requests in a folder, by name, the latest of a name last.

    Raises:
        StoreError: A file is damaged.
    """
    requests = [request_from_plain(read_json(path), path) for path in sorted(folder.glob("[!.]*.json"))]
    return sorted(requests, key=lambda request: (request.name, request.number))


def request_from_plain(value: Mapping[str, Any], path: Path) -> Request:
    """Return the request that a JSON object of the file `path` holds.

    Args:
        value: The fields of a request, as they were written as JSON and read again.
        path: The file, which is named in errors.

    Returns:
        The request.

    Raises:
        StoreError: A field of the request, or of one of its runs, is missing, of another type, or of another version.
    """
    try:
        check_version(value, Request.__dataclass_fields__, path)
        for entry in value["entries"]:
            check_version(entry, RequestedRun.__dataclass_fields__, path)
        entries = tuple(RequestedRun(**entry) for entry in value["entries"])
        request = Request(**{**value, "entries": entries})
        for field, kind in (("experiment", str), ("size", str), ("settings", Mapping), ("number", int)):
            if not isinstance(getattr(request, field), kind):
                raise TypeError(f"{field} is {getattr(request, field)!r}")
        return request
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: it is not the request of an experiment ({error}).") from error


def _content(request: Request) -> str:
    """Return the request as text, without its number."""
    return canonical_json({**asdict(request), "number": 0})
