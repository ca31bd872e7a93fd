"""What a file may make the reader do: the memory and the work that it announces, summed up before anything is decoded.

The rules stand in SPEC.md, section "Limits". The memory is an upper bound of what reading takes at its peak, whether
tensors are kept, as `unpack` does, or decoded one after another, as `inspect` does.
"""

from collections.abc import Iterable

from prunus.compression.codecs.bitstream import CHUNK
from prunus.compression.container.file_format import Stream, TensorBlob
from prunus.compression.container.header import TensorEntry
from prunus.errors import SizeLimitError

ALLOWANCE = 256 << 10
"""Bytes beside the tensors that are always allowed, so that `max_bytes` may be as small as a small state_dict."""

_PER_HEADER_BYTE = 32
"""Bytes of the objects that a byte of JSON becomes, at most: "[]," is three and becomes a list of 64."""
_PER_TENSOR = 2048
"""Bytes of the objects that describe a tensor."""
_PER_CHUNK_ENTRY = 128
"""Bytes, for each entry of a chunk, of symbols, bits, positions and values."""
_PER_VALUE = 16
"""The same where values are in the file as they are."""
_PER_TABLE_SYMBOL = 64
"""Bytes, for each symbol of an alphabet, of its level, frequency and code."""

_WORK_PER_BYTE = 4
"""max_bytes ÷ this is the number of symbols that are decoded: as many as a float32 tensor of that size has entries."""
_WORK_PER_TABLE_SEGMENT = 64
_WORK_PER_STREAM = 2048
"""What parsing a segment of a table and opening a stream take, in symbols that are decoded in the same time."""


def default_max_bytes(file_size: int) -> int:
    """The larger of 256 MiB and 1000 times the file."""
    return max(256 << 20, 1000 * file_size)


def check_file_size(file_size: int, max_bytes: int) -> None:
    """Raise SizeLimitError where the file alone takes more than `max_bytes`."""
    if file_size > max_bytes + ALLOWANCE:
        raise SizeLimitError(f"The file has {file_size} bytes; max_bytes allows {max_bytes}.")


def check_header_size(header_size: int, file_size: int, max_bytes: int) -> None:
    """Raise SizeLimitError where the file and the objects of its header take more than `max_bytes`."""
    memory = file_size + _PER_HEADER_BYTE * header_size
    if memory > max_bytes + ALLOWANCE:
        raise SizeLimitError(
            f"The file and its header may take {memory} bytes; max_bytes allows {max_bytes}."
        )


def check_tensors(entries: Iterable[TensorEntry], max_bytes: int) -> None:
    """Raise SizeLimitError where the tensors that a header announces take more than `max_bytes`."""
    total = sum(entry.nbytes for entry in entries)
    if total > max_bytes:
        raise SizeLimitError(f"The file announces tensors of {total} bytes; max_bytes allows {max_bytes}.")


def check_work(
    entries: tuple[TensorEntry, ...],
    blobs: tuple[TensorBlob, ...],
    header_size: int,
    file_size: int,
    max_bytes: int,
) -> None:
    """Raise SizeLimitError where reading takes more memory or time than `max_bytes` stands for."""
    tensors = sum(entry.nbytes for entry in entries)
    objects = _PER_HEADER_BYTE * header_size + _PER_TENSOR * len(entries)
    memory = file_size + tensors + objects + max(map(_working_memory, blobs), default=0)
    if memory > max_bytes + ALLOWANCE:
        raise SizeLimitError(
            f"Reading the file may take {memory} bytes, {tensors} of them for its tensors; max_bytes allows "
            f"{max_bytes}."
        )
    work = sum(_work(blob) for blob in blobs)
    if work > (max_bytes + ALLOWANCE) // _WORK_PER_BYTE:
        raise SizeLimitError(
            f"The streams of the file take the work of {work} symbols; max_bytes, which is {max_bytes}, allows one for "
            f"every {_WORK_PER_BYTE} bytes."
        )


def _streams(blob: TensorBlob) -> list[tuple[Stream, int]]:
    """The streams of a blob and their alphabets."""
    pairs = []
    if blob.gaps is not None:
        pairs.append((blob.gaps, 1 << blob.index_bits))
    if blob.codes is not None:
        pairs.append((blob.codes, blob.codebook_size))
    return pairs


def _working_memory(blob: TensorBlob) -> int:
    """Bytes that decoding one tensor takes beside the tensor and the file, at most."""
    streams = _streams(blob)
    tables = sum(_PER_TABLE_SYMBOL * alphabet for stream, alphabet in streams if stream.codec != "bitpack")
    copies = sum(2 * len(stream.data) for stream, _ in streams)
    per_entry = _PER_CHUNK_ENTRY if streams else _PER_VALUE
    return per_entry * min(blob.entries, CHUNK) + tables + copies


def _work(blob: TensorBlob) -> int:
    """What decoding one tensor takes, in symbols."""
    work = 0
    for stream, alphabet in _streams(blob):
        work += blob.entries + _WORK_PER_STREAM
        if stream.codec != "bitpack":
            work += _WORK_PER_TABLE_SEGMENT * min(alphabet, 2 * blob.entries + 1)
    return work
