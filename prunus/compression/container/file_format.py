"""The framing and the dtypes that writer and reader share. SPEC.md is the specification."""

import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from prunus.errors import NotAContainerError, SizeLimitError, TruncatedFileError, UnsupportedVersionError

MAGIC = b"\x89prunus\n"
VERSION = 1
PREFIX = struct.Struct("<8sHI")
"""Magic, version, length of the JSON header. The checksum of the header follows the header."""
CHECKSUM = struct.Struct("<I")
MAX_HEADER_BYTES = 4 << 20
"""The header of about 40,000 tensors."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool", "uint8", "int8"),
        *("uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
"""The dtypes that a file may hold, by name."""

PLAIN_DATA = "json"
"""The dtype in the header of a value that is not a tensor."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By item size, the integer dtype as which a real tensor can be viewed bit for bit."""

SIGNED_ZERO_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The float dtypes whose sign bit alone is -0.0."""

Bits = NDArray[np.unsignedinteger]
"""The entries of a tensor as unsigned integers of its item size."""


def checksum(content: bytes | memoryview, previous: int = 0) -> int:
    """CRC-32 of `content`, continued from the checksum `previous`, so that sections cannot be exchanged.

    Args:
        content: The bytes of a section.
        previous: The checksum of all sections before it; 0 for the first section.

    Returns:
        The checksum as an unsigned integer of 32 bits.
    """
    return zlib.crc32(content, previous)


def unsigned_dtype(itemsize: int) -> np.dtype[np.unsignedinteger]:
    """The little-endian unsigned integer dtype of this item size."""
    return np.dtype(f"<u{itemsize}")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor on the CPU, [nbytes] uint8: equal where two tensors are equal bit for bit.

    >>> torch.equal(as_bytes(torch.tensor([0.0])), as_bytes(torch.tensor([-0.0])))
    False
    """
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor read as a matrix: its first axis by all the others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def to_column_major(positions: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Row-major positions as positions in the transposed matrix.

    Args:
        positions: Flat positions in the row-major tensor, [n], from 0 on.
        shape: The shape of the tensor, which is read as a matrix (`matrix_shape`).

    Returns:
        The positions of the same entries in the transposed matrix, [n] int64, in the order of `positions`.
    """
    rows, columns = matrix_shape(shape)
    return positions % columns * rows + positions // columns


def to_row_major(positions: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The inverse of `to_column_major`.

    Args:
        positions: Flat positions in the transposed matrix, [n], from 0 on.
        shape: The shape of the tensor before the transposition.

    Returns:
        The positions of the same entries in the row-major tensor, [n] int64, in the order of `positions`.
    """
    rows, columns = matrix_shape(shape)
    return positions % rows * columns + positions // rows


def byte_planes(values: Bits) -> NDArray[np.uint8]:
    """The bytes of values, most significant first, after a rotation by one bit that puts the sign last.

    The first plane of float32 and bfloat16 is then the exponent, which is far from uniform in most tensors of weights.

    Args:
        values: The bits of n values, [n].

    Returns:
        One row per byte of a value, [item size, n].

    >>> byte_planes(np.array([-1.0, 2.0], "<f4").view("<u4")).tolist()
    [[127, 128], [0, 0], [0, 0], [1, 0]]
    """
    size = values.itemsize
    rotated = (values << 1) | (values >> (8 * size - 1))
    return rotated.astype(f">u{size}").view(np.uint8).reshape(-1, size).T


def from_byte_planes(planes: Sequence[NDArray[np.integer]]) -> Bits:
    """The inverse of `byte_planes`.

    Args:
        planes: The bytes of n values, most significant first, each [n].

    Returns:
        The bits of the values, [n].
    """
    size = len(planes)
    stacked = np.empty((len(planes[0]), size), np.uint8)
    for i, plane in enumerate(planes):
        stacked[:, i] = plane
    rotated = stacked.view(f">u{size}")[:, 0].astype(unsigned_dtype(size))
    return ((rotated >> 1) | (rotated << (8 * size - 1))).astype(rotated.dtype, copy=False)


def parse_prefix(data: bytes | memoryview, file_size: int) -> int:
    """Return the length of the header that a file of `file_size` bytes announces in its first bytes, `data`.

    Args:
        data: The first bytes of the file; further bytes are not read.
        file_size: The size of the whole file in bytes.

    Returns:
        The length of the JSON header in bytes.

    Raises:
        NotAContainerError: The file does not begin with the magic.
        TruncatedFileError: The file is shorter than it announces.
        UnsupportedVersionError: The version is unknown.
        SizeLimitError: The header is longer than any header may be.
    """
    head = bytes(data[: PREFIX.size])
    if head[:8] != MAGIC[: len(head)] or not head:
        raise NotAContainerError(
            f"Expected a prunus file, which begins with {MAGIC!r}, got {head[:8]!r}; `prunus pack` writes one from a "
            "safetensors or torch file."
        )
    if len(head) < PREFIX.size:
        raise TruncatedFileError(
            f"Expected a file of at least {PREFIX.size} bytes, got one that ends after {len(head)}."
        )
    _, version, length = PREFIX.unpack(head)
    if version != VERSION:
        raise UnsupportedVersionError(f"Expected a file of version {VERSION}, got version {version}.")
    if length > MAX_HEADER_BYTES:
        raise SizeLimitError(
            f"Expected a header of at most {MAX_HEADER_BYTES} bytes, but the file announces {length}."
        )
    if length + PREFIX.size + CHECKSUM.size > file_size:
        raise TruncatedFileError(
            f"The file announces a header of {length} bytes, but has {file_size} bytes in all."
        )
    return int(length)
