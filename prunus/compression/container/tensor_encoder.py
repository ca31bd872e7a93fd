"""Encode one tensor as the smallest of its possible blobs, chosen from its bits alone."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from prunus.compression.codecs import CODECS, relative_index
from prunus.compression.codecs.bitpack import width
from prunus.compression.codecs.bitstream import Ints
from prunus.compression.container.encoding_config import INDEX_BITS, EncodingConfig
from prunus.compression.container.file_format import (
    DTYPES,
    INTEGERS,
    Bits,
    byte_planes,
    matrix_shape,
    to_column_major,
    to_row_major,
    unsigned_dtype,
)
from prunus.compression.container.tensor_blob import (
    CODEBOOK,
    COLUMN_MAJOR,
    HALF,
    PLANES,
    SPARSE,
    Stream,
    TensorBlob,
)
from prunus.errors import ContainerError

MAX_CODEBOOK = 256
"""The most nonzero values of a codebook. A filler's zero may be added."""

MIN_PLANE_ENTRIES = 4096
"""Fewer values are stored as they are: the tables of their byte planes would take a large part of what is saved."""

MAX_PLANE_COST = 0.97
"""Byte planes that save less than 3 % are stored as they are, because those are many times faster to read: the first
bits of mantissas are not quite uniform."""

_SAMPLE = 4096
_TOLERANCE = 1.01
"""Positions are stored although they take up to 1 % more than a code for every entry, because they are faster to
read; and tensors with less than 1 % zeros are not stored by positions."""


class TensorEncoder:
    """One tensor, with everything about it that does not depend on the encoding computed once.

    Raises:
        ContainerError: A file cannot hold tensors of its dtype or layout.
    """

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.bits, self.shape, self.flags = entry_bits(name, tensor), tuple(tensor.shape), 0
        self.is_compressible = tensor.dtype.is_floating_point and self.bits.size > 0
        if self.is_compressible and tensor.dtype == torch.float32:
            halves = _as_float16(self.bits)
            if halves is not None:
                self.bits, self.flags = halves, HALF

    def encode(self, encoding: EncodingConfig) -> bytes:
        """The smallest blob of the tensor under `encoding`."""
        plain = TensorBlob(self.flags, self.bits.size, self.bits.tobytes()).to_bytes()
        if not self.is_compressible:
            return plain
        codebook = self.codebook if encoding.use_codebook else None
        codec = CODECS[encoding.codec]
        dense_cost = math.inf if codebook is None else codec.cost(codebook.counts_with(self.num_zeros))
        plan = self._plan_positions(codebook, encoding)
        if plan is not None and plan.cost <= _TOLERANCE * dense_cost:
            blob = self._encode_sparse(codebook, plan, encoding)
        elif codebook is not None:
            blob = self._encode_dense(codebook, encoding)
        else:
            blob = _blob_of_values(self.flags, self.bits, encoding)
        return min(plain, blob.to_bytes(), key=len)

    @cached_property
    def num_zeros(self) -> int:
        """Entries whose bits are all zero; -0.0 is not one of them."""
        return self.bits.size - int(np.count_nonzero(self.bits))

    @cached_property
    def codebook(self) -> "_Codebook | None":
        """The distinct nonzero values, or None where there are none or too many."""
        for part in (self.bits[:: max(self.bits.size // _SAMPLE, 1)], self.bits):
            values, counts = np.unique(part[part != 0], return_counts=True)
            if len(values) > MAX_CODEBOOK:
                return None
        return _Codebook(values, counts) if len(values) else None

    @cached_property
    def orders(self) -> "list[_Order]":
        """The positions in the orders in which they may be stored; empty where there are too few zeros."""
        if _TOLERANCE * (self.bits.size - self.num_zeros) > self.bits.size:
            return []
        positions = np.flatnonzero(self.bits)
        orders = [(0, positions)]
        if min(matrix_shape(self.shape)) > 1:
            orders.append((COLUMN_MAJOR, np.sort(to_column_major(positions, self.shape))))
        return [
            _Order(flags, ordered, *np.unique(relative_index.steps_between(ordered), return_counts=True))
            for flags, ordered in orders
        ]

    def _plan_positions(self, codebook: "_Codebook | None", encoding: EncodingConfig) -> "_Plan | None":
        """The cheapest way to write positions, found from histograms alone."""
        codec, plans = CODECS[encoding.codec], list[_Plan]()
        for order in self.orders:
            for index_bits in INDEX_BITS if encoding.index_bits is None else (encoding.index_bits,):
                written, fillers = relative_index.histogram(order.steps, order.counts, index_bits)
                lower_bound = _entropy(written) + (0.0 if codebook is None else _entropy(codebook.counts))
                if not plans or lower_bound < min(plan.cost for plan in plans):
                    if codebook is None:
                        value_cost = self.bits.itemsize * float(len(order.positions) + fillers)
                    else:
                        value_cost = codec.cost(codebook.counts_with(fillers))
                    plans.append(_Plan(order, index_bits, codec.cost(written) + value_cost))
                if not fillers:
                    break  # wider differences would have the same histogram
        return min(plans, key=lambda plan: plan.cost, default=None)

    def _encode_dense(self, codebook: "_Codebook", encoding: EncodingConfig) -> TensorBlob:
        """A code for every entry; zero is one of the values if it occurs."""
        values = codebook.values_with_zero(self.num_zeros > 0)
        codes = encode_symbols(np.searchsorted(values, self.bits), len(values), encoding)
        return TensorBlob(self.flags | CODEBOOK, self.bits.size, values.tobytes(), codes=codes)

    def _encode_sparse(
        self, codebook: "_Codebook | None", plan: "_Plan", encoding: EncodingConfig
    ) -> TensorBlob:
        """The nonzero entries and fillers, and their positions."""
        positions = plan.order.positions
        gaps, is_filler = relative_index.encode(positions, plan.index_bits)
        entries = np.zeros(len(gaps), self.bits.dtype)
        row_major = to_row_major(positions, self.shape) if plan.order.flags else positions
        entries[~is_filler] = self.bits[row_major]
        flags = self.flags | SPARSE | plan.order.flags
        stream = encode_symbols(gaps, 1 << plan.index_bits, encoding)
        if codebook is None:
            return _blob_of_values(flags, entries, encoding, plan.index_bits, stream)
        values = codebook.values_with_zero(bool(is_filler.any()))
        codes = encode_symbols(np.searchsorted(values, entries), len(values), encoding)
        return TensorBlob(flags | CODEBOOK, len(gaps), values.tobytes(), plan.index_bits, stream, codes)


@dataclass(frozen=True)
class _Codebook:
    """The distinct nonzero values in the order of their bits, and how often each occurs."""

    values: Bits
    counts: Ints

    def values_with_zero(self, include: bool) -> Bits:
        return np.concatenate([np.zeros(int(include), self.values.dtype), self.values])

    def counts_with(self, num_zeros: int) -> Ints:
        return np.concatenate([[num_zeros], self.counts]) if num_zeros else self.counts


@dataclass(frozen=True)
class _Order:
    """Positions of the nonzero entries in row-major or column-major order, and the histogram of their steps."""

    flags: int
    positions: NDArray[np.int64]
    steps: NDArray[np.int64]
    counts: Ints


@dataclass(frozen=True)
class _Plan:
    """An order of the positions, the bits of a stored difference, and the bytes of positions and values."""

    order: _Order
    index_bits: int
    cost: float


def entry_bits(name: str, tensor: Tensor) -> Bits:
    """The entries of a tensor in row-major order as little-endian unsigned integers.

    Args:
        name: The name of the tensor, for errors.
        tensor: A dense tensor of any shape, on any device.

    Returns:
        The entries, [n], of the unsigned integer dtype of the tensor's item size; of a complex one the parts, [2n].

    Raises:
        ContainerError: The tensor is lazy, sparse, quantized, nested or on the meta device, or a file cannot hold its
            dtype.
    """
    if is_lazy(tensor):
        raise ContainerError(
            f"{name} is an uninitialized parameter of a lazy module; run the module on a batch before it is written."
        )
    has_values = tensor.layout == torch.strided and tensor.device.type != "meta"
    if not has_values or tensor.is_quantized or tensor.is_nested:
        kind = f"{tensor.layout} on {tensor.device}"
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else kind
        raise ContainerError(f"{name} is {kind}; a file holds dense tensors with values.")
    if tensor.dtype not in DTYPES.values():
        raise ContainerError(f"{name} is {tensor.dtype}; a file holds {', '.join(DTYPES)}.")
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    size = tensor.element_size()
    dtype = unsigned_dtype(size)
    flat = np.ascontiguousarray(tensor.view(INTEGERS[size]).reshape(-1).numpy())
    return flat.view(dtype.newbyteorder("=")).astype(dtype, copy=False)


def encode_symbols(symbols: Ints, alphabet: int, encoding: EncodingConfig) -> Stream:
    """Encode symbols 0..alphabet-1 with the codec of `encoding`, or bit-packed where that is not larger.

    Args:
        symbols: Integers from 0 to `alphabet` - 1, [n].
        alphabet: The number of different symbols that may occur.
        encoding: The settings, of which the codec is used.

    Returns:
        The bytes, with the name of the codec that wrote them.
    """
    data = CODECS[encoding.codec].encode(symbols, alphabet)
    if -(-symbols.size * width(alphabet) // 8) <= len(data):
        return Stream("bitpack", CODECS["bitpack"].encode(symbols, alphabet))
    return Stream(encoding.codec, data)


def _blob_of_values(
    flags: int, values: Bits, encoding: EncodingConfig, index_bits: int = 0, gaps: Stream | None = None
) -> TensorBlob:
    """The blob of values without a codebook: in byte planes where those are smaller, else as they are."""
    planes = encode_planes(values, encoding)
    if planes:
        return TensorBlob(flags | PLANES, values.size, b"", index_bits, gaps, planes=planes)
    return TensorBlob(flags, values.size, values.tobytes(), index_bits, gaps)


def encode_planes(values: Bits, encoding: EncodingConfig) -> tuple[Stream, ...]:
    """Encode the bytes of values, those of one significance in one stream.

    Args:
        values: The bits of the values, [n].
        encoding: The settings, of which the codec is used.

    Returns:
        One stream per byte of a value; none where they would not be 1 % smaller than the values.
    """
    if values.size < MIN_PLANE_ENTRIES:
        return ()
    codec, streams = CODECS[encoding.codec], list[Stream]()
    for plane in byte_planes(values):
        if codec.cost(np.bincount(plane, minlength=256)) < MAX_PLANE_COST * plane.size:
            streams.append(encode_symbols(plane, 256, encoding))
        else:
            streams.append(Stream("bitpack", plane.tobytes()))
    is_smaller = _TOLERANCE * sum(len(stream.data) for stream in streams) < values.nbytes
    return tuple(streams) if is_smaller else ()


def _as_float16(bits: Bits) -> Bits | None:
    """float32 entries as float16, or None where a value would change, or is NaN, which processors convert variously."""
    for part in (bits[:_SAMPLE], bits):
        with np.errstate(over="ignore", invalid="ignore"):
            halves = part.view("<f4").astype("<f2")
        if not np.array_equal(halves.astype("<f4").view("<u4"), part):
            return None
    return None if np.isnan(halves).any() else halves.view("<u2")


def _entropy(counts: Ints) -> float:
    """Order-0 entropy in bytes of symbols with these counts: a lower bound for every codec."""
    present = counts[counts > 0]
    return float((present * np.log2(present.sum() / present)).sum() / 8)
