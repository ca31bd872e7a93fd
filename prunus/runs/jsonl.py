"""A file of rows: one JSON object a line. A line torn by a kill is not read, and cut off before the next append."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus.errors import StoreError
from prunus.runs.files import store_errors, to_json, write

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The whole lines of `path`; none where there is no such file."""
    return _read(path)[0]


def append_rows(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Append `rows`; one that has all of `keys`, with the values of an earlier row, takes that row's place."""
    earlier, length = _read(path)
    places = {_key(row, keys): place for place, row in enumerate(earlier) if _key(row, keys)}
    if any(_key(row, keys) in places for row in rows):
        for row in rows:
            place = places.get(_key(row, keys))
            if place is None:
                earlier.append(row)
            else:
                earlier[place] = row
        write(path, _lines(path, earlier))
        return
    content = _lines(path, rows)
    with store_errors(path), path.open("ab") as file:
        file.truncate(length)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def truncate_partial_line(path: Path) -> None:
    """Cut off what a killed writer left of a line."""
    length = _read(path)[1]
    if path.exists() and path.stat().st_size > length:
        os.truncate(path, length)


def _key(row: Row, keys: Sequence[str]) -> tuple[Any, ...] | None:
    return tuple(row[key] for key in keys) if keys and all(key in row for key in keys) else None


def _lines(path: Path, rows: Sequence[Row]) -> bytes:
    return "".join(f"{to_json(row, path)}\n" for row in rows).encode()


def _read(path: Path) -> tuple[list[Row], int]:
    """The rows, and the bytes they take."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # a power cut may leave zeros where the last line was to be
                return rows, len(whole) - len(line) - 1
            raise StoreError(f"{path} is damaged: line {number} is not JSON ({error}).") from error
    return rows, len(whole)
