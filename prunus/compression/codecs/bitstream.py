"""Bits in a row, most significant first, and the run-length code of the tables of Huffman and range coder.

A table is a level (a small integer, or ABSENT) for each symbol of an alphabet. It is written as segments of
equal level: Elias gamma of the run length, then Elias gamma of zigzag(level - last level) + 1, starting
from level -1. Neighboring segments differ, so a difference of nought is free to say ABSENT; after an
ABSENT segment, which cannot be followed by another, it says that the level is the last one again. Segments
follow until the alphabet is full.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from prunus.errors import CorruptFileError

ABSENT = -1
"""The level of a symbol that does not occur."""

LARGEST_ALPHABET = 1 << 16
"""Symbols that a table describes, at most."""

CHUNK = 1 << 15
"""Symbols that are decoded at a time, so that decoding needs little memory beside its result."""

Ints = NDArray[np.integer]
"""What every codec takes and gives: a row of non-negative integers."""

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
    """The table of `levels` (one a symbol, 0..255 or ABSENT) as whole bytes, padded with zero bits."""
    if len(levels) > LARGEST_ALPHABET:
        raise ValueError(f"Expected an alphabet of at most {LARGEST_ALPHABET} symbols, got {len(levels)}.")
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
    data: Data, alphabet: int, largest: int, num_symbols: int | None = None
) -> tuple[Ints, int]:
    """The levels of `alphabet` symbols at the head of `data`, and how many bytes they take.

    `num_symbols` is the length of the row that the table is for: a segment that is not absent covers a symbol that
    occurs, so that a row of n symbols needs at most 2n + 1 segments.

    Raises CorruptFileError where the table does not end, overruns the alphabet, leaves 0..largest, or has more segments
    than its row can use.
    """
    if alphabet > LARGEST_ALPHABET:
        raise CorruptFileError(f"A table is of {alphabet} symbols; {LARGEST_ALPHABET} is the most allowed.")
    reader = _GammaReader(data)
    levels = np.full(alphabet, ABSENT, np.int64)
    segments_left = alphabet if num_symbols is None else 2 * num_symbols + 1
    start, last, after_gap = 0, ABSENT, False
    while start < alphabet:
        if not segments_left:
            raise CorruptFileError(f"A table has more segments than a row of {num_symbols} symbols can use.")
        segments_left -= 1
        run, code = reader.gamma(), reader.gamma() - 1
        if run > alphabet - start:
            raise CorruptFileError(f"A table runs to symbol {start + run} of an alphabet of {alphabet}.")
        if code == 0 and not after_gap:
            after_gap = True
        else:
            last += (code + 1) // 2 if code % 2 else -(code // 2)
            if not 0 <= last <= largest:
                raise CorruptFileError(f"A table holds level {last}; the largest is {largest}.")
            levels[start : start + run] = last
            after_gap = False
        start += run
    return levels, reader.bytes_used()


class _GammaReader:
    """Elias gamma codes from the head of some bytes, through a window of bits that slides along them.

    `bits` is the window as characters 0 and 1, `at` the next bit in it, `end` the byte of `data` where it ends.
    """

    def __init__(self, data: Data) -> None:
        self.data, self.bits, self.at, self.end = data, "", 0, 0

    def gamma(self) -> int:
        one = self.bits.find("1", self.at)
        while one < 0 or len(self.bits) < 2 * one - self.at + 1:
            chunk = self.data[self.end : self.end + 64]
            if not chunk or (one < 0 and len(self.bits) - self.at > 64):
                raise CorruptFileError("A table of symbols does not end.")
            # Bits that were read are dropped, so that the time is linear in the length of the table.
            self.bits = self.bits[self.at :] + f"{int.from_bytes(chunk, 'big'):0{8 * len(chunk)}b}"
            self.at, self.end = 0, self.end + len(chunk)
            one = self.bits.find("1")
        end = 2 * one - self.at + 1
        value, self.at = int(self.bits[one:end], 2), end
        return value

    def bytes_used(self) -> int:
        unread = len(self.bits) - self.at
        if "1" in self.bits[self.at : self.at + unread % 8]:
            raise CorruptFileError("The padding of a table of symbols is not zero.")
        return self.end - unread // 8


def join_chunks(chunks: Iterator[NDArray[np.int32]], count: int) -> NDArray[np.int32]:
    """The `count` symbols of these chunks as one row."""
    out, start = np.empty(count, np.int32), 0
    for chunk in chunks:
        out[start : start + chunk.size] = chunk
        start += chunk.size
    return out


def chunk_sizes(count: int) -> Iterator[int]:
    """The lengths of the chunks of a row of `count` symbols: CHUNK each, and what remains.

    >>> list(chunk_sizes(2 * CHUNK + 3)) == [CHUNK, CHUNK, 3]
    True
    """
    for start in range(0, count, CHUNK):
        yield min(CHUNK, count - start)


def repeat_symbol(symbol: int, count: int) -> Iterator[NDArray[np.int32]]:
    """The chunks of a row in which one symbol occurs `count` times."""
    chunk = np.full(min(count, CHUNK), symbol, np.int32)
    for size in chunk_sizes(count):
        yield chunk[:size]


def as_symbols(symbols: Ints, alphabet: int) -> NDArray[np.int32]:
    """`symbols` as one row of int32, or ValueError where one lies outside 0..alphabet-1."""
    flat = np.ascontiguousarray(symbols, np.int32).reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= alphabet):
        raise ValueError(f"Symbols from {flat.min()} to {flat.max()} do not fit an alphabet of {alphabet}.")
    return flat
