"""Codecs: rows of small integers to bytes and back, with numpy alone; self-contained and lossless."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs import bitpack, huffman, range_coder
from prunus.compression.codecs.bits import Ints


@dataclass(frozen=True)
class Codec:
    """A way to write symbols 0..alphabet-1.

    `encode(symbols, alphabet)` gives bytes and `decode(bytes, count, alphabet)` gives the symbols back as
    int32, or raises CorruptError. `cost(counts)` says, from how often each symbol occurs, how many bytes
    that will be.
    """

    name: str
    encode: Callable[[Ints, int], bytes]
    decode: Callable[[bytes, int, int], NDArray[np.int32]]
    cost: Callable[[Ints], float]


CODECS: dict[str, Codec] = {
    "bitpack": Codec("bitpack", bitpack.encode, bitpack.decode, bitpack.cost),
    "huffman": Codec("huffman", huffman.encode, huffman.decode, huffman.cost),
    "range": Codec("range", range_coder.encode, range_coder.decode, range_coder.cost),
}
"""The built-in codecs, by name."""

__all__ = ["CODECS", "Codec", "Ints"]
