"""Codecs: rows of small integers to bytes and back, with numpy alone; self-contained and lossless."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs import bitpack, huffman, range_coder
from prunus.compression.codecs.bitstream import Data, Ints


@dataclass(frozen=True)
class Codec:
    """A way to write symbols 0..alphabet-1.

    `encode(symbols, alphabet)` gives bytes and `decode(bytes, count, alphabet)` gives the symbols back as
    int32, or raises CorruptFileError; `decode_chunks` gives the same symbols in chunks of `bits.CHUNK` (the last one
    shorter), each of them valid until the next one is asked for. `cost(counts)` says, from how often each symbol
    occurs, how many bytes that will be.
    """

    name: str
    encode: Callable[[Ints, int], bytes]
    decode: Callable[[Data, int, int], NDArray[np.int32]]
    decode_chunks: Callable[[Data, int, int], Iterator[NDArray[np.int32]]]
    cost: Callable[[Ints], float]


CODECS: dict[str, Codec] = {
    "bitpack": Codec("bitpack", bitpack.encode, bitpack.decode, bitpack.decode_chunks, bitpack.cost),
    "huffman": Codec("huffman", huffman.encode, huffman.decode, huffman.decode_chunks, huffman.cost),
    "range": Codec(
        "range", range_coder.encode, range_coder.decode, range_coder.decode_chunks, range_coder.cost
    ),
}
"""The built-in codecs, by name."""

__all__ = ["CODECS", "Codec", "Ints"]
