"""Lossless codecs between sequences of small integers and bytes. They use NumPy and never import torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs import bitpack, huffman, range_coder
from prunus.compression.codecs.bitstream import Data, Ints


@dataclass(frozen=True)
class Codec:
    """An encoding of symbols 0..alphabet-1."""

    encode: Callable[[Ints, int], bytes]
    """(symbols, alphabet) -> bytes; ValueError for a symbol that is not in the alphabet."""
    decode_chunks: Callable[[Data, int, int], Iterator[NDArray[np.int32]]]
    """(bytes, count, alphabet) -> the symbols in chunks of `bitstream.CHUNK`, the last one shorter. A chunk is valid
    until the next one is requested. CorruptFileError where the bytes are not what `encode` writes."""
    cost: Callable[[Ints], float]
    """counts of the symbols -> number of bytes of their encoding."""


CODECS: dict[str, Codec] = {
    "bitpack": Codec(bitpack.encode, bitpack.decode_chunks, bitpack.cost),
    "huffman": Codec(huffman.encode, huffman.decode_chunks, huffman.cost),
    "range": Codec(range_coder.encode, range_coder.decode_chunks, range_coder.cost),
}
"""The built-in codecs, by name."""

__all__ = ["CODECS", "Codec", "Ints"]
