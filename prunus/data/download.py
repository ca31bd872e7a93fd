"""Fetch what is missing: sources in order, each file checked before it gets its name."""

import hashlib
import http.client
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from prunus.data.files import writing
from prunus.errors import DataError
from prunus.types import Progress

TIMEOUT = 8.0
"""Seconds without an answer, or without another byte, after which a source is given up."""
PIECE = 1 << 20

progress: ContextVar[Progress | None] = ContextVar("progress", default=None)
"""What a download reports its bytes to, where somebody wants to know."""


class DownloadError(DataError):
    """One source failed, and the next one is tried; never reaches the user by itself."""


@contextmanager
def reporting(report: Progress | None) -> Iterator[None]:
    """Report the bytes of downloads in the block to `report`; None changes nothing."""
    token = None if report is None else progress.set(report)
    try:
        yield
    finally:
        if token is not None:
            progress.reset(token)


def try_sources(what: str, sources: Mapping[str, Callable[[], None]]) -> None:
    """Run the sources, by name, in order, until one ends without SourceError.

    Any other error, such as a full disk, ends it at once: no other source would help.
    Raises DataError that names every source and why it failed.
    """
    failures = []
    for name, fetch in sources.items():
        try:
            return fetch()
        except DownloadError as error:
            failures.append(f"{name} ({error})")
    raise DataError(f"{what} is not there and could not be fetched; tried in order: {'; '.join(failures)}.")


def download(url: str, path: Path, limit: int, check: Callable[[Path], None]) -> None:
    """Fetch `url` to `path`: to a file beside it, which gets its name once `check` has passed it.

    Raises SourceError if the source cannot be reached, breaks off, sends more than `limit` bytes, or `check`
    raises it; DataError if it cannot be written here. Nothing is left behind then.
    """
    with writing(path) as file:
        for piece in _pieces(url, limit):
            file.write(piece)
        file.flush()
        check(Path(file.name))


def verified_by(algorithm: str, expected: str) -> Callable[[Path], None]:
    """A check for `download`: the file's own digest must be `expected`."""

    def check(path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            raise DownloadError(f"its {algorithm} is {found}, not {expected}")

    return check


def _pieces(url: str, limit: int) -> Iterator[bytes]:
    """The bytes at `url`, as they come; every failure of the network is a SourceError."""
    received, name = 0, url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length")
            report = progress.get()
            while piece := response.read(PIECE):
                received += len(piece)
                if report is not None:
                    report(f"downloading {name}", received, int(announced or 0))
                if received > limit:
                    raise DownloadError(f"{name}: more than the {limit} bytes expected")
                yield piece
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(
            f"{name}: {getattr(error, 'reason', None) or error or type(error).__name__}"
        ) from error
    if announced is not None and received != int(announced):
        raise DownloadError(f"{name}: broken off after {received} of {announced} bytes")
