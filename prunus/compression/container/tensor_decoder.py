"""Decode one tensor from its blob, in chunks, so that little memory is used besides the tensor."""

from collections.abc import Iterator
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prunus.compression.codecs import CODECS, relative_index
from prunus.compression.codecs.bitstream import CHUNK
from prunus.compression.container.file_format import (
    DTYPES,
    Bits,
    from_byte_planes,
    to_row_major,
    unsigned_dtype,
)
from prunus.compression.container.header import TensorEntry
from prunus.compression.container.seeded_encoder import decode_seeded
from prunus.compression.container.tensor_blob import COLUMN_MAJOR, HALF, TensorBlob
from prunus.errors import CorruptFileError

T = TypeVar("T")


def decode_tensor(entry: TensorEntry, blob: TensorBlob) -> Tensor:
    """Decode one tensor.

    Args:
        entry: Name, dtype and shape of the tensor, from the header.
        blob: The blob of the tensor.

    Returns:
        The tensor, on the CPU, equal bit for bit to the one that was written; of a tensor that is stored as a seed,
        -0.0 is 0.0.

    Raises:
        CorruptFileError: The streams contradict the shape of the tensor or each other.
    """
    dtype, label = DTYPES[entry.dtype], f"The blob of {entry.name!r}"
    if not blob.flags:
        return _as_tensor(_plain(dtype, blob, label), entry)
    stored_dtype = torch.float16 if blob.flags & HALF else dtype
    values = np.frombuffer(blob.values, unsigned_dtype(stored_dtype.itemsize))
    if blob.codes is not None and blob.flags & HALF:
        values = _as_float32(values)
    if blob.generated is not None:
        if not np.isfinite(values.view("<f4")).all():
            raise CorruptFileError(f"{label} holds values that are NaN or infinite as factors of a seed.")
        bits = decode_seeded(_start(_value_chunks(values, blob)), entry.size, blob.generated, label)
    elif blob.codes is None and blob.gaps is None and not blob.planes:
        bits = _as_float32(values)
    else:
        bits = _place(_value_chunks(values, blob), entry, blob, label)
    return _as_tensor(bits, entry)


def _as_tensor(bits: Bits, entry: TensorEntry) -> Tensor:
    native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native.view(np.uint8)).view(DTYPES[entry.dtype]).reshape(entry.shape)


def _plain(dtype: torch.dtype, blob: TensorBlob, label: str) -> Bits:
    """A copy of entries that are stored as they are."""
    itemsize = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    stored = np.frombuffer(blob.values, unsigned_dtype(itemsize))
    if dtype == torch.bool and stored.size and int(stored.max()) > 1:
        raise CorruptFileError(f"{label} holds a boolean value that is neither 0 nor 1.")
    return stored.copy()


def _start(chunks: Iterator[T]) -> Iterator[T]:
    """The same chunks, the first decoded now: it refuses most corrupt streams before their tensor takes memory."""
    return chain([chunk for chunk in (next(chunks, None),) if chunk is not None], chunks)


def _as_float32(halves: Bits) -> Bits:
    return halves.view("<f2").astype("<f4").view("<u4")


def _value_chunks(values: Bits, blob: TensorBlob) -> Iterator[Bits]:
    """The value of every stored entry, fillers included, in chunks as long as those of the codecs.

    `values` is the codebook, in the dtype of the tensor, where there is one, else the values themselves, unless those
    are in byte planes.
    """
    if blob.codes is not None:
        for codes in CODECS[blob.codes.codec].decode_chunks(blob.codes.data, blob.entries, len(values)):
            yield values[codes]
        return
    if blob.planes:
        chunks = (CODECS[plane.codec].decode_chunks(plane.data, blob.entries, 256) for plane in blob.planes)
        for planes in zip(*chunks, strict=True):
            chunk = from_byte_planes(planes)
            yield _as_float32(chunk) if blob.flags & HALF else chunk
        return
    for start in range(0, blob.entries, CHUNK):
        chunk = values[start : start + CHUNK]
        yield _as_float32(chunk) if blob.flags & HALF else chunk


def _place(chunks: Iterator[Bits], entry: TensorEntry, blob: TensorBlob, label: str) -> Bits:
    """The tensor of these values: one after another, or at their positions among zeros."""
    dtype = unsigned_dtype(DTYPES[entry.dtype].itemsize)
    chunks = _start(chunks)
    if blob.gaps is None:
        out, start = np.empty(entry.size, dtype), 0
        for values in chunks:
            out[start : start + values.size] = values
            start += values.size
        return out
    gaps = _start(CODECS[blob.gaps.codec].decode_chunks(blob.gaps.data, blob.entries, 1 << blob.index_bits))
    out, last = np.zeros(entry.size, dtype), -1
    for values, differences in zip(chunks, gaps, strict=True):
        positions = relative_index.positions_after(last, differences)
        last = int(positions[-1])
        if last >= entry.size:
            raise CorruptFileError(f"{label} places a value at {last} of {entry.size}.")
        nonzero = values != 0
        if not nonzero.all():
            positions, values = positions[nonzero], values[nonzero]
        out[to_row_major(positions, entry.shape) if blob.flags & COLUMN_MAJOR else positions] = values
    return out
