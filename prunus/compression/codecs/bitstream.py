"""The run-length code of the tables of the Huffman and range coders, and helpers of all codecs.

A table is a level (a small integer, or ABSENT) for each symbol of an alphabet. It is written as segments of
equal level: Elias gamma of the run length, then Elias gamma of zigzag(level - last level) + 1, starting
from level -1. Neighboring segments differ, so a difference of zero can stand for ABSENT; after an ABSENT
segment, which cannot be followed by another, it stands for the last level again. Segments follow each other
until the alphabet is full.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from prunus.errors import CorruptFileError

ABSENT = -1
"""The level of a symbol that does not occur."""

MAX_ALPHABET = 1 << 16
"""The most symbols that a table describes."""

CHUNK = 1 << 15
"""Symbols that are decoded at a time, so that decoding takes little memory besides its result."""

Ints = NDArray[np.integer]
"""A sequence of non-negative integers, as every codec encodes and decodes."""

Data = bytes | memoryview
"""The bytes of a stream; a view saves a copy."""


def gamma(value: int) -> str:
    """Elias gamma code of a positive integer, as characters 0 and 1.

    >>> gamma(1), gamma(5)
    ('1', '00101')
    """
    binary = f"{value:b}"
    return "0" * (len(binary) - 1) + binary


def pack_levels(levels: Ints) -> bytes:
    """Encode the table of `levels` (one per symbol, 0..255 or ABSENT), padded with zero bits to full bytes."""
    if len(levels) > MAX_ALPHABET:
        raise ValueError(f"Expected an alphabet of at most {MAX_ALPHABET} symbols, got {len(levels)}.")
    bits, last = [], ABSENT
    for level, run in groupby(levels.tolist()):
        length = sum(1 for _ in run)
        step = 0 if level == ABSENT else level - last
        bits.append(gamma(length) + gamma((2 * step - 1 if step > 0 else -2 * step) + 1))
        last = last if level == ABSENT else level
    text = "".join(bits)
    size = -(-len(text) // 8)
    return int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big") if text else b""


def unpack_levels(
    data: Data, alphabet: int, max_level: int, num_symbols: int | None = None
) -> tuple[Ints, int]:
    """Decode the table at the beginning of `data`.

    Args:
        data: Bytes that begin with the table.
        alphabet: Number of symbols of the table.
        max_level: The largest allowed level.
        num_symbols: Number of encoded symbols. A segment that is not absent covers a symbol that occurs, so that n
            symbols need at most 2n + 1 segments.

    Returns:
        The levels, [alphabet], and the number of bytes of the table.

    Raises:
        CorruptFileError: The table does not end, exceeds the alphabet, has a level outside 0..max_level, or has more
            segments than `num_symbols` symbols can use.
    """
    if alphabet > MAX_ALPHABET:
        raise CorruptFileError(f"Expected a table of at most {MAX_ALPHABET} symbols, got {alphabet}.")
    reader = _GammaReader(data)
    levels = np.full(alphabet, ABSENT, np.int64)
    remaining_segments = alphabet if num_symbols is None else 2 * num_symbols + 1
    start, last, after_absent = 0, ABSENT, False
    while start < alphabet:
        if not remaining_segments:
            raise CorruptFileError(f"A table has more segments than {num_symbols} symbols can use.")
        remaining_segments -= 1
        run, code = reader.gamma(), reader.gamma() - 1
        if run > alphabet - start:
            raise CorruptFileError(f"A table describes symbol {start + run} of an alphabet of {alphabet}.")
        if code == 0 and not after_absent:
            after_absent = True
        else:
            last += (code + 1) // 2 if code % 2 else -(code // 2)
            if not 0 <= last <= max_level:
                raise CorruptFileError(f"Expected levels from 0 to {max_level} in a table, got {last}.")
            levels[start : start + run] = last
            after_absent = False
        start += run
    return levels, reader.bytes_used()


class _GammaReader:
    """Reads Elias gamma codes from the beginning of `data`, through a window of bits that slides over it.

    `bits` is the window as characters 0 and 1, `position` the next bit in it, `end` the byte of `data` where it ends.
    """

    def __init__(self, data: Data) -> None:
        self.data, self.bits, self.position, self.end = data, "", 0, 0

    def gamma(self) -> int:
        first_one = self.bits.find("1", self.position)
        while first_one < 0 or len(self.bits) < 2 * first_one - self.position + 1:
            chunk = self.data[self.end : self.end + 64]
            if not chunk or (first_one < 0 and len(self.bits) - self.position > 64):
                raise CorruptFileError("A table of symbols does not end.")
            # Dropping the bits that were read makes the time linear in the length of the table.
            self.bits = self.bits[self.position :] + f"{int.from_bytes(chunk, 'big'):0{8 * len(chunk)}b}"
            self.position, self.end = 0, self.end + len(chunk)
            first_one = self.bits.find("1")
        end = 2 * first_one - self.position + 1
        value, self.position = int(self.bits[first_one:end], 2), end
        return value

    def bytes_used(self) -> int:
        unread = len(self.bits) - self.position
        if "1" in self.bits[self.position : self.position + unread % 8]:
            raise CorruptFileError("The padding of a table of symbols is not zero.")
        return self.end - unread // 8


def chunk_sizes(count: int) -> Iterator[int]:
    """The lengths of the chunks of `count` symbols: CHUNK each, and a shorter last one.

    >>> list(chunk_sizes(2 * CHUNK + 3)) == [CHUNK, CHUNK, 3]
    True
    """
    for start in range(0, count, CHUNK):
        yield min(CHUNK, count - start)


def repeat_symbol(symbol: int, count: int) -> Iterator[NDArray[np.int32]]:
    """The chunks of `count` times the same symbol.

    Args:
        symbol: The symbol, in the range of int32.
        count: How often it occurs, at least 0.

    Yields:
        The chunks, [n] int32 with n at most `CHUNK`; all are views of one array.
    """
    chunk = np.full(min(count, CHUNK), symbol, np.int32)
    for size in chunk_sizes(count):
        yield chunk[:size]


def as_symbols(symbols: Ints, alphabet: int) -> NDArray[np.int32]:
    """Flatten `symbols` to int32.

    Args:
        symbols: Integers of any shape.
        alphabet: The number of different symbols that may occur.

    Returns:
        The symbols in row-major order, [n] int32; not a copy where `symbols` is a contiguous int32 array.

    Raises:
        ValueError: A symbol is outside 0..alphabet-1.
    """
    flat = np.ascontiguousarray(symbols, np.int32).reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= alphabet):
        raise ValueError(f"Expected symbols from 0 to {alphabet - 1}, got {flat.min()} to {flat.max()}.")
    return flat
