"""Canonical Huffman: a whole number of bits a symbol, rare symbols long, frequent ones short.

Bytes: the code lengths (1..24, as a table of bits.py), then the codes, most significant bit first. Codes
are canonical: counted up from nought by (length, symbol). A code length beyond 24 is avoided by halving the
counts (rounding up) until it is gone, which costs nothing that can be measured. One single symbol has
length 0: no bits.

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
    join_chunks,
    pack_levels,
    repeat_symbol,
    unpack_levels,
)
from prunus.errors import CorruptFileError

LONGEST = 24
"""No code is longer, in bits."""

_BLOCK = 1 << 16


def lengths(counts: Ints) -> NDArray[np.int64]:
    """Code length of each symbol in bits, ABSENT where its count is nought.

    >>> lengths(np.array([5, 0, 2, 1]))
    array([ 1, -1,  2,  2])
    """
    present = np.flatnonzero(counts)
    out = np.full(len(counts), ABSENT, np.int64)
    weights = np.asarray(counts, np.int64)[present]
    while True:
        found = _depths(weights)
        if not found.size or int(found.max()) <= LONGEST:
            break
        weights = (weights + 1) >> 1
    out[present] = found
    return out


def _depths(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Depth of each leaf of a Huffman tree, by two queues: the sorted leaves, and the nodes as made."""
    order = np.argsort(weights, kind="stable")
    n = len(weights)
    if n <= 1:
        return np.zeros(n, np.int64)
    mass = [*weights[order].tolist(), *([0] * (n - 1))]
    parent = [0] * (2 * n - 1)
    leaf, node = 0, n
    for made in range(n, 2 * n - 1):
        for _ in range(2):
            if leaf < n and (node == made or mass[leaf] <= mass[node]):
                child, leaf = leaf, leaf + 1
            else:
                child, node = node, node + 1
            mass[made] += mass[child]
            parent[child] = made
    depth = [0] * (2 * n - 1)
    for child in range(2 * n - 3, -1, -1):
        depth[child] = depth[parent[child]] + 1
    out = np.empty(n, np.int64)
    out[order] = depth[:n]
    return out


def codes(length: Ints) -> NDArray[np.int64]:
    """The canonical code of each symbol: counted up by (length, symbol), shifted when the length grows."""
    out = np.zeros(len(length), np.int64)
    code, last = 0, 0
    for symbol in sorted(np.flatnonzero(length > 0).tolist(), key=lambda s: int(length[s])):
        code <<= int(length[symbol]) - last
        out[symbol], last = code, int(length[symbol])
        code += 1
    return out


def encode(symbols: Ints, alphabet: int) -> bytes:
    """`symbols` (0..alphabet-1) as table and codes; ValueError for a symbol outside."""
    flat = as_symbols(symbols, alphabet)
    length = lengths(np.bincount(flat, minlength=alphabet))
    code = codes(length)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    bits = [_bits(code[block], length[block]) for block in blocks]
    return pack_levels(length) + np.packbits(np.concatenate([np.zeros(0, np.uint8), *bits])).tobytes()


def _bits(code: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The codes in a row, one bit an item."""
    ends = np.cumsum(length)
    left = np.repeat(ends, length) - np.arange(1, int(ends[-1]) + 1)
    return ((np.repeat(code, length) >> left) & 1).astype(np.uint8)


def decode(data: Data, count: int, alphabet: int) -> NDArray[np.int32]:
    """The `count` symbols of `data`. Raises CorruptFileError where the bytes are not what `encode` writes."""
    return join_chunks(decode_chunks(data, count, alphabet), count)


def decode_chunks(data: Data, count: int, alphabet: int) -> Iterator[NDArray[np.int32]]:
    """The same in chunks."""
    length, used = unpack_levels(data, alphabet, LONGEST, count)
    present = np.flatnonzero(length != ABSENT)
    payload = np.frombuffer(data, np.uint8)[used:]
    if count == 0 or len(present) == 1:
        if payload.size or (count and length[present[0]] != 0):
            raise CorruptFileError(f"{payload.size} bytes of codes follow a table that needs none.")
        yield from repeat_symbol(int(present[0]) if count else 0, count)
        return
    space = int((1 << (LONGEST - length[present])).sum())
    if not len(present) or int(length[present].min()) < 1 or space != 1 << LONGEST:
        raise CorruptFileError("The code lengths of a Huffman table make no complete code.")
    if count > 8 * payload.size:
        raise CorruptFileError(f"{payload.size} bytes cannot hold {count} codes.")
    from prunus.compression.codecs.huffman_kernel import decode_canonical

    order = present[np.argsort(length[present], kind="stable")].astype(np.int32)
    per_length = np.bincount(length[present], minlength=LONGEST + 1)
    bits = 0
    for size in chunk_sizes(count):
        symbols = np.empty(size, np.int32)
        bits = decode_canonical(payload, bits, order, per_length, symbols)
        yield symbols
    if -(-bits // 8) != payload.size or (bits % 8 and payload[-1] & ((1 << (8 - bits % 8)) - 1)):
        raise CorruptFileError(f"{count} Huffman codes do not end where {payload.size} bytes end.")


def cost(counts: Ints) -> float:
    """Bytes that symbols with these counts take, table included; exact."""
    length = lengths(counts)
    bits = int((np.maximum(length, 0) * counts).sum())
    return float(len(pack_levels(length)) + -(-bits // 8))
