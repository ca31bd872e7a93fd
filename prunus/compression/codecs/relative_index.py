"""Relative indices: positions of nonzero entries as differences of `bits` bits, with filler zeros.

A difference d between neighboring positions (the first counted from -1) in 1..2^bits is stored as d - 1. For a
larger one, fillers of value zero are inserted, each 2^bits after the previous entry:
d = f * 2^bits + r with 1 <= r <= 2^bits gives f fillers and the difference r.

Source: Han et al. 2016, section 2 and figure 2: with 3 bits, the entries numbered 1, 4 and 15 have the
differences 1, 3, 8 (filler) and 3. Counted from zero, as everywhere in prunus, these are positions 0, 3, 14.
"""

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs.bitstream import Ints


def encode(positions: Ints, bits: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the differences minus one (0..2^bits-1) and which of them are fillers.

    Args:
        positions: Strictly increasing non-negative positions, [n].
        bits: Bits of a stored difference; a larger difference than 2^bits gets fillers.

    Returns:
        The stored differences, [n + fillers] int32, and a boolean array of the same shape, True at a filler.

    Raises:
        ValueError: A position is negative or not above the one before it.

    >>> differences, is_filler = encode(np.array([0, 3, 14]), bits=3)
    >>> differences + 1, is_filler
    (array([1, 3, 8, 3], dtype=int32), array([False, False,  True, False]))
    """
    steps = steps_between(positions)
    if steps.size and int(steps.min()) < 0:
        raise ValueError("Expected strictly increasing positions from 0 on.")
    fillers = steps >> bits
    indices = np.cumsum(fillers + 1) - 1
    total = int(indices[-1]) + 1 if indices.size else 0
    differences = np.full(total, (1 << bits) - 1, np.int32)
    differences[indices] = steps & ((1 << bits) - 1)
    is_filler = np.ones(total, np.bool_)
    is_filler[indices] = False
    return differences, is_filler


def steps_between(positions: Ints) -> NDArray[np.int64]:
    """Differences minus one of neighboring positions, the first from -1."""
    padded = np.concatenate([[-1], positions]).astype(np.int64)
    return padded[1:] - padded[:-1] - 1


def positions_after(position: int, differences: Ints) -> NDArray[np.int64]:
    """The positions of all entries, fillers included, that follow an entry at `position` (-1: no entry).

    Args:
        position: The position of the entry before; -1 where there is none.
        differences: Stored differences (minus one) of the entries that follow, [n].

    Returns:
        The positions, [n] int64, strictly increasing.

    >>> positions_after(10, np.array([0, 2]))
    array([11, 14])
    """
    positions = np.cumsum(differences, dtype=np.int64)
    positions += np.arange(position + 1, position + 1 + len(differences))
    return positions


def histogram(steps: Ints, counts: Ints, bits: int) -> tuple[NDArray[np.int64], int]:
    """How often `encode` would write each stored difference, and the number of fillers, without encoding.

    Args:
        steps: Distinct differences minus one, as `steps_between` returns them.
        counts: How often each of them occurs.
        bits: Bits of a stored difference.

    Returns:
        How often each stored difference is written, [2^bits] int64, fillers included; and the number of fillers.
    """
    fillers = int(((steps >> bits) * counts).sum())
    written = np.zeros(1 << bits, np.int64)
    np.add.at(written, steps & ((1 << bits) - 1), counts)
    written[-1] += fillers
    return written, fillers
