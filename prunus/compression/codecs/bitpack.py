"""Fixed-length code: every symbol in ceil(log2(alphabet)) bits, most significant bit first.

Source: the "P + Q" rows of Han et al. 2016, tables 2-5 (before Huffman coding). Also known as bit packing.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs.bitstream import CHUNK, Data, Ints, as_symbols, repeat_symbol
from prunus.errors import CorruptFileError


def width(alphabet: int) -> int:
    """Bits per symbol: ceil(log2(alphabet)).

    >>> width(1), width(32), width(33)
    (0, 5, 6)
    """
    return max(alphabet - 1, 0).bit_length()


def encode(symbols: Ints, alphabet: int) -> bytes:
    """Encode `symbols` (0..alphabet-1) in ceil(count * width / 8) bytes; the last one is padded with zero bits.

    Args:
        symbols: Integers from 0 to `alphabet` - 1, of any shape; they are encoded in row-major order.
        alphabet: The number of different symbols that may occur.

    Returns:
        The packed symbols; no byte where the alphabet has at most one symbol.

    Raises:
        ValueError: A symbol is not in the alphabet.
    """
    flat, bits = as_symbols(symbols, alphabet), width(alphabet)
    if bits == 8:
        return flat.astype(np.uint8).tobytes()
    blocks = (flat[start : start + CHUNK].astype(">u4") for start in range(0, flat.size, CHUNK))
    rows = (np.unpackbits(block.view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - bits :] for block in blocks)
    return b"".join(np.packbits(row).tobytes() for row in rows)


def decode_chunks(data: Data, count: int, alphabet: int) -> Iterator[NDArray[np.int32]]:
    """Yield the `count` symbols of `data` in chunks.

    Args:
        data: What `encode` returned.
        count: The number of symbols, at least 0.
        alphabet: The number of different symbols that may occur, as it was given to `encode`.

    Yields:
        Symbols in their order, [n] int32 with n at most `CHUNK`; the last chunk may be shorter.

    Raises:
        CorruptFileError: The number of bytes is not that of `count` symbols, the padding is not zero, or a symbol is
            not in the alphabet.
    """
    bits = width(alphabet)
    if len(data) != -(-count * bits // 8):
        raise CorruptFileError(
            f"Expected {-(-count * bits // 8)} bytes for {count} symbols of {bits} bits, got {len(data)}."
        )
    if bits == 0:
        yield from repeat_symbol(0, count)
        return
    powers = (1 << np.arange(bits - 1, -1, -1)).astype(np.int32)
    packed = np.frombuffer(data, np.uint8)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        if bits == 8:
            symbols: NDArray[np.int32] = packed[start:stop].astype(np.int32)
        else:
            rows = np.unpackbits(packed[start * bits // 8 :][: -(-(stop - start) * bits // 8)])
            used = (stop - start) * bits
            if rows[used:].any():
                raise CorruptFileError("The padding of bit-packed symbols is not zero.")
            symbols = rows[:used].reshape(-1, bits) @ powers
        if int(symbols.max()) >= alphabet:
            raise CorruptFileError(f"Expected symbols below {alphabet}, got {symbols.max()}.")
        yield symbols


def cost(counts: Ints) -> float:
    """Number of bytes of the encoding of symbols with these counts."""
    return float(-(-int(counts.sum()) * width(len(counts)) // 8))
