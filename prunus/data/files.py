"""The data root, and reading and writing of the files in it: reads are bounded, and partial files are never visible."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from prunus.errors import DataError
from prunus.files import open_atomic, os_errors

VARIABLE = "PRUNUS_DATA"
ADVICE = f"make room there or make it writable, or set {VARIABLE} to another data root"


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the downloaded data sets: `root`, else $PRUNUS_DATA, else ~/.cache/prunus. Nothing is created.

    Raises:
        DataError: The path contains "~" and there is no home directory.
    """
    path = root or os.environ.get(VARIABLE) or "~/.cache/prunus"
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(
            f"The data root {path} needs a home directory, but there is none; set {VARIABLE}."
        ) from error


def read_maybe_gzipped(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Args:
        path: The file; it is decompressed if its name ends in .gz.
        limit: The most bytes, after decompression. A larger file is not read to its end.

    Returns:
        The content, decompressed.

    Raises:
        DataError: The file cannot be read, is damaged, ends early, or is too large.
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
        raise DataError(f"{path} contains more than the {limit} bytes expected; {redownload_hint(path)}")
    return content


def redownload_hint(path: Path) -> str:
    """The advice on a damaged file, as the end of a sentence."""
    return f"delete {path} to download it again."


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets the name `path` when the block ends without an exception, and is removed otherwise.

    Missing folders are created.

    Raises:
        DataError: The folder cannot be created or written, or the disk is full.
    """
    with local_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path, error=DataError, advice=ADVICE) as file:
        yield file


@contextmanager
def local_errors(folder: Path) -> Iterator[None]:
    """Raise an OSError in the block as a DataError that names `folder` and says how to choose another data root."""
    with os_errors(folder, DataError, ADVICE):
        yield
