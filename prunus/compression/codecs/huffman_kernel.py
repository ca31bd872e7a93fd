"""The inner loop of Huffman decoding, compiled; imported only when something is decoded."""

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel

_PEEK = 11  # bits looked up at once; longer codes are rare by construction


@compile_kernel()
def decode_canonical(
    payload: NDArray[np.uint8],
    start: int,
    order: NDArray[np.int32],
    per_length: NDArray[np.int64],
    out: NDArray[np.int32],
) -> int:
    """Fill `out` from the codes in `payload` from its bit `start` on, and return the bit where they end.

    Past the end of `payload`, bits are zero.

    `order` is the symbols by (length, symbol) and `per_length` how many have each length: a complete code.
    """
    longest = len(per_length) - 1
    symbol_of = np.zeros(1 << _PEEK, np.int32)
    length_of = np.zeros(1 << _PEEK, np.uint8)
    first = np.zeros(longest + 2, np.int64)  # the first code of each length
    index = np.zeros(longest + 2, np.int64)  # and its place in `order`
    code, place = 0, 0
    for length in range(1, longest + 1):
        code <<= 1
        first[length], index[length] = code, place
        if length <= _PEEK:
            for k in range(per_length[length]):
                lowest = (code + k) << (_PEEK - length)
                for entry in range(lowest, lowest + (1 << (_PEEK - length))):
                    symbol_of[entry], length_of[entry] = order[place + k], length
        code += int(per_length[length])
        place += int(per_length[length])

    size = len(payload)
    window, held, at, used = np.uint64(0), 0, start >> 3, start
    if start & 7:
        window, held, at = np.uint64(payload[at] if at < size else np.uint8(0)), 8 - (start & 7), at + 1
    for i in range(len(out)):
        while held <= 48:
            byte = payload[at] if at < size else np.uint8(0)
            window = (window << np.uint64(8)) | np.uint64(byte)
            at += 1
            held += 8
        head = int((window >> np.uint64(held - _PEEK)) & np.uint64((1 << _PEEK) - 1))
        length = int(length_of[head])
        symbol = symbol_of[head]
        if length == 0:
            length = _PEEK + 1
            while length < longest:
                code = int((window >> np.uint64(held - length)) & np.uint64((1 << length) - 1))
                if code - first[length] < per_length[length]:
                    break
                length += 1
            code = int((window >> np.uint64(held - length)) & np.uint64((1 << length) - 1))
            symbol = order[min(max(index[length] + code - first[length], 0), len(order) - 1)]
        out[i] = symbol
        held -= length
        used += length
    return used
