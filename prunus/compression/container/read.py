"""Read a file back into a state_dict or a module. Nothing in a file is trusted: every length, name, code
and position is checked before it is used, and what a file may make the reader allocate is bounded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from prunus.compression.codecs import CODECS, relative_index
from prunus.compression.container.generated import regenerated
from prunus.compression.container.header import Entry, Header, parse_header
from prunus.compression.container.layout import (
    CHECKSUM,
    COLUMNS,
    DTYPES,
    GENERATED,
    HALF,
    PREFIX,
    Bits,
    Blob,
    all_finite,
    checksum,
    parse_blob,
    parse_prefix,
    rows_first,
    unsigned,
)
from prunus.errors import CorruptError, NotAContainerError, TooLargeError, TruncatedError


@dataclass(frozen=True)
class Opened:
    """A file whose framing and checksums hold, its blobs not decoded yet."""

    header: Header
    entries: tuple[Entry, ...]
    blobs: tuple[Blob, ...]
    size: int


def unpack(data: bytes, max_bytes: int | None = None) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file's bytes.

    Tensors of more than `max_bytes` together are refused (by default the larger of 256 MiB and 1000 × the
    file). Raises NotAContainerError, VersionError, TruncatedError, CorruptError or TooLargeError, and
    nothing else.
    """
    opened = open_bytes(data, max_bytes)
    pairs = zip(opened.entries, opened.blobs, strict=True)
    return opened.header, {entry.name: tensor_of(entry, blob) for entry, blob in pairs}


def read(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, Tensor]:
    """The state_dict in the file at `path`, equal bit for bit to what was written; errors as `unpack`."""
    return unpack(file_bytes(path), max_bytes)[1]


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the file at `path`; its tensors are not read. Errors as `unpack`."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(PREFIX.size)
            data = head + file.read(parse_prefix(head, size) + CHECKSUM.size)
    except OSError as error:
        _unreadable(path, error)
    return _header(memoryview(data), size)[0]


def file_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, or NotAContainerError where there is none to read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        _unreadable(path, error)


def _unreadable(path: str | os.PathLike[str], error: OSError) -> NoReturn:
    raise NotAContainerError(f"{os.fspath(path)} cannot be read: {error.strerror or error}.") from error


def open_bytes(data: bytes, max_bytes: int | None = None) -> Opened:
    """Check framing, checksums and announced sizes, and split the blobs into streams."""
    view = memoryview(data)
    header, entries, running, at = _header(view, len(view))
    limit = max(256 << 20, 1000 * len(view)) if max_bytes is None else max_bytes
    total = sum(entry.nbytes for entry in entries)
    if total > limit:
        raise TooLargeError(f"The file announces tensors of {total} bytes; max_bytes allows {limit}.")
    end = at + sum(entry.length + CHECKSUM.size for entry in entries)
    if end > len(view):
        raise TruncatedError(f"The file announces {end} bytes but has {len(view)}.")
    if end < len(view):
        raise CorruptError(f"{len(view) - end} bytes follow the end of the file.")
    blobs = []
    for entry in entries:
        section = view[at : at + entry.length]
        running = checksum(section, running)
        at += entry.length + CHECKSUM.size
        if CHECKSUM.unpack(view[at - CHECKSUM.size : at])[0] != running:
            raise CorruptError(f"The checksum of {entry.name!r} does not fit its bytes.")
        blobs.append(parse_blob(section, entry.size, f"The blob of {entry.name!r}"))
    return Opened(header, entries, tuple(blobs), len(view))


def _header(view: memoryview, file_size: int) -> tuple[Header, tuple[Entry, ...], int, int]:
    """The header, its entries, its checksum, and where it ends."""
    at = PREFIX.size + parse_prefix(view, file_size)
    running = checksum(view[:at])
    if CHECKSUM.unpack(view[at : at + CHECKSUM.size])[0] != running:
        raise CorruptError("The checksum of the header does not fit its bytes.")
    header, entries = parse_header(bytes(view[PREFIX.size : at]))
    return header, entries, running, at + CHECKSUM.size


def tensor_of(entry: Entry, blob: Blob) -> Tensor:
    """Decode one tensor. Raises CorruptError where its streams contradict its shape or each other, or are of
    values that are not finite."""
    dtype = DTYPES[entry.dtype]
    what = f"The blob of {entry.name!r}"
    if (blob.flags and not dtype.is_floating_point) or (
        blob.flags & (HALF | GENERATED) and dtype != torch.float32
    ):
        raise CorruptError(f"{what} has flags {blob.flags:#04x}, which {entry.dtype} never has.")
    bits = _values(blob, torch.float16 if blob.flags & HALF else dtype, what)
    if blob.generated is not None:
        bits = regenerated(bits, blob.generated, what)
    if blob.gaps is not None:
        bits = _spread(bits, entry, blob, what)
    if blob.flags & HALF:
        bits = bits.view("<f2").astype("<f4").view("<u4")
    if dtype == torch.bool and bits.size and int(bits.max()) > 1:
        raise CorruptError(f"{what} holds a truth value that is neither 0 nor 1.")
    native = bits.astype(bits.dtype.newbyteorder("="), copy=not bits.flags.writeable)
    return torch.from_numpy(native.view(np.uint8)).view(dtype).reshape(entry.shape)


def _values(blob: Blob, dtype: torch.dtype, what: str) -> Bits:
    """The value, of this dtype, of every entry of the streams, fillers included."""
    if len(blob.values) % dtype.itemsize:
        raise CorruptError(f"{what} holds values that are no multiple of {dtype.itemsize} bytes.")
    values = np.frombuffer(blob.values, unsigned(dtype.itemsize))
    # Of a codebook this is all there is to look at, however many entries point to it.
    if dtype.is_floating_point and not all_finite(values, dtype):
        raise CorruptError(f"{what} holds values that are NaN or infinite; a file holds finite numbers.")
    if blob.codes is None:
        if len(values) != blob.entries:
            raise CorruptError(f"{what} holds {len(values)} values for {blob.entries} entries.")
        return values
    if not len(values):
        raise CorruptError(f"{what} has an empty codebook.")
    return values[CODECS[blob.codes.codec].decode(blob.codes.data, blob.entries, len(values))]


def _spread(values: Bits, entry: Entry, blob: Blob, what: str) -> Bits:
    """The values at their positions in a tensor of zeros."""
    assert blob.gaps is not None
    gaps = CODECS[blob.gaps.codec].decode(blob.gaps.data, blob.entries, 1 << blob.index_bits)
    is_filler = values == 0
    positions = relative_index.decode(gaps, is_filler)
    out = np.zeros(entry.size, values.dtype)
    if positions.size:
        if int(positions[-1]) >= entry.size:
            raise CorruptError(f"{what} places a value at {int(positions[-1])} of {entry.size}.")
        where = rows_first(positions, entry.shape) if blob.flags & COLUMNS else positions
        out[where] = values[~is_filler] if is_filler.any() else values
    return out


def arguments_of(header: Mapping[str, object]) -> tuple[str, dict[str, object]] | None:
    """Name and arguments of the built-in model a header names, or None."""
    match header["model"]:
        case {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    return None
