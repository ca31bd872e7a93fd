"""The header: compact JSON with sorted keys, no key twice, no number that is not finite."""

import json
import math
from dataclasses import dataclass

import numpy as np

from prunus.compression.container.file_format import DTYPES
from prunus.errors import CorruptFileError, SizeLimitError

MOST_VALUES = 1 << 18
"""No header has more commas, colons, lists and objects together: some 37,000 tensors."""
MOST_TEXTS = 1 << 17
"""Nor more texts, those that are keys counted."""
MOST_KEYS = 1 << 15
DEEPEST = 64
"""No list or object of a header lies within more others than this."""

_PIECE = 1 << 16
"""Bytes of a header that are looked at together before it is parsed."""

Header = dict[str, object]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What the header says of one tensor."""

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
        return self.size * DTYPES[self.dtype].itemsize


def header_text(made: object, model: object, tensors: list[list[object]]) -> str:
    """The header of these rows [name, dtype, shape, length]: compact JSON, keys sorted."""
    content = {"format": "prunus", "made": made, "model": model, "tensors": tensors}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_header(content: bytes) -> tuple[Header, tuple[TensorEntry, ...]]:
    """The header back, and its tensors.

    Raises CorruptFileError for what no file may say, and SizeLimitError for more than any file says.
    """
    _check_structure(content)
    try:
        header = json.loads(
            content.decode(),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"The header is no JSON that a file may hold: {error}.") from error
    if b"\\u" in content:
        _check_text(header)
    if not isinstance(header, dict) or header.keys() != {"format", "made", "model", "tensors"}:
        raise CorruptFileError("The header does not hold exactly format, made, model and tensors.")
    model = header["model"]
    if header["format"] != "prunus" or not isinstance(header["made"], dict):
        raise CorruptFileError(f"The header names the format {header['format']!r:.80}, or made is no object.")
    if model is not None and not _is_model(model):
        raise CorruptFileError("The header's model is neither null nor a name with arguments.")
    return header, _entries(header["tensors"])


def _check_structure(content: bytes) -> None:
    """Refuse a header that would take much more memory or stack than its bytes, before it is parsed."""
    if b"\\" in content:
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_quotes = num_values = num_keys = depth = 0
    for start in range(0, len(content), _PIECE):
        piece = np.frombuffer(content[start : start + _PIECE], np.uint8)
        quotes = num_quotes + np.cumsum(piece == ord('"'), dtype=np.int32)
        num_quotes = int(quotes[-1])
        outside = piece[quotes % 2 == 0]  # of all strings, as an even number of quotes comes before
        opening, closing = (outside | 0x20 == ord(bracket) for bracket in "{}")  # "[" | 0x20 is "{"
        depths = depth + np.cumsum(opening.astype(np.int32) - closing)
        if int(depths.max(initial=0)) > DEEPEST:
            raise CorruptFileError(f"The header nests lists and objects more than {DEEPEST} deep.")
        depth = int(depths[-1]) if depths.size else depth
        num_keys += int((outside == ord(":")).sum())
        num_values += int((opening | (outside == ord(",")) | (outside == ord(":"))).sum())
    for what, number, most in (
        ("keys", num_keys, MOST_KEYS),
        ("texts", num_quotes // 2, MOST_TEXTS),
        ("values", num_values, MOST_VALUES),
    ):
        if number > most:
            raise SizeLimitError(f"The header holds {number} {what}; the most allowed is {most}.")


def _check_text(header: object) -> None:
    """Raise CorruptFileError for half of a surrogate pair, which an escape may say and no text may hold."""
    try:
        json.dumps(header, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CorruptFileError(
            f"The header holds text that is not valid Unicode: {error.object[error.start : error.end]!r}."
        ) from error


def _entries(rows: object) -> tuple[TensorEntry, ...]:
    """The tensor list of a header, each row checked."""
    if not isinstance(rows, list):
        raise CorruptFileError("The header's tensors are no list.")
    entries = tuple(_entry(row) for row in rows)
    if len({entry.name for entry in entries}) != len(entries):
        raise CorruptFileError("The header names a tensor twice.")
    return entries


def _entry(row: object) -> TensorEntry:
    match row:
        case [str(name), str(dtype), list(shape), int(length)] if dtype in DTYPES:
            numbers = [*shape, length]
            # bool is an int to Python; a rank of 64 and 2^62 bytes are where torch itself ends.
            sound = (
                all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) and len(shape) <= 64
            )
            if sound and math.prod(max(side, 1) for side in shape) < 1 << 59:
                return TensorEntry(name, dtype, tuple(shape), length)
    raise CorruptFileError(f"The header describes a tensor as {row!r:.120}, which is none.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object holds a key twice")
    return found


def _is_model(model: object) -> bool:
    """{"name": text, "arguments": {text: scalar}}."""
    if not isinstance(model, dict) or model.keys() != {"name", "arguments"}:
        return False
    arguments = model["arguments"]
    return (
        isinstance(model["name"], str)
        and isinstance(arguments, dict)
        and all(value is None or isinstance(value, str | int | float) for value in arguments.values())
    )
