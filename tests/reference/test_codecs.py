"""The codecs against independent ones: a Huffman tree on a heap, and a stack coder in whole numbers."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.compression.codecs import huffman, range_coder
from prunus.compression.codecs.bitstream import ABSENT, unpack_levels


def heap_cost(counts):
    """Bits of an optimal prefix code: every merge costs what it merges."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, merged)
        cost += merged
    return cost


@given(st.lists(st.integers(0, 10**5), max_size=300))
def test_huffman_cost_equals_a_heap_implementation(counts):
    length = np.maximum(huffman.lengths(np.array(counts, np.int64)), 0)
    assert int((length * np.array(counts, np.int64)).sum()) == heap_cost(counts)


def test_huffman_is_optimal_among_all_prefix_codes_of_five_symbols():
    counts = [7, 5, 2, 2, 1]
    kraft = (c for c in itertools.product(range(1, 5), repeat=5) if sum(2.0**-n for n in c) <= 1)
    best = min(sum(n * c for n, c in zip(lengths, counts, strict=True)) for lengths in kraft)
    assert (huffman.lengths(np.array(counts)) * counts).sum() == best


def whole_number_encode(ranks, frequencies):
    """Asymmetric numeral systems as SPEC.md has it, on Python integers."""
    n = len(frequencies)
    cumulative = [sum(frequencies[:i]) for i in range(n)]
    left = [(c * (2**24 - n) >> 24) + i for i, c in enumerate(cumulative)] + [2**24]
    state, words = 0, []
    for rank in reversed(ranks):
        width = left[rank + 1] - left[rank]
        if state >= width << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // width << 24) + left[rank] + state % width
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")


@pytest.mark.parametrize("seed", range(40))
def test_range_coder_equals_integer_arithmetic(seed):
    random = np.random.default_rng(seed)
    alphabet = int(random.choice([2, 3, 17, 32, 257, 1000]))
    skew = random.choice([1, 3, 12])
    symbols = (alphabet * random.random(500) ** skew).astype(np.int64)
    data = range_coder.encode(symbols, alphabet)
    levels, used = unpack_levels(data, alphabet, range_coder.MAX_LEVEL)
    present = np.flatnonzero(levels != ABSENT)
    frequencies = range_coder.frequencies(levels[present]).tolist()
    ranks = np.searchsorted(present, symbols).tolist()
    assert data[used:] == (whole_number_encode(ranks, frequencies) if len(present) > 1 else b"")
