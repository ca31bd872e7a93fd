"""Files of a store: written beside, flushed to the disk, renamed. What fails is a StoreError in one sentence."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.errors import NotFiniteError, StoreError

PART = ".part"


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Inside, a failing file operation is a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}; make room there, make it writable, or name "
            "another store."
        ) from error


def write(path: Path, content: bytes) -> None:
    """`content` as the file `path`; a reader finds the old file or the new one, also after a power cut."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    with storing(path):
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """`value` as an indented JSON file."""
    write(path, f"{to_json(value, path, indent=1)}\n".encode())


def to_json(value: object, path: Path, indent: int | None = None) -> str:
    """`value` as JSON for the file `path`."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise NotFiniteError(f"{path.name} of {path.parent.name} was to hold NaN or infinity.") from error
    except TypeError as error:
        raise StoreError(f"{path.name} of {path.parent.name} holds plain values only: {error}.") from error


def read_json(path: Path, remedy: str = "") -> Any:
    """The value of a JSON file. Raises StoreError; if the file is damaged, with `remedy`, what to do about it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({error}){remedy}.") from error


def sync(folder: Path) -> None:
    """Flush the names in `folder` to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
