"""The header: compact JSON with sorted keys, no key twice, no number that is not finite."""

import json
import math
from dataclasses import dataclass

from prunus.compression.container.layout import DTYPES
from prunus.errors import CorruptError

Header = dict[str, object]


@dataclass(frozen=True)
class Entry:
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


def parse_header(content: bytes) -> tuple[Header, tuple[Entry, ...]]:
    """The header back, and its tensors. Raises CorruptError for what no file may say."""
    try:
        header = json.loads(
            content.decode(),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"The header is no JSON that a file may hold: {error}.") from error
    if not isinstance(header, dict) or header.keys() != {"format", "made", "model", "tensors"}:
        raise CorruptError("The header does not hold exactly format, made, model and tensors.")
    model = header["model"]
    if header["format"] != "prunus" or not isinstance(header["made"], dict):
        raise CorruptError(f"The header names the format {header['format']!r:.80}, or made is no object.")
    if model is not None and not _is_model(model):
        raise CorruptError("The header's model is neither null nor a name with arguments.")
    return header, _entries(header["tensors"])


def _entries(rows: object) -> tuple[Entry, ...]:
    """The tensor list of a header, each row checked."""
    if not isinstance(rows, list):
        raise CorruptError("The header's tensors are no list.")
    entries = tuple(_entry(row) for row in rows)
    if len({entry.name for entry in entries}) != len(entries):
        raise CorruptError("The header names a tensor twice.")
    return entries


def _entry(row: object) -> Entry:
    match row:
        case [str(name), str(dtype), list(shape), int(length)] if dtype in DTYPES:
            numbers = [*shape, length]
            # bool is an int to Python; a rank of 64 and 2^62 bytes are where torch itself ends.
            sound = (
                all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) and len(shape) <= 64
            )
            if sound and math.prod(max(side, 1) for side in shape) < 1 << 59:
                return Entry(name, dtype, tuple(shape), length)
    raise CorruptError(f"The header describes a tensor as {row!r:.120}, which is none.")


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
