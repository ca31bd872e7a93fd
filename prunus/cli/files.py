"""Files that a command writes: checked before the work, whole or not at all after it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunus.errors import PrunusError


def check_writable(path: Path) -> None:
    """Raise PrunusError, before hours of work, where no file `path` could be written."""
    if path.is_dir():
        raise PrunusError(f"{path} cannot be written: it is a folder.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PrunusError(
            f"{path} cannot be written: {error.strerror or error}; "
            f"is {path.parent} a folder you may write to?"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write beside, to disk, then rename. Raises PrunusError and leaves what was there before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise PrunusError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """Make `path` and the folders above it; those that are still empty after an error are removed again."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def make_folder(path: Path) -> None:
    """Make `path` and the folders above it. Raises PrunusError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrunusError(f"The folder {path} cannot be made: {error.strerror or error}.") from error
