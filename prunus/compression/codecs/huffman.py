"""Canonical Huffman code: an integer number of bits per symbol, more for rare symbols than for frequent ones.

Bytes: the code lengths (1..24, as a table of `bitstream`), then the codes, most significant bit first. Codes
are canonical: they count up from zero by (length, symbol). A code length above 24 is avoided by halving the
counts (rounding up) until there is none, whose cost is not measurable. A single symbol has length 0: no bits.

Source: Huffman 1952; used by Han et al. 2016, section 4, for codes and for index differences.
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

MAX_LENGTH = 24
"""The largest code length, in bits."""

_BLOCK = 1 << 16


def lengths(counts: Ints) -> NDArray[np.int64]:
    """Code length of each symbol in bits, ABSENT where its count is zero.

    >>> lengths(np.array([5, 0, 2, 1]))
    array([ 1, -1,  2,  2])
    """
    present = np.flatnonzero(counts)
    out = np.full(len(counts), ABSENT, np.int64)
    weights = np.asarray(counts, np.int64)[present]
    while True:
        depths = _depths(weights)
        if not depths.size or int(depths.max()) <= MAX_LENGTH:
            break
        weights = (weights + 1) >> 1
    out[present] = depths
    return out


def _depths(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Depth of each leaf of a Huffman tree, from two queues: the sorted leaves, and the inner nodes."""
    order = np.argsort(weights, kind="stable")
    n = len(weights)
    if n <= 1:
        return np.zeros(n, np.int64)
    mass = [*weights[order].tolist(), *([0] * (n - 1))]
    parent = [0] * (2 * n - 1)
    leaf, node = 0, n
    for new in range(n, 2 * n - 1):
        for _ in range(2):
            if leaf < n and (node == new or mass[leaf] <= mass[node]):
                child, leaf = leaf, leaf + 1
            else:
                child, node = node, node + 1
            mass[new] += mass[child]
            parent[child] = new
    depth = [0] * (2 * n - 1)
    for child in range(2 * n - 3, -1, -1):
        depth[child] = depth[parent[child]] + 1
    out = np.empty(n, np.int64)
    out[order] = depth[:n]
    return out


def codes(length: Ints) -> NDArray[np.int64]:
    """The canonical code of each symbol: counts up by (length, symbol), shifted when the length grows."""
    out = np.zeros(len(length), np.int64)
    code, last = 0, 0
    for symbol in sorted(np.flatnonzero(length > 0).tolist(), key=lambda s: int(length[s])):
        code <<= int(length[symbol]) - last
        out[symbol], last = code, int(length[symbol])
        code += 1
    return out


def encode(symbols: Ints, alphabet: int) -> bytes:
    """Encode `symbols` (0..alphabet-1) as table and codes.

    Args:
        symbols: Integers from 0 to `alphabet` - 1, of any shape; they are encoded in row-major order.
        alphabet: The number of different symbols that may occur.

    Returns:
        The table of code lengths, then the codes, padded with zero bits to full bytes.

    Raises:
        ValueError: A symbol is not in the alphabet, or the alphabet has more than `MAX_ALPHABET` symbols.
    """
    flat = as_symbols(symbols, alphabet)
    length = lengths(np.bincount(flat, minlength=alphabet))
    code = codes(length)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    bits = [_bits(code[block], length[block]) for block in blocks]
    return pack_levels(length) + np.packbits(np.concatenate([np.zeros(0, np.uint8), *bits])).tobytes()


def _bits(code: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The concatenated codes, one bit per item."""
    ends = np.cumsum(length)
    shift = np.repeat(ends, length) - np.arange(1, int(ends[-1]) + 1)
    return ((np.repeat(code, length) >> shift) & 1).astype(np.uint8)


def decode_chunks(data: Data, count: int, alphabet: int) -> Iterator[NDArray[np.int32]]:
    """Yield the `count` symbols of `data` in chunks.

    Args:
        data: What `encode` returned.
        count: The number of symbols, at least 0.
        alphabet: The number of different symbols that may occur, as it was given to `encode`.

    Yields:
        Symbols in their order, [n] int32 with n at most `CHUNK`; the last chunk may be shorter.

    Raises:
        CorruptFileError: The table is malformed, its code lengths are not those of a complete code, or `count` codes do
            not fill the rest of the bytes.
    """
    length, used = unpack_levels(data, alphabet, MAX_LENGTH, count)
    present = np.flatnonzero(length != ABSENT)
    payload = np.frombuffer(data, np.uint8)[used:]
    if count == 0 or len(present) == 1:
        if payload.size or (count and length[present[0]] != 0):
            raise CorruptFileError(
                f"Expected no codes after the table of a single symbol, got {payload.size} bytes."
            )
        yield from repeat_symbol(int(present[0]) if count else 0, count)
        return
    code_space = int((1 << (MAX_LENGTH - length[present])).sum())
    if not len(present) or int(length[present].min()) < 1 or code_space != 1 << MAX_LENGTH:
        raise CorruptFileError("The code lengths of a Huffman table are not those of a complete code.")
    if count > 8 * payload.size:
        raise CorruptFileError(f"{payload.size} bytes cannot hold {count} codes.")
    from prunus.compression.codecs.huffman_kernel import decode_canonical

    order = present[np.argsort(length[present], kind="stable")].astype(np.int32)
    per_length = np.bincount(length[present], minlength=MAX_LENGTH + 1)
    bits = 0
    for size in chunk_sizes(count):
        symbols = np.empty(size, np.int32)
        bits = decode_canonical(payload, bits, order, per_length, symbols)
        yield symbols
    if -(-bits // 8) != payload.size or (bits % 8 and payload[-1] & ((1 << (8 - bits % 8)) - 1)):
        raise CorruptFileError(f"{count} Huffman codes do not fill {payload.size} bytes.")


def cost(counts: Ints) -> float:
    """Number of bytes of the encoding of symbols with these counts, table included; exact."""
    length = lengths(counts)
    bits = int((np.maximum(length, 0) * counts).sum())
    return float(len(pack_levels(length)) + -(-bits // 8))
