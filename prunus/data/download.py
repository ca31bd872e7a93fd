"""Download missing files: sources are tried in order, and each file is checked before it gets its name."""

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
"""Seconds without another byte after which a source is given up."""
CHUNK_BYTES = 1 << 20

progress: ContextVar[Progress | None] = ContextVar("progress", default=None)
"""Called with the number of bytes while a file is downloaded."""


class DownloadError(DataError):
    """One source failed; the next one is tried. `try_sources` turns the last one into a DataError."""


@contextmanager
def reporting(report: Progress | None) -> Iterator[None]:
    """Report the bytes of downloads in the block to `report`; None changes nothing."""
    token = None if report is None else progress.set(report)
    try:
        yield
    finally:
        if token is not None:
            progress.reset(token)


def try_sources(title: str, sources: Mapping[str, Callable[[], None]]) -> None:
    """Call functions that download the same thing, one after another, until one succeeds.

    Args:
        title: What is downloaded, for the error.
        sources: The functions by the names of their sources. A function that fails raises DownloadError; any other
            error, such as a full disk, ends the whole download, because no other source would help.

    Raises:
        DataError: All failed; the message has every source with its reason.
    """
    failures = []
    for name, fetch in sources.items():
        try:
            return fetch()
        except DownloadError as error:
            failures.append(f"{name} ({error})")
    raise DataError(f"{title} is missing and could not be downloaded; tried in order: {'; '.join(failures)}.")


def download(url: str, path: Path, limit: int, check: Callable[[Path], None]) -> None:
    """Download a file under a temporary name, check it, and give it its name.

    Args:
        url: Where the file is.
        path: The name it gets after `check` has returned. Nothing remains after an error.
        limit: The most bytes that are accepted.
        check: Called with the path of the temporary file; raises DownloadError to refuse it.

    Raises:
        DownloadError: The source cannot be reached, breaks off, is too slow, or sends more than `limit` bytes.
        DataError: The file cannot be written.
    """
    with writing(path) as file:
        for chunk in _read_url(url, limit):
            file.write(chunk)
        file.flush()
        check(Path(file.name))


def verified_by(algorithm: str, expected: str) -> Callable[[Path], None]:
    """Make a check for `download`: the digest of the file must be `expected`.

    Args:
        algorithm: A name that `hashlib` knows.
        expected: The digest in hexadecimal digits.

    Returns:
        A function that raises DownloadError for a file with another digest.
    """

    def check(path: Path) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, algorithm).hexdigest()
        if digest != expected:
            raise DownloadError(f"its {algorithm} is {digest}, not {expected}")

    return check


def _read_url(url: str, limit: int) -> Iterator[bytes]:
    """The bytes at `url` in chunks; every failure of the network is a DownloadError."""
    received, name = 0, url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length")
            report = progress.get()
            while chunk := response.read(CHUNK_BYTES):
                received += len(chunk)
                if report is not None:
                    report(f"downloading {name}", received, int(announced or 0))
                if received > limit:
                    raise DownloadError(f"{name}: more than the {limit} bytes expected")
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise DownloadError(f"{name}: {reason}") from error
    if announced is not None and received != int(announced):
        raise DownloadError(f"{name}: connection closed after {received} of {announced} bytes")
