"""Read files within bounds, and write them so that a partial one never looks complete."""

import gzip
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from prunus.data.root import VARIABLE
from prunus.errors import DataError


def unpacked(path: Path, limit: int) -> bytes:
    """The content of `path`, decompressed if its name ends in .gz; at most `limit` bytes.

    Raises DataError if it cannot be read, is damaged or ends early, or holds more than `limit` bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = cast(BinaryIO, file).read(limit + 1)
    except EOFError as error:
        raise DataError(f"{path} is truncated: its compressed stream has no end; {again(path)}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); {again(path)}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > limit:
        raise DataError(f"{path} holds more than the {limit} bytes expected; {again(path)}")
    return content


def again(path: Path) -> str:
    """What a user does about a damaged file."""
    return f"delete {path} to fetch it again."


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and is removed when it does not.

    Missing folders are made. It is written beside, flushed to disk, then renamed. Raises DataError if the
    folder cannot be made or written, or the disk is full.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with local_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def local_errors(folder: Path) -> Iterator[None]:
    """Inside, a failing file operation is a DataError that names `folder` and what to set."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}; make room there or make it writable, "
            f"or set {VARIABLE} to another data root."
        ) from error
