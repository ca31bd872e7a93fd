"""The content of a file and the size of each tensor in it, which add up to the size of the file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from prunus.compression.codecs.bitpack import width
from prunus.compression.container.file_format import CHECKSUM, INTEGERS, PREFIX
from prunus.compression.container.header import TensorEntry, header_text
from prunus.compression.container.reading import ParsedFile, named_memory_errors, parse_file, read_bytes
from prunus.compression.container.tensor_blob import HALF, Stream, TensorBlob


@dataclass(frozen=True)
class TensorStats:
    """One tensor of a file. Bits are per stored entry, fillers included, as in Han et al. 2016, tables 2-5."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    """Number of entries of the tensor."""
    nonzero: int
    density: float
    """Stored nonzero entries ÷ all entries; 1 for an empty tensor."""
    distinct: int | None
    """Number of distinct nonzero values, where there is a codebook."""
    entries: int
    """Stored entries: the nonzero ones and the fillers; all entries where positions are not stored."""
    weight_bits: float
    """Before entropy coding: ceil(log2(codebook size)), or the bits of a value."""
    coded_weight_bits: float
    """After entropy coding, without the codebook."""
    index_bits: int
    """Before entropy coding; 0 where positions are not stored."""
    coded_index_bits: float
    codebook_bytes: int
    bytes: int
    """Size of the blob."""
    original_bytes: int
    """0 for a tensor that is stored under an earlier name."""
    fraction: float
    """bytes ÷ original_bytes; 0 where those are 0."""


@dataclass(frozen=True)
class Average:
    """Bits per stored entry, over all stored entries of a file; 0 where there are none."""

    entries: int
    weight_bits: float
    coded_weight_bits: float
    index_bits: float
    """Entries without a stored position count as 0."""
    coded_index_bits: float


@dataclass(frozen=True)
class FileInspection:
    """A file and its layers. The bytes of the layers and `framing_bytes` add up to `file_bytes` exactly."""

    file_bytes: int
    framing_bytes: int
    """Magic, header and checksums."""
    metadata_bytes: int
    """The part of the header that is metadata and model."""
    original_bytes: int
    """Bytes of all tensors at their own dtype, as in a state_dict."""
    ratio: float
    """original_bytes ÷ file_bytes."""
    average: Average
    layers: tuple[TensorStats, ...]
    metadata: Mapping[str, object]
    """How the tensors were made; the key `made` of the header."""
    model: Mapping[str, object] | None

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serializable dictionary."""
        layers = [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers]
        return {**asdict(self), "layers": layers}


def inspect(path: str | os.PathLike[str], max_bytes: int | None = None) -> FileInspection:
    """Check all of a file and return what it holds and the size of each tensor.

    Tensors are decoded one after another and not kept, but `max_bytes` counts all of them, so that a file that can
    be inspected can be read.

    Args:
        path: A file that `save` or `write` wrote.
        max_bytes: The most memory that reading may take, in bytes; see `unpack`.

    Returns:
        The size of the file and of each of its tensors, and the metadata and the model of its header.

    Raises:
        ContainerError: The file cannot be read; see `unpack`.
    """
    with named_memory_errors():
        file = parse_file(read_bytes(path, max_bytes), max_bytes)
        layers = tuple(_tensor_stats(file, number) for number in range(len(file.entries)))
    original = sum(layer.original_bytes for layer in layers)
    framing = file.size - sum(layer.bytes for layer in layers)
    metadata, model = file.header["made"], file.header["model"]
    assert isinstance(metadata, dict)
    assert model is None or isinstance(model, dict)
    return FileInspection(
        file_bytes=file.size,
        framing_bytes=framing,
        metadata_bytes=framing - _framing_without_metadata(file.entries),
        original_bytes=original,
        ratio=original / file.size,
        average=_average(layers),
        layers=layers,
        metadata=metadata,
        model=model,
    )


def _tensor_stats(file: ParsedFile, number: int) -> TensorStats:
    entry, blob, value = file.entries[number], file.blobs[number], file.decode(number)
    nonzero, itemsize = 0, 1
    if not entry.is_plain_data:
        # Viewed as integers, because a stored -0.0 is a value.
        if value.dtype == torch.complex128:  # no integer has as many bits
            nonzero = int(torch.view_as_real(value).view(torch.int64).any(-1).sum())
        else:
            real = torch.view_as_real(value).flatten() if value.is_complex() else value
            nonzero = int(torch.count_nonzero(real.view(INTEGERS[value.element_size()])))
        itemsize = 2 if blob.flags & HALF else value.element_size()
    distinct, codebook_bytes = None, 0
    weight_bits = coded_weight_bits = float(8 * itemsize)
    if blob.codes is not None:
        codebook = bytes(blob.values)
        values = [codebook[i : i + itemsize] for i in range(0, len(codebook), itemsize)]
        distinct, codebook_bytes = sum(map(any, values)), len(codebook)
        weight_bits, coded_weight_bits = float(width(len(values))), _bits_per_entry(blob.codes, blob)
    elif blob.planes:
        coded_weight_bits = sum(_bits_per_entry(plane, blob) for plane in blob.planes)
    original_bytes = entry.nbytes if blob.tied_to is None else 0
    num_weights = 0 if entry.is_plain_data else entry.size
    return TensorStats(
        name=entry.name,
        shape=entry.shape,
        dtype=entry.dtype,
        weights=num_weights,
        nonzero=nonzero,
        density=nonzero / num_weights if num_weights else 1.0,
        distinct=distinct,
        entries=blob.entries,
        weight_bits=weight_bits,
        coded_weight_bits=coded_weight_bits,
        index_bits=blob.index_bits,
        coded_index_bits=_bits_per_entry(blob.gaps, blob) if blob.gaps else 0.0,
        codebook_bytes=codebook_bytes,
        bytes=entry.length,
        original_bytes=original_bytes,
        fraction=entry.length / original_bytes if original_bytes else 0.0,
    )


def _bits_per_entry(stream: Stream, blob: TensorBlob) -> float:
    return 8 * len(stream.data) / blob.entries if blob.entries else 0.0


def _framing_without_metadata(entries: Sequence[TensorEntry]) -> int:
    """The framing of a file of the same tensors without metadata and model."""
    rows: list[list[object]] = [[e.name, e.dtype, list(e.shape), e.length] for e in entries]
    header = header_text({}, None, rows).encode()
    return PREFIX.size + len(header) + CHECKSUM.size * (1 + len(entries))


def _average(layers: Sequence[TensorStats]) -> Average:
    entries = sum(layer.entries for layer in layers)
    names = ("weight_bits", "coded_weight_bits", "index_bits", "coded_index_bits")
    sums = (sum(layer.entries * getattr(layer, name) for layer in layers) for name in names)
    return Average(entries, *(float(total / entries) if entries else 0.0 for total in sums))
