"""The header: compact JSON with sorted keys, without duplicate keys and without non-finite numbers."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.compression.container.file_format import DTYPES, PLAIN_DATA
from prunus.errors import CorruptFileError, SizeLimitError

MAX_VALUES = 1 << 18
"""The most commas, colons, lists and objects together: about 37,000 tensors."""
MAX_STRINGS = 1 << 17
"""The most strings, including keys."""
MAX_KEYS = 1 << 15
MAX_DEPTH = 64
"""The deepest nesting of lists and objects."""

_CHUNK = 1 << 16
"""Bytes of a header that are scanned at a time."""

Header = dict[str, object]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Name, dtype, shape and blob length of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    """Bytes of its blob."""

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.length if self.is_plain_data else self.size * DTYPES[self.dtype].itemsize

    @property
    def is_plain_data(self) -> bool:
        """Whether the value is not a tensor."""
        return self.dtype == PLAIN_DATA


def header_text(metadata: object, model: object, rows: list[list[object]]) -> str:
    """The header with these rows [name, dtype, shape, length].

    Args:
        metadata: A JSON object about how the tensors were made; the key `made`.
        model: Name and arguments of a built-in model, or None; the key `model`.
        rows: Name, dtype, shape and blob length in bytes of each tensor; the key `tensors`.

    Returns:
        JSON on one line with sorted keys, so that equal contents give equal texts.

    Raises:
        TypeError, ValueError, RecursionError: The metadata or the model cannot be represented as JSON; NaN and infinity
            cannot.
    """
    content = {"format": "prunus", "made": metadata, "model": model, "tensors": rows}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_header(content: bytes) -> tuple[Header, tuple[TensorEntry, ...]]:
    """Parse a header and the list of its tensors.

    Raises:
        CorruptFileError: The header is not what the specification allows.
        SizeLimitError: The header holds more values, strings or keys than allowed.
    """
    header = parse_json(content, "The header")
    if not isinstance(header, dict) or header.keys() != {"format", "made", "model", "tensors"}:
        raise CorruptFileError("Expected the keys format, made, model and tensors in the header.")
    model = header["model"]
    if header["format"] != "prunus":
        raise CorruptFileError(f"Expected the format 'prunus' in the header, got {header['format']!r:.80}.")
    if not isinstance(header["made"], dict):
        raise CorruptFileError(
            f"Expected an object as the metadata of the header, got {header['made']!r:.80}."
        )
    if model is not None and not _is_model(model):
        raise CorruptFileError("Expected null or a name with arguments as the model of the header.")
    return header, _entries(header["tensors"])


def parse_json(content: bytes, label: str) -> Any:
    """Parse JSON as the specification allows it: bounded, without duplicate keys and without non-finite numbers.

    Args:
        content: UTF-8.
        label: What it is called in errors.

    Returns:
        The value.

    Raises:
        CorruptFileError: It is not such JSON.
        SizeLimitError: It holds more values, strings or keys than allowed.
    """
    check_structure(content, label)
    try:
        value = json.loads(
            content.decode(), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{label} is corrupt: invalid JSON: {error}.") from error
    if b"\\u" in content:
        _check_unicode(value, label)
    return value


def check_structure(content: bytes, label: str) -> None:
    """Refuse, before parsing, JSON that would take much more memory or stack than its bytes.

    Args:
        content: The JSON.
        label: What it is called in errors.

    Raises:
        CorruptFileError: It nests too deep.
        SizeLimitError: It holds more values, strings or keys than allowed.
    """
    if b"\\" in content:
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_quotes = num_values = num_keys = depth = 0
    for start in range(0, len(content), _CHUNK):
        chunk = np.frombuffer(content[start : start + _CHUNK], np.uint8)
        quotes = num_quotes + np.cumsum(chunk == ord('"'), dtype=np.int32)
        num_quotes = int(quotes[-1])
        outside = chunk[quotes % 2 == 0]  # of strings: an even number of quotes precedes
        opening, closing = (outside | 0x20 == ord(bracket) for bracket in "{}")  # "[" | 0x20 is "{"
        depths = depth + np.cumsum(opening.astype(np.int32) - closing)
        if int(depths.max(initial=0)) > MAX_DEPTH:
            raise CorruptFileError(f"{label} nests lists and objects more than {MAX_DEPTH} levels deep.")
        depth = int(depths[-1]) if depths.size else depth
        num_keys += int((outside == ord(":")).sum())
        num_values += int((opening | (outside == ord(",")) | (outside == ord(":"))).sum())
    for what, number, limit in (
        ("keys", num_keys, MAX_KEYS),
        ("strings", num_quotes // 2, MAX_STRINGS),
        ("values", num_values, MAX_VALUES),
    ):
        if number > limit:
            raise SizeLimitError(f"{label} holds {number} {what}; expected at most {limit}.")


def _check_unicode(value: object, label: str) -> None:
    """Refuse half of a surrogate pair, which an escape can express but which is not valid Unicode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CorruptFileError(
            f"{label} holds text that is not valid Unicode: {error.object[error.start : error.end]!r}."
        ) from error


def _entries(rows: object) -> tuple[TensorEntry, ...]:
    """The tensor list of a header, each row checked."""
    if not isinstance(rows, list):
        raise CorruptFileError("Expected a list of tensors in the header.")
    entries = tuple(_entry(row) for row in rows)
    if len({entry.name for entry in entries}) != len(entries):
        raise CorruptFileError("The header names a tensor twice.")
    return entries


def _entry(row: object) -> TensorEntry:
    match row:
        case [str(name), str(dtype), list(shape), int(length)] if dtype in DTYPES or (
            dtype == PLAIN_DATA and not shape
        ):
            numbers = [*shape, length]
            # bool is a subclass of int; a rank of 64 and 2^62 bytes are the limits of torch itself.
            in_range = all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
            if in_range and len(shape) <= 64 and math.prod(max(side, 1) for side in shape) < 1 << 59:
                return TensorEntry(name, dtype, tuple(shape), length)
    raise CorruptFileError(f"Expected [name, dtype, shape, length] of a tensor, got {row!r:.120}.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object holds a key twice")
    return result


def _is_model(model: object) -> bool:
    """Whether `model` is {"name": string, "arguments": {string: scalar}}."""
    match model:
        case {"name": str(), "arguments": dict(arguments), **others} if not others:
            return all(isinstance(value, str | int | float | None) for value in arguments.values())
    return False
