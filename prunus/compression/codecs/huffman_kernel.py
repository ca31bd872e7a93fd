"""The inner loop of Huffman decoding, compiled; imported only when something is decoded."""

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel

_PEEK = 11
"""Bits of the lookup table; longer codes are rare by construction."""


@compile_kernel()
def decode_canonical(
    payload: NDArray[np.uint8],
    start: int,
    order: NDArray[np.int32],
    per_length: NDArray[np.int64],
    out: NDArray[np.int32],
) -> int:
    """Decode `len(out)` codes.

    Args:
        payload: The codes, most significant bit first; bits after its end are zero.
        start: Bit at which the first code begins.
        order: Symbols by (length, symbol).
        per_length: Number of symbols of each length; a complete code.
        out: Receives the symbols.

    Returns:
        The bit after the last code.
    """
    longest = len(per_length) - 1
    symbol_of = np.zeros(1 << _PEEK, np.int32)
    length_of = np.zeros(1 << _PEEK, np.uint8)
    first = np.zeros(longest + 2, np.int64)  # the first code of each length
    index = np.zeros(longest + 2, np.int64)  # and its index in `order`
    code, rank = 0, 0
    for length in range(1, longest + 1):
        code <<= 1
        first[length], index[length] = code, rank
        if length <= _PEEK:
            for k in range(per_length[length]):
                lowest = (code + k) << (_PEEK - length)
                for entry in range(lowest, lowest + (1 << (_PEEK - length))):
                    symbol_of[entry], length_of[entry] = order[rank + k], length
        code += int(per_length[length])
        rank += int(per_length[length])

    size = len(payload)
    window, num_bits, position, used = np.uint64(0), 0, start >> 3, start
    if start & 7:
        byte = payload[position] if position < size else np.uint8(0)
        window, num_bits, position = np.uint64(byte), 8 - (start & 7), position + 1
    for i in range(len(out)):
        while num_bits <= 48:
            byte = payload[position] if position < size else np.uint8(0)
            window = (window << np.uint64(8)) | np.uint64(byte)
            position += 1
            num_bits += 8
        head = int((window >> np.uint64(num_bits - _PEEK)) & np.uint64((1 << _PEEK) - 1))
        length = int(length_of[head])
        symbol = symbol_of[head]
        if length == 0:
            length = _PEEK + 1
            while length < longest:
                code = int((window >> np.uint64(num_bits - length)) & np.uint64((1 << length) - 1))
                if code - first[length] < per_length[length]:
                    break
                length += 1
            code = int((window >> np.uint64(num_bits - length)) & np.uint64((1 << length) - 1))
            symbol = order[min(max(index[length] + code - first[length], 0), len(order) - 1)]
        out[i] = symbol
        num_bits -= length
        used += length
    return used
