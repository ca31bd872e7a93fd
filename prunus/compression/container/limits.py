"""Bounds on the memory and the work of reading a file, summed up from its header and blobs before decoding.

The rules are in SPEC.md, section "Limits". The memory is an upper bound of the peak, whether tensors are kept, as
`unpack` does, or decoded one after another, as `inspect` does.
"""

from collections.abc import Iterable, Sequence

from prunus.compression.codecs.bitstream import CHUNK
from prunus.compression.container.header import TensorEntry
from prunus.compression.container.tensor_blob import Stream, TensorBlob
from prunus.errors import SizeLimitError

ALLOWANCE = 256 << 10
"""Bytes that are allowed besides the tensors, so that `max_bytes` may be as small as a small state_dict."""

_PER_HEADER_BYTE = 32
"""The most bytes of Python objects per byte of JSON: "[]," is three bytes and becomes a list of 64."""
_PER_TENSOR = 2048
"""Bytes of the objects that describe a tensor."""
_PER_CHUNK_ENTRY = 128
"""Bytes of symbols, bits, positions and values for each entry of a chunk."""
_PER_VALUE = 16
"""The same for values that are not encoded, and for each byte plane."""
_PER_TABLE_SYMBOL = 64
"""Bytes of level, frequency and code for each symbol of an alphabet."""

_WORK_PER_BYTE = 4
"""One symbol may be decoded for this many bytes of `max_bytes`: as many symbols as a float32 tensor has entries."""
_WORK_PER_TABLE_SEGMENT = 64
_WORK_PER_STREAM = 2048
"""The time of parsing a table segment and of opening a stream, in decoded symbols."""


class Limits:
    """The limits for a file of `file_size` bytes; by default the larger of 256 MiB and 1000 times the file.

    Each check raises SizeLimitError where reading the file would exceed `max_bytes`.
    """

    def __init__(self, file_size: int, max_bytes: int | None = None) -> None:
        self.file_size = file_size
        self.max_bytes = max(256 << 20, 1000 * file_size) if max_bytes is None else max_bytes

    def check_file(self) -> None:
        """Check the size of the file alone."""
        self._check(self.file_size, "Reading the file takes {} bytes")

    def check_header(self, header_size: int) -> None:
        """Check the file and the objects of its header."""
        self._check(
            self.file_size + _PER_HEADER_BYTE * header_size, "The file and its header may take {} bytes"
        )

    def check_tensors(self, entries: Iterable[TensorEntry]) -> None:
        """Check the tensors that a header announces."""
        total = sum(entry.nbytes for entry in entries)
        if total > self.max_bytes:
            self._fail(f"The file announces tensors of {total} bytes")

    def check_work(
        self, entries: Sequence[TensorEntry], blobs: Sequence[TensorBlob], header_size: int
    ) -> None:
        """Check the peak memory and the time of decoding all tensors.

        Args:
            entries: The tensors that the header lists.
            blobs: Their blobs, not decoded yet, in the same order.
            header_size: The size of the JSON header in bytes.

        Raises:
            SizeLimitError: Decoding may take more memory than `max_bytes` allows, or decodes more symbols than one for
                every 4 bytes of it.
        """
        tensors = sum(entry.nbytes for entry in entries)
        json_bytes = header_size + sum(entry.length for entry in entries if entry.is_plain_data)
        objects = _PER_HEADER_BYTE * json_bytes + _PER_TENSOR * len(entries)
        working = max(map(_working_memory, blobs), default=0)
        self._check(
            self.file_size + tensors + objects + working,
            f"Reading the file may take {{}} bytes, {tensors} of them for its tensors",
        )
        work = sum(map(_work, blobs))
        if work > (self.max_bytes + ALLOWANCE) // _WORK_PER_BYTE:
            self._fail(
                f"The streams of the file take the work of {work} symbols, {_WORK_PER_BYTE} bytes each"
            )

    def _check(self, memory: int, sentence: str) -> None:
        if memory > self.max_bytes + ALLOWANCE:
            self._fail(sentence.format(memory))

    def _fail(self, problem: str) -> None:
        raise SizeLimitError(
            f"{problem}; max_bytes allows {self.max_bytes}. Pass a larger max_bytes if you trust the file."
        )


def _streams(blob: TensorBlob) -> list[tuple[Stream, int]]:
    """The streams of a blob with the sizes of their alphabets."""
    planes = [(plane, 256) for plane in blob.planes]
    pairs = [(blob.gaps, 1 << blob.index_bits), (blob.codes, blob.codebook_size), *planes]
    return [(stream, alphabet) for stream, alphabet in pairs if stream is not None]


def _working_memory(blob: TensorBlob) -> int:
    """The most bytes that decoding one tensor takes in addition to the tensor and the file."""
    streams = _streams(blob)
    tables = sum(_PER_TABLE_SYMBOL * alphabet for stream, alphabet in streams if stream.codec != "bitpack")
    copies = sum(2 * len(stream.data) for stream, _ in streams if stream.codec != "bitpack")
    per_entry = _PER_VALUE if blob.gaps is None and blob.codes is None else _PER_CHUNK_ENTRY
    per_entry += _PER_VALUE * len(blob.planes)
    return per_entry * min(blob.entries, CHUNK) + tables + copies


def _work(blob: TensorBlob) -> int:
    """The time of decoding one tensor, in decoded symbols."""
    num_streams = sum(stream is not None for stream in (blob.gaps, blob.codes))
    # The bytes of a value count as they do in max_bytes: a float32 value is one symbol.
    work = num_streams * blob.entries + -(-blob.entries * len(blob.planes) // _WORK_PER_BYTE)
    for stream, alphabet in _streams(blob):
        work += _WORK_PER_STREAM
        if stream.codec != "bitpack":
            work += _WORK_PER_TABLE_SEGMENT * min(alphabet, 2 * blob.entries + 1)
    return work
