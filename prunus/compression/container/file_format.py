"""What writer and reader agree on: framing, dtypes, and the blob of a tensor. SPEC.md says it in words."""

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prunus.compression.codecs.bitstream import LARGEST_ALPHABET, Data
from prunus.errors import (
    CorruptFileError,
    NotAContainerError,
    SizeLimitError,
    TruncatedFileError,
    UnsupportedVersionError,
)
from prunus.seeded_tensors import CHUNK, SeededTensor

MAGIC = b"\x89prunus\n"
VERSION = 1
PREFIX = struct.Struct("<8sHI")
"""Magic, version, length of the JSON header; its checksum follows the header."""
CHECKSUM = struct.Struct("<I")
LONGEST_HEADER = 4 << 20
"""No header is longer, in bytes: some 40,000 tensors."""

HOLES, SHARED, HALF, COLUMNS, GENERATED = 1, 2, 4, 8, 16
"""Flags of a blob: positions are coded; values are in a codebook; values are float16; columns come
first; the values in the codebook are factors of what a seed generates."""

CODEC_NUMBERS = {"bitpack": 0, "huffman": 1, "range": 2}
GENERATOR_NUMBERS = {"signs": 0, "normals": 1}
SEED = struct.Struct("<BQf")
"""Generator, seed and scale."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool", "uint8", "int8"),
        *("uint16", "int16", "uint32", "int32", "uint64", "int64"),
    )
}
"""The dtypes a file may hold, by name."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype of each item size, as which any tensor can be viewed bit for bit."""

_EXPONENTS = {
    torch.float64: 0x7FF0 << 48,
    torch.float32: 0x7F80 << 16,
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
}
"""The bits of infinity: an exponent of ones, which only infinities and NaN have."""

Bits = NDArray[np.unsignedinteger]
"""The entries of a tensor as unsigned integers of its item size: what the coder sees of a number."""


def checksum(content: bytes | memoryview, before: int = 0) -> int:
    """CRC-32 of `content`, carried on from the checksum `before`, so that sections cannot change places."""
    return zlib.crc32(content, before)


def unsigned(itemsize: int) -> np.dtype[np.unsignedinteger]:
    """The little-endian unsigned dtype of this many bytes."""
    return np.dtype(f"<u{itemsize}")


def all_finite(bits: Bits, dtype: torch.dtype) -> bool:
    """Whether none of these entries of a float dtype is NaN or infinite; piece after piece, to take no memory."""
    exponent = bits.dtype.type(_EXPONENTS[dtype])
    pieces = (bits[start : start + CHUNK] for start in range(0, bits.size, CHUNK))
    return all(int((piece & exponent).max()) < exponent for piece in pieces)


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as a matrix: its first axis by all the others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def columns_first(positions: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Row-major positions as those of the transposed matrix."""
    rows, columns = rows_and_columns(shape)
    return positions % columns * rows + positions // columns


def rows_first(positions: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The inverse of `columns_first`."""
    rows, columns = rows_and_columns(shape)
    return positions % rows * columns + positions // rows


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, lowest first, the top bit set if more follow (LEB128)."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@dataclass(frozen=True, slots=True)
class Stream:
    """A row of symbols as it lies in a blob."""

    codec: str
    data: Data


@dataclass(frozen=True, slots=True)
class TensorBlob:
    """One tensor as its streams: values alone, or with positions, or with a codebook, or both.

    `entries` counts what the streams hold, fillers included; without holes it is the size of the tensor.
    With a codebook, `values` is the codebook and `codes` says which of them each entry is; otherwise
    `values` are the entries themselves.
    """

    flags: int
    entries: int
    values: Data
    index_bits: int = 0
    gaps: Stream | None = None
    codes: Stream | None = None
    generated: SeededTensor | None = None
    codebook_size: int = 0
    """Values in the codebook of a blob that was read."""

    def to_bytes(self) -> bytes:
        """The blob as the file holds it."""
        parts: list[Data] = [bytes([self.flags])]
        for stream in (self.gaps, self.codes):
            if stream is not None:
                parts.append(bytes([CODEC_NUMBERS[stream.codec]]))
        if self.gaps is not None:
            parts += [
                bytes([self.index_bits]),
                varint(self.entries),
                varint(len(self.gaps.data)),
                self.gaps.data,
            ]
        if self.generated is not None:
            how = self.generated
            parts.append(SEED.pack(GENERATOR_NUMBERS[how.generator], how.seed, how.scale))
        if self.codes is not None:
            parts += [varint(len(self.values)), self.values, self.codes.data]
        else:
            parts.append(self.values)
        return b"".join(parts)


class ByteReader:
    """Reads forward through bytes that may lie about their length."""

    def __init__(self, data: memoryview, what: str) -> None:
        self.data, self.what, self.at = data, what, 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        if size > len(self.data) - self.at:
            raise CorruptFileError(
                f"{self.what} announces {size} bytes where {len(self.data) - self.at} are left."
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self) -> memoryview:
        """All that is left."""
        return self.take(len(self.data) - self.at)

    def byte(self) -> int:
        """One byte as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next number written by `varint`, below 2^63."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise CorruptFileError(f"{self.what} holds a number of more than 63 bits.")


def parse_blob(data: memoryview, entries: int, dtype: torch.dtype, what: str) -> TensorBlob:
    """The streams of a tensor of `entries` entries of `dtype`, not decoded yet.

    Raises CorruptFileError where they contradict the tensor or each other as far as can be seen without decoding, and
    UnsupportedVersionError for a generator that is not known.
    """
    cursor = ByteReader(data, what)
    flags = cursor.byte()
    alone = GENERATED | SHARED
    if (flags & ~(HOLES | SHARED | HALF | COLUMNS) and flags != alone) or (
        flags & COLUMNS and not flags & HOLES
    ):
        raise CorruptFileError(f"{what} has flags {flags:#04x}, which mean nothing.")
    if (flags and not dtype.is_floating_point) or (flags & (HALF | GENERATED) and dtype != torch.float32):
        raise CorruptFileError(
            f"{what} has flags {flags:#04x}, which {str(dtype).removeprefix('torch.')} never has."
        )
    names = {number: name for name, number in CODEC_NUMBERS.items()}
    used = [cursor.byte() for flag in (HOLES, SHARED) if flags & flag]
    if any(number not in names for number in used):
        raise CorruptFileError(f"{what} is coded by codec {max(used)}, which there is not.")
    index_bits, gaps, codes, codebook_size = 0, None, None, 0
    if flags & HOLES:
        index_bits, stored = cursor.byte(), cursor.varint()
        if not 1 <= index_bits <= 16 or stored > entries:
            raise CorruptFileError(
                f"{what} has {stored} entries at {index_bits} bits in a tensor of {entries}."
            )
        entries = stored
        gaps = Stream(names[used[0]], cursor.take(cursor.varint()))
    generated = _generated(cursor, what) if flags & GENERATED else None
    itemsize = 2 if flags & HALF else dtype.itemsize
    values = cursor.take(cursor.varint()) if flags & SHARED else cursor.rest()
    num_values, remainder = divmod(len(values), itemsize)
    if remainder:
        raise CorruptFileError(f"{what} holds values that are no multiple of {itemsize} bytes.")
    if flags & SHARED:
        if not values:
            raise CorruptFileError(f"{what} has an empty codebook.")
        if num_values > min(max(entries, 1), LARGEST_ALPHABET):
            raise CorruptFileError(f"{what} has a codebook of {num_values} values for {entries} entries.")
        codes, codebook_size = Stream(names[used[-1]], cursor.rest()), num_values
    elif num_values != entries:
        raise CorruptFileError(f"{what} holds {num_values} values for {entries} entries.")
    return TensorBlob(flags, entries, values, index_bits, gaps, codes, generated, codebook_size)


def _generated(cursor: ByteReader, what: str) -> SeededTensor:
    number, seed, scale = SEED.unpack(cursor.take(SEED.size))
    names = {number: name for name, number in GENERATOR_NUMBERS.items()}
    if number not in names:
        raise UnsupportedVersionError(
            f"{what} comes from generator {number}, which this library does not know."
        )
    return SeededTensor(names[number], seed, scale)


def parse_prefix(data: bytes | memoryview, file_size: int) -> int:
    """The length of the header that a file of `file_size` bytes, beginning with `data`, announces."""
    head = bytes(data[: PREFIX.size])
    if head[:8] != MAGIC[: len(head)] or not head:
        raise NotAContainerError(f"This is no prunus file: it begins with {head[:8]!r}, not {MAGIC!r}.")
    if len(head) < PREFIX.size:
        raise TruncatedFileError(
            f"The file ends after {len(head)} bytes, inside the {PREFIX.size} it begins with."
        )
    _, version, length = PREFIX.unpack(head)
    if version != VERSION:
        raise UnsupportedVersionError(
            f"The file is of version {version}; this library reads version {VERSION}."
        )
    if length > LONGEST_HEADER:
        raise SizeLimitError(
            f"The file announces a header of {length} bytes; the most allowed is {LONGEST_HEADER}."
        )
    if length + PREFIX.size + CHECKSUM.size > file_size:
        raise TruncatedFileError(f"The file announces a header of {length} bytes but has {file_size} in all.")
    return int(length)
