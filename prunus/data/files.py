"""Read files within bounds, and write them so that a partial one never looks complete."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from prunus.data.paths import VARIABLE
from prunus.errors import DataError
from prunus.files import open_atomic, os_errors

ADVICE = f"make room there or make it writable, or set {VARIABLE} to another data root"


def read_maybe_gzipped(path: Path, limit: int) -> bytes:
    """The content of `path`, decompressed if its name ends in .gz; at most `limit` bytes.

    Raises DataError if it cannot be read, is damaged or ends early, or holds more than `limit` bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = cast(BinaryIO, file).read(limit + 1)
    except EOFError as error:
        raise DataError(
            f"{path} is truncated: its compressed stream has no end; {redownload_hint(path)}"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); {redownload_hint(path)}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > limit:
        raise DataError(f"{path} holds more than the {limit} bytes expected; {redownload_hint(path)}")
    return content


def redownload_hint(path: Path) -> str:
    """What a user does about a damaged file."""
    return f"delete {path} to fetch it again."


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and is removed when it does not.

    Missing folders are made. Raises DataError if the folder cannot be made or written, or the disk is full.
    """
    with local_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path, error=DataError, advice=ADVICE) as file:
        yield file


@contextmanager
def local_errors(folder: Path) -> Iterator[None]:
    """Inside, a failing file operation is a DataError that names `folder` and what to set."""
    with os_errors(folder, DataError, ADVICE):
        yield
