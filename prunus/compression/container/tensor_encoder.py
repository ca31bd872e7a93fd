"""One tensor to its blob: which of its forms is smallest, decided from its bits alone."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from prunus.compression.codecs import CODECS, relative_index
from prunus.compression.codecs.bitpack import width
from prunus.compression.codecs.bitstream import Ints
from prunus.compression.container.encoding_config import WIDTHS, EncodingConfig
from prunus.compression.container.file_format import (
    COLUMNS,
    DTYPES,
    HALF,
    HOLES,
    INTEGERS,
    SHARED,
    Bits,
    Stream,
    TensorBlob,
    columns_first,
    rows_and_columns,
    rows_first,
    unsigned,
)
from prunus.errors import ContainerError, NonFiniteError

LARGEST_CODEBOOK = 256
"""Non-zero values that are stored once, at most; a filler's zero may come on top."""

_SAMPLE = 4096
_PATIENCE = 1.01
"""One per cent is not worth the time: fewer holes are not looked for, and positions, which are faster to
read, may take so much more than a code for every entry."""


def encode_tensor(name: str, tensor: Tensor, coding: EncodingConfig) -> TensorBlob:
    """The smallest form of a tensor. Raises NonFiniteError, or ContainerError for a dtype no file holds."""
    bits = bits_of(name, tensor)
    plain = TensorBlob(0, bits.size, bits.tobytes())
    if not tensor.dtype.is_floating_point or not bits.size:
        return plain
    halved = _halve(bits) if tensor.dtype == torch.float32 else None
    flags, bits = (0, bits) if halved is None else (HALF, halved)
    plain = TensorBlob(flags, bits.size, bits.tobytes())
    book = _codebook(bits) if coding.share else None
    dense = math.inf if book is None else _dense_cost(bits, book, coding)
    plan = _plan_holes(bits, tuple(tensor.shape), book, coding)
    if plan is not None and plan.cost <= _PATIENCE * dense:
        found = _with_holes(bits, tuple(tensor.shape), book, flags, plan, coding)
    elif book is not None:
        found = _without_holes(bits, book, flags, coding)
    else:
        return plain
    return min(plain, found, key=lambda blob: len(blob.to_bytes()))


def bits_of(name: str, tensor: Tensor) -> Bits:
    """The entries of a tensor in row-major order as little-endian unsigned integers."""
    if is_lazy(tensor):
        raise ContainerError(
            f"{name} is an uninitialized parameter of a lazy module; run the module on a batch before it is written."
        )
    if (
        tensor.layout != torch.strided
        or tensor.device.type == "meta"
        or tensor.is_quantized
        or tensor.is_nested
    ):
        kind = f"{tensor.layout} on {tensor.device}"
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else kind
        raise ContainerError(f"{name} is {kind}; a file holds dense tensors with values.")
    if tensor.dtype not in DTYPES.values():
        raise ContainerError(f"{name} is {tensor.dtype}; a file holds {', '.join(DTYPES)}.")
    tensor = tensor.detach().resolve_neg().cpu()
    if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NonFiniteError(f"{name} holds {bad} values that are NaN or infinite; nothing was written.")
    size = unsigned(tensor.element_size())
    flat = np.ascontiguousarray(tensor.view(INTEGERS[tensor.element_size()]).reshape(-1).numpy())
    return flat.view(size.newbyteorder("=")).astype(size, copy=False)


def _halve(bits: Bits) -> Bits | None:
    """float32 as float16, or None where a value would change."""
    for part in (bits[:_SAMPLE], bits):
        with np.errstate(over="ignore"):
            halves = part.view("<f4").astype("<f2")
        if not np.array_equal(halves.astype("<f4").view("<u4"), part):
            return None
    return halves.view("<u2")


@dataclass(frozen=True)
class _Codebook:
    """The distinct non-zero values in the order of their bits, and how often each occurs."""

    values: Bits
    counts: Ints

    def with_zero(self, wanted: bool) -> Bits:
        """The values, zero first where it is one of them."""
        return np.concatenate([np.zeros(int(wanted), self.values.dtype), self.values])


def _codebook(bits: Bits) -> _Codebook | None:
    """The codebook, or None where there is no value or there are too many."""
    for part in (bits[:: max(bits.size // _SAMPLE, 1)], bits):
        values, counts = np.unique(part[part != 0], return_counts=True)
        if len(values) > LARGEST_CODEBOOK:
            return None
    return _Codebook(values, counts) if len(values) else None


def _dense_cost(bits: Bits, book: _Codebook, coding: EncodingConfig) -> float:
    """Bytes of a code for every entry."""
    zeros = bits.size - int(book.counts.sum())
    return CODECS[coding.codec].cost(np.concatenate([[zeros], book.counts]) if zeros else book.counts)


def _without_holes(bits: Bits, book: _Codebook, flags: int, coding: EncodingConfig) -> TensorBlob:
    """Every entry as a code, zero being one of the values if it occurs."""
    values = book.with_zero(int(book.counts.sum()) < bits.size)
    codes = encode_symbols(np.searchsorted(values, bits), len(values), coding)
    return TensorBlob(flags | SHARED, bits.size, values.tobytes(), codes=codes)


@dataclass(frozen=True)
class _Plan:
    """Positions in the order and at the width that cost least, and what they and the values cost in bytes."""

    flags: int
    positions: NDArray[np.int64]
    index_bits: int
    cost: float


def _plan_holes(
    bits: Bits, shape: tuple[int, ...], book: _Codebook | None, coding: EncodingConfig
) -> _Plan | None:
    """The cheapest way to write positions, from histograms alone; None where holes are too few."""
    if _PATIENCE * np.count_nonzero(bits) > bits.size:
        return None
    positions = np.flatnonzero(bits)
    orders = [(0, positions)]
    if min(rows_and_columns(shape)) > 1:
        orders.append((COLUMNS, np.sort(columns_first(positions, shape))))
    plans: list[_Plan] = []
    for flags, ordered in orders:
        steps, counts = np.unique(relative_index.steps_between(ordered), return_counts=True)
        for index_bits in WIDTHS if coding.index_bits is None else (coding.index_bits,):
            written, fillers = relative_index.histogram(steps, counts, index_bits)
            least = _entropy(written) + (0.0 if book is None else _entropy(book.counts))
            if not plans or least < min(plan.cost for plan in plans):
                cost = CODECS[coding.codec].cost(written) + _values_cost(bits, book, fillers, coding)
                plans.append(_Plan(flags, ordered, index_bits, cost))
            if not fillers:
                break  # wider differences would be the same ones
    return min(plans, key=lambda plan: plan.cost)


def _values_cost(bits: Bits, book: _Codebook | None, fillers: int, coding: EncodingConfig) -> float:
    """Bytes of the values of the non-zero entries and the fillers."""
    if book is None:
        return bits.itemsize * float(np.count_nonzero(bits) + fillers)
    return CODECS[coding.codec].cost(np.concatenate([[fillers], book.counts]) if fillers else book.counts)


def _entropy(counts: Ints) -> float:
    """Order-0 entropy in bytes of symbols with these counts: no codec takes less."""
    present = counts[counts > 0]
    return float((present * np.log2(present.sum() / present)).sum() / 8)


def _with_holes(
    bits: Bits,
    shape: tuple[int, ...],
    book: _Codebook | None,
    flags: int,
    plan: _Plan,
    coding: EncodingConfig,
) -> TensorBlob:
    """The non-zero entries and fillers, and their positions, as `plan` says."""
    gaps, is_filler = relative_index.encode(plan.positions, plan.index_bits)
    entries = np.zeros(len(gaps), bits.dtype)
    entries[~is_filler] = bits[rows_first(plan.positions, shape) if plan.flags else plan.positions]
    flags |= HOLES | plan.flags
    stream = encode_symbols(gaps, 1 << plan.index_bits, coding)
    if book is None:
        return TensorBlob(flags, len(gaps), entries.tobytes(), plan.index_bits, stream)
    values = book.with_zero(bool(is_filler.any()))
    codes = encode_symbols(np.searchsorted(values, entries), len(values), coding)
    return TensorBlob(flags | SHARED, len(gaps), values.tobytes(), plan.index_bits, stream, codes)


def encode_symbols(symbols: Ints, alphabet: int, coding: EncodingConfig) -> Stream:
    """The symbols by the codec that was asked for, or packed where that takes no more."""
    asked = CODECS[coding.codec].encode(symbols, alphabet)
    if -(-symbols.size * width(alphabet) // 8) <= len(asked):
        return Stream("bitpack", CODECS["bitpack"].encode(symbols, alphabet))
    return Stream(coding.codec, asked)
