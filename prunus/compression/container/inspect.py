"""What a file holds and what each tensor costs: the table of Deep Compression, adding up to the byte."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from prunus.compression.codecs.bitpack import width
from prunus.compression.container.file_format import CHECKSUM, DTYPES, HALF, INTEGERS, PREFIX, TensorBlob
from prunus.compression.container.header import TensorEntry, header_text
from prunus.compression.container.read import decode_tensor, file_bytes, memory_errors_named, open_bytes


@dataclass(frozen=True)
class TensorStats:
    """One tensor of a file. Bits are a stored entry, fillers included, as in Han et al. 2016, tables 2-5."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    nonzero: int
    density: float
    """Stored non-zero entries ÷ all entries; 1 for an empty tensor."""
    distinct: int | None
    """Distinct non-zero values, where they are shared."""
    entries: int
    """Entries stored: the non-zero ones and the fillers; every one where positions are not coded."""
    weight_bits: float
    """Before entropy coding: ceil(log2(codebook)), or the bits of a value."""
    coded_weight_bits: float
    """After it, the codebook not included."""
    index_bits: int
    """Before entropy coding; 0 where positions are not coded."""
    coded_index_bits: float
    codebook_bytes: int
    bytes: int
    """Of its blob, everything included."""
    original_bytes: int
    share: float
    """bytes ÷ original_bytes; 0 for an empty tensor."""


@dataclass(frozen=True)
class Average:
    """Bits of a stored entry, over all the entries that a file stores; 0 where it stores none."""

    entries: int
    weight_bits: float
    coded_weight_bits: float
    index_bits: float
    """Entries without a coded position count, with 0."""
    coded_index_bits: float


@dataclass(frozen=True)
class FileInspection:
    """A file and its layers: the layers' bytes and `framing_bytes` add up to `file_bytes` exactly."""

    file_bytes: int
    framing_bytes: int
    """Magic, header and checksums."""
    about_bytes: int
    """Of the header, what says how the file was made and of which model."""
    original_bytes: int
    """Of all tensors at their own dtype, as a state_dict holds them."""
    ratio: float
    average: Average
    layers: tuple[TensorStats, ...]
    made: Mapping[str, object]
    model: Mapping[str, object] | None

    def to_json(self) -> dict[str, object]:
        """The same as JSON has it."""
        return {
            **asdict(self),
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
        }


def inspect(path: str | os.PathLike[str], max_bytes: int | None = None) -> FileInspection:
    """Open the file at `path`, check all of it, and say what it holds; `max_bytes` and errors as `unpack`.

    Tensors are decoded one after another and not kept, but `max_bytes` counts all of them, so that what can be
    inspected can be read.
    """
    with memory_errors_named():
        opened = open_bytes(file_bytes(path, max_bytes), max_bytes)
        layers = tuple(_layer(entry, blob) for entry, blob in zip(opened.entries, opened.blobs, strict=True))
    original = sum(layer.original_bytes for layer in layers)
    framing = opened.size - sum(layer.bytes for layer in layers)
    made, model = opened.header["made"], opened.header["model"]
    assert isinstance(made, dict)
    assert model is None or isinstance(model, dict)
    return FileInspection(
        file_bytes=opened.size,
        framing_bytes=framing,
        about_bytes=framing - _bare_framing(opened.entries),
        original_bytes=original,
        ratio=original / opened.size,
        average=_average(layers),
        layers=layers,
        made=made,
        model=model,
    )


def _layer(entry: TensorEntry, blob: TensorBlob) -> TensorStats:
    nonzero = int(torch.count_nonzero(decode_tensor(entry, blob).view(_integers(entry.dtype))))
    itemsize = 2 if blob.flags & HALF else DTYPES[entry.dtype].itemsize
    values, distinct = len(blob.values) // itemsize, None
    weight_bits, coded, codebook = float(8 * itemsize), float(8 * itemsize), 0
    if blob.codes is not None:
        zeros = sum(not any(blob.values[i : i + itemsize]) for i in range(0, len(blob.values), itemsize))
        distinct, codebook = values - zeros, len(blob.values)
        weight_bits, coded = float(width(values)), _bits(len(blob.codes.data), blob.entries)
    return TensorStats(
        name=entry.name,
        shape=entry.shape,
        dtype=entry.dtype,
        weights=entry.size,
        nonzero=nonzero,
        density=nonzero / entry.size if entry.size else 1.0,
        distinct=distinct,
        entries=blob.entries,
        weight_bits=weight_bits,
        coded_weight_bits=coded,
        index_bits=blob.index_bits,
        coded_index_bits=_bits(len(blob.gaps.data), blob.entries) if blob.gaps else 0.0,
        codebook_bytes=codebook,
        bytes=entry.length,
        original_bytes=entry.nbytes,
        share=entry.length / entry.nbytes if entry.nbytes else 0.0,
    )


def _bare_framing(entries: Sequence[TensorEntry]) -> int:
    """The framing of a file of the same tensors that says nothing of how it was made."""
    rows: list[list[object]] = [[e.name, e.dtype, list(e.shape), e.length] for e in entries]
    header = header_text({}, None, rows).encode()
    return PREFIX.size + len(header) + CHECKSUM.size * (1 + len(entries))


def _average(layers: Sequence[TensorStats]) -> Average:
    entries = sum(layer.entries for layer in layers)
    names = ("weight_bits", "coded_weight_bits", "index_bits", "coded_index_bits")
    sums = (sum(layer.entries * getattr(layer, name) for layer in layers) for name in names)
    return Average(entries, *(float(total / entries) if entries else 0.0 for total in sums))


def _integers(dtype: str) -> torch.dtype:
    """The integer dtype of the same size: a stored -0.0 is a value, only +0.0 is a hole."""
    return INTEGERS[DTYPES[dtype].itemsize]


def _bits(size: int, entries: int) -> float:
    return 8 * size / entries if entries else 0.0
