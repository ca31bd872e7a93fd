"""The blob of one tensor: flags, and streams of positions, codes and values. See "Blob of a tensor" in SPEC.md."""

import struct
from dataclasses import dataclass

import torch

from prunus.compression.codecs.bitstream import MAX_ALPHABET, Data
from prunus.errors import CorruptFileError, UnsupportedVersionError
from prunus.seeded_tensors import SeededTensor

SPARSE, CODEBOOK, HALF, COLUMN_MAJOR, GENERATED, TIED, PLANES = 1, 2, 4, 8, 16, 32, 64
"""Flags of a blob: positions are stored; values are in a codebook; values are float16; positions count down
the columns; the values in the codebook are factors of numbers that a seed generates; an earlier tensor is meant;
the bytes of values are entropy-coded."""

CODEC_NUMBERS = {"bitpack": 0, "huffman": 1, "range": 2}
GENERATOR_NUMBERS = {"signs": 0, "normals": 1}
SEED = struct.Struct("<BQf")
"""Generator, seed and scale."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A sequence of encoded symbols."""

    codec: str
    data: Data


@dataclass(frozen=True, slots=True)
class TensorBlob:
    """One tensor as its streams: values alone, or with positions, or with a codebook, or with both."""

    flags: int
    entries: int
    """Stored entries, fillers included; without positions, the size of the tensor."""
    values: Data
    """The codebook where there is one, else the entries themselves; empty where those are in byte planes."""
    index_bits: int = 0
    gaps: Stream | None = None
    """Differences between the positions of the stored entries."""
    codes: Stream | None = None
    """The index in the codebook of each stored entry."""
    planes: tuple[Stream, ...] = ()
    """The bytes of all stored entries, one stream for each byte of an entry; see `byte_planes`."""
    generated: SeededTensor | None = None
    codebook_size: int = 0
    """Number of values in the codebook; set in a blob that was read."""
    tied_to: int | None = None
    """The number, from 0, of the earlier tensor in the file that this one is; it has no entries of its own."""

    def to_bytes(self) -> bytes:
        """The blob as the file holds it."""
        parts: list[Data] = [bytes([self.flags])]
        if self.tied_to is not None:
            return b"".join([*parts, varint(self.tied_to)])
        parts += [bytes([CODEC_NUMBERS[s.codec]]) for s in (self.gaps, self.codes) if s is not None]
        if self.gaps is not None:
            parts += [bytes([self.index_bits]), varint(self.entries)]
            parts += [varint(len(self.gaps.data)), self.gaps.data]
        if self.generated is not None:
            number = GENERATOR_NUMBERS[self.generated.generator]
            parts.append(SEED.pack(number, self.generated.seed, self.generated.scale))
        if self.codes is not None:
            parts += [varint(len(self.values)), self.values, self.codes.data]
        elif self.planes:
            for plane in self.planes:
                parts += [bytes([CODEC_NUMBERS[plane.codec]]), varint(len(plane.data)), plane.data]
        else:
            parts.append(self.values)
        return b"".join(parts)


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits per byte, lowest first, the top bit set if more follow (LEB128)."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class ByteReader:
    """Reads forward through untrusted bytes. Every length is checked before it is used."""

    def __init__(self, data: memoryview, label: str) -> None:
        self.data, self.label, self.position = data, label, 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        remaining = len(self.data) - self.position
        if size > remaining:
            raise CorruptFileError(f"{self.label} announces {size} bytes, but only {remaining} follow.")
        self.position += size
        return self.data[self.position - size : self.position]

    def rest(self) -> memoryview:
        """All remaining bytes."""
        return self.take(len(self.data) - self.position)

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
        raise CorruptFileError(f"{self.label} holds a number of more than 63 bits.")


def parse_blob(data: memoryview, entries: int, dtype: torch.dtype, label: str) -> TensorBlob:
    """Split the blob of a tensor into its streams, without decoding them.

    Args:
        data: The bytes of the blob.
        entries: Number of entries of the tensor.
        dtype: Dtype of the tensor.
        label: What the blob is called in errors.

    Returns:
        The blob, whose streams are views of `data`.

    Raises:
        CorruptFileError: The streams contradict the tensor or each other.
        UnsupportedVersionError: The generator of the tensor is unknown.
    """
    reader = ByteReader(data, label)
    flags = reader.byte()
    if flags == TIED:
        tied_to = reader.varint()
        if reader.rest():
            raise CorruptFileError(f"{label} has bytes after the number of the tensor that it refers to.")
        return TensorBlob(TIED, 0, b"", tied_to=tied_to)
    _check_flags(flags, dtype, label)
    codecs = [_parse_codec(reader) for flag in (SPARSE, CODEBOOK) if flags & flag]
    index_bits, gaps, codes, codebook_size = 0, None, None, 0
    if flags & SPARSE:
        index_bits, stored = reader.byte(), reader.varint()
        if not 1 <= index_bits <= 16 or stored > entries:
            raise CorruptFileError(
                f"{label} has {stored} entries at {index_bits} bits in a tensor of {entries}."
            )
        entries = stored
        gaps = Stream(codecs[0], reader.take(reader.varint()))
    generated = _parse_seed(reader, label) if flags & GENERATED else None
    itemsize = 2 if flags & HALF else dtype.itemsize
    if flags & PLANES:
        planes = tuple(Stream(_parse_codec(reader), reader.take(reader.varint())) for _ in range(itemsize))
        if reader.rest():
            raise CorruptFileError(f"{label} has bytes after its {itemsize} byte planes.")
        return TensorBlob(flags, entries, b"", index_bits, gaps, planes=planes)
    values = reader.take(reader.varint()) if flags & CODEBOOK else reader.rest()
    num_values, remainder = divmod(len(values), itemsize)
    if remainder:
        raise CorruptFileError(f"{label} holds {len(values)} bytes of values, not a multiple of {itemsize}.")
    if flags & CODEBOOK:
        if not values:
            raise CorruptFileError(f"{label} has an empty codebook.")
        if num_values > min(max(entries, 1), MAX_ALPHABET):
            raise CorruptFileError(f"{label} has a codebook of {num_values} values for {entries} entries.")
        codes, codebook_size = Stream(codecs[-1], reader.rest()), num_values
    elif num_values != entries:
        raise CorruptFileError(f"{label} holds {num_values} values for {entries} entries.")
    return TensorBlob(flags, entries, values, index_bits, gaps, codes, (), generated, codebook_size)


def _check_flags(flags: int, dtype: torch.dtype, label: str) -> None:
    combinable = not flags & ~(SPARSE | CODEBOOK | HALF | COLUMN_MAJOR | PLANES)
    combinable = combinable and not (flags & CODEBOOK and flags & PLANES)
    if not (combinable or flags == GENERATED | CODEBOOK) or (flags & COLUMN_MAJOR and not flags & SPARSE):
        raise CorruptFileError(f"{label} has flags {flags:#04x}, which are not defined.")
    if (flags and not dtype.is_floating_point) or (flags & (HALF | GENERATED) and dtype != torch.float32):
        raise CorruptFileError(
            f"{label} has flags {flags:#04x}, which are not allowed for {str(dtype).removeprefix('torch.')}."
        )


def _parse_codec(reader: ByteReader) -> str:
    number = reader.byte()
    names = {number: name for name, number in CODEC_NUMBERS.items()}
    if number not in names:
        raise CorruptFileError(f"{reader.label} has codec {number}; expected one of {names}.")
    return names[number]


def _parse_seed(reader: ByteReader, label: str) -> SeededTensor:
    number, seed, scale = SEED.unpack(reader.take(SEED.size))
    names = {number: name for name, number in GENERATOR_NUMBERS.items()}
    if number not in names:
        raise UnsupportedVersionError(
            f"{label} has generator {number}, expected one of {names}; read it with a newer version of prunus."
        )
    return SeededTensor(names[number], seed, scale)
