"""Range coder (asymmetric numeral systems, by constriction) with a static table of integer frequencies.

Bytes: a table of levels (`bitstream`), then the 32-bit words of the coder, little-endian, without the zero
bytes at their end. A symbol of level q has weight R[q mod 4] >> (q div 4), R[i] = round(2^(32 - i/4)), so a
level is a quarter of a bit. The frequencies are f = floor(2^24 weight / sum of weights), and the difference of
their sum to 2^24 is added to the first of the largest. The coder receives f / 2^24 and computes for n of them,
with C the sum of the previous ones,

    left = floor(C (2^24 - n) / 2^24) + index,      every step exact in float64 and so in integers.

Only symbols in the table count; if there is only one, there are no words. The encoder gives neighboring symbols
the same level where this saves more bits of the table than the coarser model costs: in blocks of a binary tree
over the alphabet, merged from the leaves up.

Source: Duda 2009 (ANS), https://bamler-lab.github.io/constriction (words, state of 64 bits, 24 bits of
precision).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs.bitstream import (
    ABSENT,
    Data,
    Ints,
    as_symbols,
    chunk_sizes,
    pack_levels,
    repeat_symbol,
    unpack_levels,
)
from prunus.errors import CorruptFileError

MAX_LEVEL = 127
"""The largest level: 2^(-127/4) of the most frequent symbol."""

_PRECISION = 24
_ROOTS = np.array([4294967296, 3611622603, 3037000500, 2553802834], np.int64)
_LEVEL_BITS = 5.0
"""Approximate bits of a level in the table."""


def frequencies(levels: Ints) -> NDArray[np.int64]:
    """Integer frequencies, summing to 2^24, of symbols with these levels (none of them ABSENT)."""
    weights = _ROOTS[levels & 3] >> (levels >> 2)
    result: NDArray[np.int64] = (weights << _PRECISION) // int(weights.sum())
    result[np.argmax(result)] += (1 << _PRECISION) - int(result.sum())
    return result


def levels_for(counts: Ints) -> NDArray[np.int64]:
    """The level of each symbol that occurs `counts` times, ABSENT for those that do not."""
    mean = _smooth(np.asarray(counts, np.float64))
    levels = np.full(len(counts), ABSENT, np.int64)
    present = mean > 0
    if present.any():
        steps = np.rint(4 * np.log2(mean.max() / mean[present])).astype(np.int64)
        levels[present] = np.minimum(steps, MAX_LEVEL)
    return levels


def _smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace `counts` by their mean in the dyadic blocks in which separate table entries cost more than they save.

    From the leaves up, the cost of a block is the smaller of two: its symbols at their mean count with one entry,
    or its two halves.
    """
    n, total = len(counts), counts.sum()
    depth = max(n - 1, 0).bit_length()
    mass = np.zeros(1 << depth)
    mass[:n] = counts
    best, means = _block_cost(mass, np.ones(1 << depth, np.int64), total), mass.copy()
    for level in range(1, depth + 1):
        size = 1 << level
        mass = mass.reshape(-1, 2).sum(1)
        inside = np.clip(n - size * np.arange(len(mass)), 0, size)
        merged_cost, split_cost = _block_cost(mass, inside, total), best.reshape(-1, 2).sum(1)
        best = np.minimum(merged_cost, split_cost)
        blocks = means.reshape(-1, size)
        merged = merged_cost < split_cost
        blocks[merged] = (mass / np.maximum(inside, 1))[merged, None]
    return means[:n]


def _block_cost(mass: NDArray[np.float64], size: Ints, total: float) -> NDArray[np.float64]:
    """Bits of blocks of `size` symbols that occur `mass` times together, with their entries in the table."""
    safe = np.maximum(mass, 1.0)
    payload = mass * np.log2(np.maximum(total, 1.0) * np.maximum(size, 1) / safe)
    entry = 2 * np.floor(np.log2(np.maximum(size, 1))) + 1 + np.where(mass > 0, _LEVEL_BITS, 1.0)
    return np.asarray(payload + np.where(size > 0, entry, 0.0))


def _model(levels: Ints) -> object:
    import constriction

    probabilities = frequencies(levels) / float(1 << _PRECISION)
    return constriction.stream.model.Categorical(probabilities, perfect=False)


def encode(symbols: Ints, alphabet: int) -> bytes:
    """Encode `symbols` (0..alphabet-1) as table and words.

    Args:
        symbols: Integers from 0 to `alphabet` - 1, of any shape; they are encoded in row-major order.
        alphabet: The number of different symbols that may occur.

    Returns:
        The table of levels, then the words without the zero bytes at their end; the table alone where at most one
        symbol occurs.

    Raises:
        ValueError: A symbol is not in the alphabet, or the alphabet has more than `MAX_ALPHABET` symbols.
    """
    import constriction

    flat = as_symbols(symbols, alphabet)
    levels = levels_for(np.bincount(flat, minlength=alphabet))
    present = levels != ABSENT
    table = pack_levels(levels)
    if int(present.sum()) <= 1:
        return table
    rank = (np.cumsum(present) - 1).astype(np.int32)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(flat if present.all() else rank[flat], _model(levels[present]))
    words: NDArray[np.uint32] = coder.get_compressed()
    return table + words.astype("<u4").tobytes().rstrip(b"\0")


def decode_chunks(data: Data, count: int, alphabet: int) -> Iterator[NDArray[np.int32]]:
    """Yield the `count` symbols of `data` in chunks.

    Args:
        data: What `encode` returned.
        count: The number of symbols, at least 0.
        alphabet: The number of different symbols that may occur, as it was given to `encode`.

    Yields:
        Symbols in their order, [n] int32 with n at most `CHUNK`; the last chunk may be shorter.

    Raises:
        CorruptFileError: The table is malformed or empty, the words end in a zero byte, or `count` symbols do not use
            all of the words.
    """
    import constriction

    levels, used = unpack_levels(data, alphabet, MAX_LEVEL, count)
    present = np.flatnonzero(levels != ABSENT).astype(np.int32)
    payload = memoryview(data)[used:]
    if count and not len(present):
        raise CorruptFileError(
            f"Expected a table of at least one symbol for {count} symbols, got an empty one."
        )
    if len(present) <= 1 or count == 0:
        if payload:
            raise CorruptFileError(
                f"Expected no words after the table of a single symbol, got {len(payload)} bytes."
            )
        yield from repeat_symbol(int(present[0]) if count else 0, count)
        return
    if payload and not payload[-1]:
        raise CorruptFileError("The words of a range coder end in a zero byte.")
    words = np.zeros(-(-len(payload) // 4), "<u4")
    words.view(np.uint8)[: len(payload)] = np.frombuffer(payload, np.uint8)
    coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32, copy=False))
    del words  # the coder has its own copy
    model = _model(levels[present])
    for size in chunk_sizes(count):
        ranks: NDArray[np.int32] = coder.decode(model, size)
        yield ranks if len(present) == alphabet else present[ranks]
    if not coder.is_empty():
        raise CorruptFileError(f"{count} symbols do not use all {len(payload)} bytes of their words.")


def cost(counts: Ints) -> float:
    """Number of bytes of the encoding of symbols with these counts, table included; exact to a few bytes."""
    levels = levels_for(counts)
    present = levels != ABSENT
    table = len(pack_levels(levels))
    if int(present.sum()) <= 1:
        return float(table)
    bits = counts[present] * (_PRECISION - np.log2(np.maximum(frequencies(levels[present]), 1)))
    return float(table + bits.sum() / 8 + 1)
