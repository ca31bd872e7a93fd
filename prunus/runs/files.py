"""Files of a store. What fails is a StoreError in one sentence."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.errors import NonFiniteError, StoreError
from prunus.files import os_errors, write_atomic

ADVICE = "make room there, make it writable, or name another store"


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Inside, a failing file operation is a StoreError that names `path`."""
    with os_errors(path, StoreError, ADVICE):
        yield


def write(path: Path, content: bytes) -> None:
    """`content` as the file `path`; a reader finds the old file or the new one, also after a power cut."""
    write_atomic(path, content, error=StoreError, advice=ADVICE)


def write_json(path: Path, value: object) -> None:
    """`value` as an indented JSON file."""
    write(path, f"{to_json(value, path, indent=1)}\n".encode())


def to_json(value: object, path: Path, indent: int | None = None) -> str:
    """`value` as JSON for the file `path`."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"{path.name} of {path.parent.name} was to hold NaN or infinity.") from error
    except TypeError as error:
        raise StoreError(f"{path.name} of {path.parent.name} holds plain values only: {error}.") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises StoreError if the file cannot be read or is damaged."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({error}).") from error
