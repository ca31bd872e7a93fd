"""The files of a store: JSON objects and JSON lines that carry a digest of their own content.

A digest field holds the first 32 hexadecimal digits of the SHA-256 of the bytes around it, with zeros in its own place,
so that a change of any bit is found when the file is read, and no second file can disagree. Every write is atomic; the
last line of a file of rows that a killed process wrote in part is dropped.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.errors import NonFiniteError, StoreError, StoreVersionError
from prunus.files import os_errors, write_atomic
from prunus.version import __version__

Row = dict[str, Any]

ADVICE = "free space there, make it writable, or name another store"
ZEROS = "0" * 32
"""The digest field of content that is not sealed yet."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""The names of files and folders of a store, and of experiments."""
_FIELD = re.compile(rb'"digest": ?"([0-9a-f]{32})"')


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Raise an OSError in the block as a StoreError that names `path`."""
    with os_errors(path, StoreError, ADVICE):
        yield


def vanished(what: str) -> StoreError:
    """Return the error for `what`, a store or a folder in it, which was there before."""
    return StoreError(
        f"{what} is not there any more: it was removed, or its disk vanished; mount the disk again, and run the same "
        "command again."
    )


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically.

    Args:
        path: The file; an existing one is replaced. Its folder must exist.
        content: All bytes of the file.

    Raises:
        StoreError: The file cannot be written.
    """
    write_atomic(path, content, error=StoreError, advice=ADVICE)


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises StoreError if it cannot be read, FileNotFoundError if it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error


def seal(content: bytes) -> bytes:
    """Put the digest of `content` into its first digest field, which must hold ZEROS.

    >>> is_intact(seal(b'{"digest": "00000000000000000000000000000000", "level": 0}'))
    True
    """
    match = _FIELD.search(content)
    if match is None:
        raise ValueError("Expected content with a digest field.")
    start, end = match.span(1)
    return content[:start] + _digest(content, start, end) + content[end:]


def is_intact(content: bytes) -> bool:
    """Return whether the first digest field of `content` holds the digest of the bytes around it."""
    match = _FIELD.search(content)
    return match is not None and match[1] == _digest(content, *match.span(1))


def _digest(content: bytes, start: int, end: int) -> bytes:
    view, digest = memoryview(content), hashlib.sha256()
    for part in (view[:start], ZEROS.encode(), view[end:]):
        digest.update(part)
    return digest.hexdigest()[: len(ZEROS)].encode()


def to_json(value: object, path: Path, indent: int | None = None) -> str:
    """Return `value` as JSON for the file `path`.

    Args:
        value: A value of finite numbers, text, true, false, None, lists, tuples and dicts.
        path: The file, which is named in errors.
        indent: The number of spaces per level of nesting. None: all in one line.

    Returns:
        The JSON text, without a line break at its end.

    Raises:
        NonFiniteError: The value contains NaN or infinity.
        StoreError: The value contains an object that JSON has no form for.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(
            f"Expected finite numbers in {path.name} of {path.parent.name}, got NaN or infinity."
        ) from error
    except TypeError as error:
        raise StoreError(f"Expected plain values in {path.name} of {path.parent.name}: {error}.") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as an indented JSON object that carries its digest.

    Args:
        path: The file; an existing one is replaced. Its folder must exist.
        value: Finite numbers, text, true, false, None, lists, tuples and dicts by name; the name "digest" is reserved.

    Raises:
        NonFiniteError: The value contains NaN or infinity; nothing is written.
        StoreError: The value contains an object that JSON has no form for, or the file cannot be written.
    """
    write_file(path, seal(f"{to_json({'digest': ZEROS, **value}, path, indent=1)}\n".encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote.

    Raises:
        StoreError: The file is missing or cannot be read, or its content is not what was written.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing.") from None
    value = _parse(content)
    if value is None:
        raise StoreError(f"{path} is damaged: its content does not have the digest that was written with it.")
    return value


def check_version(value: object, known: Collection[str], path: Path, writer: object = None) -> None:
    """Raise an error if content of a file that is intact, but cannot be read, is that of another version of prunus.

    Args:
        value: The JSON object that was read.
        known: The names of the fields that this version writes.
        path: The file, which is named in errors.
        writer: The version that wrote the file; None if the file does not state it.

    Raises:
        StoreVersionError: The object has a field that is not known, or the writer is not this version.
    """
    unknown = value.keys() - known if isinstance(value, Mapping) else ()
    if unknown or writer not in (None, __version__):
        by = "another version of prunus" if writer in (None, __version__) else f"prunus {writer}"
        raise StoreVersionError(
            f"{path} was written by {by}, and this is prunus {__version__}; update prunus, or use that version, to "
            "read it."
        )


def read_rows(path: Path) -> list[Row]:
    """Read the complete lines of a file of rows; no rows if there is no such file.

    Raises:
        StoreError: A line before the last is not what was written.
    """
    return _read_rows(path)[0]


def append_rows(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Append rows and flush them to the disk.

    Args:
        path: A file of rows, or a new name.
        rows: JSON objects with finite numbers.
        keys: A row that has all of these keys takes the place of an earlier row with the same values of them.

    Raises:
        NonFiniteError: A row contains NaN or infinity; nothing is written.
        StoreError: The file is damaged or cannot be written.
    """
    earlier, length = _read_rows(path)
    by_key = {_key(row, keys): row for row in (*earlier, *rows)}  # a key that exists keeps its position
    if len(by_key) < len(earlier) + len(rows):
        write_file(path, to_lines(path, [*by_key.values()]))
        return
    content = to_lines(path, rows)
    with store_errors(path), path.open("ab") as file:
        file.truncate(length)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def to_lines(path: Path, rows: Sequence[Row]) -> bytes:
    """Return rows as JSON lines for the file `path`, each with its digest.

    Args:
        path: The file, which is named in errors.
        rows: JSON objects with finite numbers; the name "digest" is reserved.

    Returns:
        The lines in UTF-8, each with a line break at its end; empty if there are no rows.

    Raises:
        NonFiniteError: A row contains NaN or infinity.
        StoreError: A row contains an object that JSON has no form for.
    """
    lines = (seal(to_json({"digest": ZEROS, **row}, path).encode()) for row in rows)
    return b"".join(line + b"\n" for line in lines)


def drop_partial_line(path: Path) -> None:
    """Remove a last line that a killed process wrote in part."""
    length = _read_rows(path)[1]
    if path.exists() and path.stat().st_size > length:
        os.truncate(path, length)


def _read_rows(path: Path) -> tuple[list[Row], int]:
    """Return the rows and how many bytes they take."""
    try:
        content = read_file(path)
    except FileNotFoundError:
        return [], 0
    complete = content[: content.rfind(b"\n") + 1]
    lines = complete.split(b"\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            if number == len(lines):  # a power cut may leave zeros in place of the last line
                return rows, len(complete) - len(line) - 1
            raise StoreError(f"{path} is damaged: line {number} does not have the digest written with it.")
        rows.append(row)
    return rows, len(complete)


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return a JSON object without its digest; None if it is not what was written."""
    if not is_intact(content):
        return None
    try:
        value = json.loads(content.decode())
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    value.pop("digest", None)
    return value


def _key(row: Row, keys: Sequence[str]) -> object:
    """Return the values of the keys; of a row that lacks one, an object that equals no other."""
    return tuple(row[key] for key in keys) if keys and all(key in row for key in keys) else object()
