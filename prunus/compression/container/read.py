"""Read a file back into a state_dict or a module. Nothing in a file is trusted: every length, name, code
and position is checked before it is used, and what a file may make the reader allocate is bounded."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from prunus.compression.codecs import CODECS, relative_index
from prunus.compression.codecs.bitstream import CHUNK
from prunus.compression.container.file_format import (
    CHECKSUM,
    COLUMNS,
    DTYPES,
    HALF,
    PREFIX,
    Bits,
    TensorBlob,
    all_finite,
    checksum,
    parse_blob,
    parse_prefix,
    rows_first,
    unsigned,
)
from prunus.compression.container.header import Header, TensorEntry, parse_header
from prunus.compression.container.limits import (
    check_file_size,
    check_header_size,
    check_tensors,
    check_work,
    default_max_bytes,
)
from prunus.compression.container.seeded_encoder import decode_seeded
from prunus.errors import CorruptFileError, NotAContainerError, SizeLimitError, TruncatedFileError

T = TypeVar("T")


@dataclass(frozen=True)
class ParsedFile:
    """A file whose framing and checksums hold, its blobs not decoded yet."""

    header: Header
    entries: tuple[TensorEntry, ...]
    blobs: tuple[TensorBlob, ...]
    size: int


def unpack(data: bytes, max_bytes: int | None = None) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file's bytes.

    Args:
        data: The content of the file.
        max_bytes: The most memory that reading may take, in bytes: the file, its tensors, and the working memory of
            decoding, of which the first 256 KiB are not counted. It bounds the time as well: at most one symbol is
            decoded for every 4 bytes of it. By default the larger of 256 MiB and 1000 times the file. What a file
            needs is summed up and compared before any of its tensors is decoded.

    Returns:
        The header, and the tensors by name, equal bit for bit to those that were written.

    Raises:
        NotAContainerError, UnsupportedVersionError, TruncatedFileError, CorruptFileError: The data is not a sound file.
        SizeLimitError: Reading would take more than `max_bytes`, or more memory than there is.
        Nothing else is raised, whatever `data` is.
    """
    with memory_errors_named():
        opened = open_bytes(data, max_bytes)
        pairs = zip(opened.entries, opened.blobs, strict=True)
        return opened.header, {entry.name: decode_tensor(entry, blob) for entry, blob in pairs}


def read(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, Tensor]:
    """The state_dict in the file at `path`, equal bit for bit to what was written; `max_bytes` and errors as
    `unpack`."""
    return unpack(file_bytes(path, max_bytes), max_bytes)[1]


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the file at `path`; its tensors are not read. Errors as `unpack`."""
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(PREFIX.size)
            data = head + file.read(parse_prefix(head, size) + CHECKSUM.size)
    except (OSError, ValueError) as error:  # ValueError: the path holds a null byte
        _unreadable(path, error)
    with memory_errors_named():
        return _header(memoryview(data), size)[0]


def file_bytes(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """The bytes of a file. Raises NotAContainerError where there is none to read, and SizeLimitError, before it is
    read, where it has more than `max_bytes`."""
    try:
        with _open(path) as file, memory_errors_named():
            size = os.fstat(file.fileno()).st_size
            check_file_size(size, default_max_bytes(size) if max_bytes is None else max_bytes)
            return file.read(size + 1)
    except (OSError, ValueError) as error:  # ValueError: the path holds a null byte
        _unreadable(path, error)


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for a writer
        raise NotAContainerError(f"{os.fspath(path)} cannot be read: it is not a regular file.")
    return Path(path).open("rb")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> NoReturn:
    reason = getattr(error, "strerror", None) or error
    raise NotAContainerError(f"{os.fspath(path)} cannot be read: {reason}.") from error


@contextmanager
def memory_errors_named() -> Iterator[None]:
    """Raise SizeLimitError where the process runs out of memory."""
    try:
        yield
    except MemoryError as error:
        raise SizeLimitError(
            f"Reading the file takes more memory than there is{f': {error}' if str(error) else ''}."
        ) from error


def open_bytes(data: bytes, max_bytes: int | None = None) -> ParsedFile:
    """Check framing, checksums and announced sizes, and split the blobs into streams."""
    view = memoryview(data)
    limit = default_max_bytes(len(view)) if max_bytes is None else max_bytes
    header_size = parse_prefix(view, len(view))
    check_header_size(header_size, len(view), limit)
    header, entries, running, at = _header(view, len(view))
    check_tensors(entries, limit)
    end = at + sum(entry.length + CHECKSUM.size for entry in entries)
    if end > len(view):
        raise TruncatedFileError(f"The file announces {end} bytes but has {len(view)}.")
    if end < len(view):
        raise CorruptFileError(f"{len(view) - end} bytes follow the end of the file.")
    blobs = []
    for entry in entries:
        section = view[at : at + entry.length]
        running = checksum(section, running)
        at += entry.length + CHECKSUM.size
        if CHECKSUM.unpack(view[at - CHECKSUM.size : at])[0] != running:
            raise CorruptFileError(f"The checksum of {entry.name!r} does not fit its bytes.")
        blobs.append(parse_blob(section, entry.size, DTYPES[entry.dtype], f"The blob of {entry.name!r}"))
    opened = ParsedFile(header, entries, tuple(blobs), len(view))
    check_work(entries, opened.blobs, header_size, len(view), limit)
    return opened


def _header(view: memoryview, file_size: int) -> tuple[Header, tuple[TensorEntry, ...], int, int]:
    """The header, its entries, its checksum, and where it ends."""
    at = PREFIX.size + parse_prefix(view, file_size)
    running = checksum(view[:at])
    if CHECKSUM.unpack(view[at : at + CHECKSUM.size])[0] != running:
        raise CorruptFileError("The checksum of the header does not fit its bytes.")
    header, entries = parse_header(bytes(view[PREFIX.size : at]))
    return header, entries, running, at + CHECKSUM.size


def decode_tensor(entry: TensorEntry, blob: TensorBlob) -> Tensor:
    """Decode one tensor, in chunks, so that little memory is used beside it.

    Raises CorruptFileError where its streams contradict its shape or each other, or hold values that are not finite.
    """
    dtype = DTYPES[entry.dtype]
    what = f"The blob of {entry.name!r}"
    stored_dtype = torch.float16 if blob.flags & HALF else dtype
    values = np.frombuffer(blob.values, unsigned(stored_dtype.itemsize))
    # Of a codebook this is all there is to look at, however many entries point to it.
    if dtype.is_floating_point and not all_finite(values, stored_dtype):
        raise CorruptFileError(f"{what} holds values that are NaN or infinite; a file holds finite numbers.")
    if blob.codes is not None and blob.flags & HALF:
        values = _widened(values)
    if blob.generated is not None:
        bits = decode_seeded(_started(_chunks(values, blob)), entry.size, blob.generated, what)
    elif blob.codes is None and blob.gaps is None:
        bits = _widened(values) if blob.flags & HALF else values.copy()
    else:
        bits = _place(_chunks(values, blob), entry, blob, what)
    if dtype == torch.bool and bits.size and int(bits.max()) > 1:
        raise CorruptFileError(f"{what} holds a truth value that is neither 0 nor 1.")
    native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native.view(np.uint8)).view(dtype).reshape(entry.shape)


def _started(chunks: Iterator[T]) -> Iterator[T]:
    """The same chunks, the first of them decoded now: most streams that are not sound are refused by that, before
    their tensor takes memory."""
    return chain([chunk for chunk in (next(chunks, None),) if chunk is not None], chunks)


def _widened(halves: Bits) -> Bits:
    """float16 as float32."""
    return halves.view("<f2").astype("<f4").view("<u4")


def _chunks(values: Bits, blob: TensorBlob) -> Iterator[Bits]:
    """The value of every entry of the streams, fillers included, in chunks as those of the codecs.

    `values` is the codebook, in the dtype of the tensor, where there is one, else the values themselves.
    """
    if blob.codes is not None:
        for codes in CODECS[blob.codes.codec].decode_chunks(blob.codes.data, blob.entries, len(values)):
            yield values[codes]
        return
    for start in range(0, blob.entries, CHUNK):
        chunk = values[start : start + CHUNK]
        yield _widened(chunk) if blob.flags & HALF else chunk


def _place(chunks: Iterator[Bits], entry: TensorEntry, blob: TensorBlob, what: str) -> Bits:
    """The tensor of these values: one after another, or at their positions among zeros."""
    dtype = unsigned(DTYPES[entry.dtype].itemsize)
    chunks = _started(chunks)
    if blob.gaps is None:
        out, start = np.empty(entry.size, dtype), 0
        for values in chunks:
            out[start : start + values.size] = values
            start += values.size
        return out
    gaps = CODECS[blob.gaps.codec].decode_chunks(blob.gaps.data, blob.entries, 1 << blob.index_bits)
    gaps = _started(gaps)
    out, last = np.zeros(entry.size, dtype), -1
    for values, differences in zip(chunks, gaps, strict=True):
        positions = relative_index.positions_after(last, differences)
        last = int(positions[-1])
        if last >= entry.size:
            raise CorruptFileError(f"{what} places a value at {last} of {entry.size}.")
        kept = values != 0
        if not kept.all():
            positions, values = positions[kept], values[kept]
        out[rows_first(positions, entry.shape) if blob.flags & COLUMNS else positions] = values
    return out


def arguments_of(header: Mapping[str, object]) -> tuple[str, dict[str, object]] | None:
    """Name and arguments of the built-in model a header names, or None."""
    match header["model"]:
        case {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    return None
