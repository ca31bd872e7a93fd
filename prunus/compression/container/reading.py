"""Read a file back into a state_dict.

Nothing in a file is trusted: every length, name, code and position is checked before it is used, and the memory and
time that a file may make the reader spend are bounded (`limits`).
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from prunus.compression.container.file_format import CHECKSUM, DTYPES, PREFIX, checksum, parse_prefix
from prunus.compression.container.header import Header, TensorEntry, parse_header
from prunus.compression.container.limits import Limits
from prunus.compression.container.plain_data import decode_plain_data
from prunus.compression.container.tensor_blob import TensorBlob, parse_blob
from prunus.compression.container.tensor_decoder import decode_tensor
from prunus.errors import CorruptFileError, NotAContainerError, SizeLimitError, TruncatedFileError


@dataclass(frozen=True)
class ParsedFile:
    """A file whose framing and checksums are correct; its blobs are not decoded yet."""

    header: Header
    entries: tuple[TensorEntry, ...]
    blobs: tuple[TensorBlob, ...]
    sections: tuple[memoryview, ...]
    """The bytes of each blob."""
    size: int

    def decode(self, number: int) -> Any:
        """The tensor, or other value, of this number. Raises CorruptFileError where its blob cannot be decoded."""
        tied_to = self.blobs[number].tied_to
        number = number if tied_to is None else tied_to
        return decode_section(self.sections[number], self.entries[number])


def decode_section(section: memoryview, entry: TensorEntry) -> Any:
    """The tensor, or other value, of one entry of the header.

    Args:
        section: The bytes of its blob.
        entry: Its name, dtype and shape.

    Returns:
        The tensor on the CPU, or the value.

    Raises:
        CorruptFileError: The blob cannot be decoded.
    """
    if entry.is_plain_data:
        return decode_plain_data(bytes(section), f"The value of {entry.name!r}")
    label = f"The blob of {entry.name!r}"
    return decode_tensor(entry, parse_blob(section, entry.size, DTYPES[entry.dtype], label))


def unpack(data: bytes, max_bytes: int | None = None) -> tuple[Header, dict[str, Any]]:
    """Return the header and the tensors of a file's bytes.

    Args:
        data: The content of the file.
        max_bytes: The most memory that reading may take, in bytes: the file, its tensors, and the working memory of
            decoding, of which the first 256 KiB are not counted. It bounds the time as well: at most one symbol is
            decoded for every 4 bytes of it. By default the larger of 256 MiB and 1000 times the file. What a file
            needs is summed up and compared before any of its tensors is decoded.

    Returns:
        The header, and the tensors by name, equal bit for bit to those that were written. Names that were one tensor
        are one tensor. Values that are not tensors are as they were written.

    Raises:
        NotAContainerError, UnsupportedVersionError, TruncatedFileError, CorruptFileError: The data is not a sound file.
        SizeLimitError: Reading would take more than `max_bytes`, or more memory than is available.
        Nothing else is raised, whatever `data` is.
    """
    with named_memory_errors():
        file = parse_file(data, max_bytes)
        state: dict[str, Any] = {}
        for number, entry in enumerate(file.entries):
            tied_to = file.blobs[number].tied_to
            state[entry.name] = file.decode(number) if tied_to is None else state[file.entries[tied_to].name]
        return file.header, state


def read(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, Any]:
    """Return the state_dict in a file, equal bit for bit to the one that was written.

    Args:
        path: A file that `save` or `write` wrote.
        max_bytes: The most memory that reading may take, in bytes; see `unpack`.

    Returns:
        The tensors by name, on the CPU, and the values that are not tensors, such as the extra state of a module.

    Raises:
        ContainerError: The file cannot be read; see `unpack`.
    """
    return unpack(read_bytes(path, max_bytes), max_bytes)[1]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of the file at `path` without reading its tensors. Raises the errors of `unpack`."""
    with _opened(path) as file, named_memory_errors():
        size = os.fstat(file.fileno()).st_size
        head = file.read(PREFIX.size)
        data = head + file.read(parse_prefix(head, size) + CHECKSUM.size)
        return _parse_header(memoryview(data), size)[0]


def read_bytes(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        path: A regular file.
        max_bytes: The most memory that reading may take, in bytes; see `unpack`. None: the larger of 256 MiB and 1000
            times the size of the file.

    Returns:
        The content of the file.

    Raises:
        NotAContainerError: There is no file that can be read.
        SizeLimitError: The file has more than `max_bytes` bytes; raised before it is read.
    """
    with _opened(path) as file, named_memory_errors():
        size = os.fstat(file.fileno()).st_size
        Limits(size, max_bytes).check_file()
        return file.read(size + 1)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file. Raises NotAContainerError where it cannot be opened or read."""
    try:
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for a writer
            raise NotAContainerError(f"{os.fspath(path)} cannot be read: it is not a regular file.")
        with Path(path).open("rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: the path holds a null byte
        reason = getattr(error, "strerror", None) or error
        raise NotAContainerError(f"{os.fspath(path)} cannot be read: {reason}.") from error


@contextmanager
def named_memory_errors() -> Iterator[None]:
    """Raise SizeLimitError where the process runs out of memory."""
    try:
        yield
    except MemoryError as error:
        detail = f": {error}" if str(error) else ""
        raise SizeLimitError(f"Reading the file takes more memory than is available{detail}.") from error


def parse_file(data: bytes, max_bytes: int | None = None) -> ParsedFile:
    """Check framing, checksums and announced sizes, and split the blobs into streams.

    Args:
        data: The content of the file.
        max_bytes: The most memory that reading may take, in bytes; see `unpack`. None: the larger of 256 MiB and 1000
            times the size of the file.

    Returns:
        The header, its tensors, and their blobs, which are not decoded.

    Raises:
        NotAContainerError, UnsupportedVersionError: The data does not begin as a file of this version.
        TruncatedFileError: The data is shorter than it announces.
        CorruptFileError: Bytes follow the end of the file, a checksum does not match, or the header or a blob is
            malformed.
        SizeLimitError: The header is larger than any header may be, or reading would take more than `max_bytes`.
    """
    view = memoryview(data)
    limits = Limits(len(view), max_bytes)
    header_size = parse_prefix(view, len(view))
    limits.check_header(header_size)
    header, entries, running, position = _parse_header(view, len(view))
    limits.check_tensors(entries)
    end = position + sum(entry.length + CHECKSUM.size for entry in entries)
    if end > len(view):
        raise TruncatedFileError(f"The file announces {end} bytes, but has {len(view)}.")
    if end < len(view):
        raise CorruptFileError(f"{len(view) - end} bytes follow the end of the file.")
    blobs: list[TensorBlob] = []
    sections = []
    for entry in entries:
        section = view[position : position + entry.length]
        running = checksum(section, running)
        position += entry.length + CHECKSUM.size
        if CHECKSUM.unpack(view[position - CHECKSUM.size : position])[0] != running:
            raise CorruptFileError(f"The checksum of {entry.name!r} does not match its bytes.")
        blobs.append(_parse_blob(section, entry, entries, blobs))
        sections.append(section)
    limits.check_work(entries, blobs, header_size)
    return ParsedFile(header, entries, tuple(blobs), tuple(sections), len(view))


def _parse_blob(
    section: memoryview, entry: TensorEntry, entries: Sequence[TensorEntry], earlier: Sequence[TensorBlob]
) -> TensorBlob:
    """The blob of an entry, after the earlier ones. Raises CorruptFileError if it refers to one that does not match."""
    label = f"The blob of {entry.name!r}"
    if entry.is_plain_data:
        return TensorBlob(0, len(section), section)
    blob = parse_blob(section, entry.size, DTYPES[entry.dtype], label)
    if blob.tied_to is not None:
        if blob.tied_to >= len(earlier) or earlier[blob.tied_to].tied_to is not None:
            raise CorruptFileError(
                f"{label} refers to tensor {blob.tied_to}, which is not an earlier tensor."
            )
        first = entries[blob.tied_to]
        if (first.dtype, first.shape) != (entry.dtype, entry.shape):
            raise CorruptFileError(f"{label} refers to {first.name!r}, which has another dtype or shape.")
    return blob


def _parse_header(view: memoryview, file_size: int) -> tuple[Header, tuple[TensorEntry, ...], int, int]:
    """The header, its entries, its checksum, and the position where it ends."""
    end = PREFIX.size + parse_prefix(view, file_size)
    running = checksum(view[:end])
    if CHECKSUM.unpack(view[end : end + CHECKSUM.size])[0] != running:
        raise CorruptFileError("The checksum of the header does not match its bytes.")
    header, entries = parse_header(bytes(view[PREFIX.size : end]))
    return header, entries, running, end + CHECKSUM.size


def named_model(header: Mapping[str, object]) -> tuple[str, dict[str, object]] | None:
    """Name and arguments of the built-in model that a header names, or None."""
    match header["model"]:
        case {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    return None
