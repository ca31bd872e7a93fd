"""Bits in a row, most significant first, and the run-length code of the tables of Huffman and range coder.

A table is a level (a small integer, or ABSENT) for each symbol of an alphabet. It is written as segments of
equal level: Elias gamma of the run length, then Elias gamma of zigzag(level - last level) + 1, starting
from level -1. Neighbouring segments differ, so a difference of nought is free to say ABSENT; after an
ABSENT segment, which cannot be followed by another, it says that the level is the last one again. Segments
follow until the alphabet is full.
"""

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from prunus.errors import CorruptError

ABSENT = -1
"""The level of a symbol that does not occur."""

Ints = NDArray[np.integer]
"""What every codec takes and gives: a row of non-negative integers."""


def gamma(value: int) -> str:
    """Elias gamma code of a positive integer, as characters 0 and 1.

    >>> gamma(1), gamma(5)
    ('1', '00101')
    """
    binary = f"{value:b}"
    return "0" * (len(binary) - 1) + binary


def pack_levels(levels: Ints) -> bytes:
    """The table of `levels` (one a symbol, 0..255 or ABSENT) as whole bytes, padded with zero bits."""
    bits, last = [], ABSENT
    for level, run in groupby(levels.tolist()):
        length = sum(1 for _ in run)
        step = 0 if level == ABSENT else level - last
        bits.append(gamma(length) + gamma((2 * step - 1 if step > 0 else -2 * step) + 1))
        last = last if level == ABSENT else level
    text = "".join(bits)
    size = -(-len(text) // 8)
    return int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big") if text else b""


def unpack_levels(data: bytes, alphabet: int, largest: int) -> tuple[Ints, int]:
    """The levels of `alphabet` symbols at the head of `data`, and how many bytes they take.

    Raises CorruptError where the table does not end, overruns the alphabet, or leaves 0..largest.
    """
    reader = _GammaReader(data)
    levels = np.full(alphabet, ABSENT, np.int64)
    start, last, after_gap = 0, ABSENT, False
    while start < alphabet:
        run, code = reader.gamma(), reader.gamma() - 1
        if run > alphabet - start:
            raise CorruptError(f"A table runs to symbol {start + run} of an alphabet of {alphabet}.")
        if code == 0 and not after_gap:
            after_gap = True
        else:
            last += (code + 1) // 2 if code % 2 else -(code // 2)
            if not 0 <= last <= largest:
                raise CorruptError(f"A table holds level {last}; the largest is {largest}.")
            levels[start : start + run] = last
            after_gap = False
        start += run
    return levels, reader.bytes_used()


class _GammaReader:
    """Elias gamma codes from the head of some bytes; a window of bits is opened as needed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.bits, self.at = data, "", 0

    def gamma(self) -> int:
        one = self.bits.find("1", self.at)
        while one < 0 or len(self.bits) < 2 * one - self.at + 1:
            opened = len(self.bits) // 8
            chunk = self.data[opened : opened + 64]
            if not chunk or (one < 0 and len(self.bits) - self.at > 64):
                raise CorruptError("A table of symbols does not end.")
            self.bits += f"{int.from_bytes(chunk, 'big'):0{8 * len(chunk)}b}"
            one = self.bits.find("1", self.at)
        end = 2 * one - self.at + 1
        value, self.at = int(self.bits[one:end], 2), end
        return value

    def bytes_used(self) -> int:
        used = -(-self.at // 8)
        if "1" in self.bits[self.at : 8 * used]:
            raise CorruptError("The padding of a table of symbols is not zero.")
        return used


def as_symbols(symbols: Ints, alphabet: int) -> NDArray[np.int32]:
    """`symbols` as one row of int32, or ValueError where one lies outside 0..alphabet-1."""
    flat = np.ascontiguousarray(symbols, np.int32).reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= alphabet):
        raise ValueError(f"Symbols from {flat.min()} to {flat.max()} do not fit an alphabet of {alphabet}.")
    return flat
