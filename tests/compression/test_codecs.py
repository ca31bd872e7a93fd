"""Properties of all codecs, and of each of them."""

from itertools import pairwise

import numpy as np
import pytest
from codec_symbols import decode
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunus.compression.codecs import CODECS, bitpack, huffman, range_coder, relative_index
from prunus.compression.codecs.bitstream import ABSENT, pack_levels, unpack_levels
from prunus.errors import CorruptFileError

settings.register_profile("compiled", deadline=None)  # the first call compiles
settings.load_profile("compiled")

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)

ALPHABETS = st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 1024, 4096]))


@st.composite
def rows(draw):
    """An alphabet and a row of its symbols: even, skewed, or one symbol again and again."""
    alphabet, count = draw(ALPHABETS), draw(st.integers(0, 300))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    skew = draw(st.sampled_from([0.0, 1.0, 6.0, 60.0]))
    return alphabet, np.minimum(alphabet * random.random(count) ** (1 + skew), alphabet - 1).astype(np.int32)


def entropy_bytes(symbols):
    """Order-0 entropy of the row, in bytes for all of it."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8) if len(counts) else 0.0


@every_codec
@given(rows())
def test_decode_inverts_encode(codec, row):
    alphabet, symbols = row
    before = symbols.copy()
    data = codec.encode(symbols, alphabet)
    back = decode(codec, data, len(symbols), alphabet)
    assert back.dtype == np.int32
    assert np.array_equal(back, symbols)
    assert np.array_equal(symbols, before)
    assert codec.encode(symbols, alphabet) == data


@every_codec
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_encode_accepts_any_integer_dtype_and_shape(codec, dtype):
    symbols = np.arange(24).reshape(4, 6)[:, ::2].astype(dtype)
    data = codec.encode(symbols, 24)
    assert np.array_equal(decode(codec, data, 12, 24), symbols.reshape(-1))


@every_codec
@pytest.mark.parametrize("count", [65_535, 65_536, 65_537, 200_001])
def test_decode_inverts_encode_when_longer_than_a_chunk(codec, count):
    symbols = np.random.default_rng(count).geometric(0.07, count).clip(1, 100) - 1
    assert np.array_equal(decode(codec, codec.encode(symbols, 100), count, 100), symbols)


@every_codec
@pytest.mark.parametrize("alphabet", [1, 2, 33, 4096])
def test_encode_of_one_repeated_symbol_has_the_size_of_a_table(codec, alphabet):
    symbols = np.full(100_000, alphabet // 2)
    data = codec.encode(symbols, alphabet)
    assert len(data) <= (8 if codec is not CODECS["bitpack"] else 100_000 * bitpack.width(alphabet) // 8)
    assert np.array_equal(decode(codec, data, 100_000, alphabet), symbols)


@every_codec
@given(rows())
def test_cost_equals_encoded_length(codec, row):
    alphabet, symbols = row
    over = codec.cost(np.bincount(symbols, minlength=alphabet)) - len(codec.encode(symbols, alphabet))
    if codec is not CODECS["range"]:
        assert over == 0
    elif len(symbols) and symbols[-1] == symbols.min():
        assert over >= -4  # the first symbols of the alphabet at the very end of a row cost nothing
    else:
        assert -4 <= over <= 5


@every_codec
@pytest.mark.parametrize("symbols", [[0, 5], [-1], [2**20]])
def test_encode_raises_for_symbols_outside_the_alphabet(codec, symbols):
    with pytest.raises(ValueError, match="Expected symbols from 0 to 4"):
        codec.encode(np.array(symbols), 5)


@every_codec
@given(st.binary(max_size=60), st.integers(0, 200), ALPHABETS)
def test_decode_of_any_bytes_returns_symbols_or_raises_corrupt_file_error(codec, data, count, alphabet):
    try:
        symbols = decode(codec, data, count, alphabet)
    except CorruptFileError:
        return
    assert symbols.shape == (count,)
    assert not count or (symbols.min() >= 0 and symbols.max() < alphabet)


@every_codec
@given(rows(), st.data())
def test_decode_raises_for_bytes_that_encode_does_not_write(codec, row, data):
    """A cut or longer row is refused, or read as other symbols by the range coder; never as the same."""
    alphabet, symbols = row
    encoded = codec.encode(symbols, alphabet)
    assume(encoded)
    for other in (encoded[: data.draw(st.integers(0, len(encoded) - 1))], encoded + b"\x01"):
        try:
            read = decode(codec, other, len(symbols), alphabet)
        except CorruptFileError:
            continue
        assert codec is CODECS["range"]
        assert not np.array_equal(read, symbols)


@pytest.mark.parametrize(
    ("name", "excess"),
    [("huffman", 1.0), ("range", 0.004)],
    ids=["huffman within a bit", "range within 0.004 bits"],
)
@pytest.mark.parametrize("alphabet", [2, 5, 32, 257, 1024])
@pytest.mark.parametrize("rate", [0.6, 0.1, 0.01])
def test_encoded_size_is_close_to_entropy(name, excess, alphabet, rate):
    count = 100_000
    symbols = np.random.default_rng(alphabet).geometric(rate, count) % alphabet
    size, bound = len(CODECS[name].encode(symbols, alphabet)), entropy_bytes(symbols)
    table = 2 * min(alphabet, len(np.unique(symbols))) + 8
    assert bound - table < size <= bound + count * excess / 8 + table


@pytest.mark.parametrize("alphabet", [32, 257, 1024])
def test_range_coder_is_smaller_than_huffman_and_huffman_than_bitpack(alphabet):
    symbols = (np.random.default_rng(1).geometric(0.04, 20_000) - 1).clip(0, alphabet - 1)
    packed, coded, ranged = (len(codec.encode(symbols, alphabet)) for codec in CODECS.values())
    assert ranged < coded < packed


# --- bit packing


@pytest.mark.parametrize(("alphabet", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9)])
def test_bitpack_uses_the_bits_of_the_largest_symbol(alphabet, bits):
    assert bitpack.width(alphabet) == bits
    assert len(bitpack.encode(np.zeros(1001, np.int32), alphabet)) == -(-1001 * bits // 8)


# --- Huffman


@given(st.lists(st.integers(0, 10**6), max_size=300))
def test_huffman_lengths_are_a_complete_code(counts):
    length = huffman.lengths(np.array(counts, np.int64))
    assert np.array_equal(length == ABSENT, np.array(counts) == 0)
    present = length[length != ABSENT]
    if len(present) > 1:
        assert sum(2.0**-present) == 1.0
        assert present.max() <= huffman.MAX_LENGTH
    elif len(present) == 1:
        assert present[0] == 0


def test_huffman_lengths_are_limited_for_fibonacci_counts():
    counts = np.array([1, 1], np.int64)
    while len(counts) < 60:
        counts = np.append(counts, counts[-1] + counts[-2])
    length = huffman.lengths(counts)
    assert length.max() == huffman.MAX_LENGTH == 24
    assert sum(2.0**-length) == 1.0


def test_huffman_decodes_codes_longer_than_the_lookup_table():
    counts = np.array([2**k for k in range(18)])
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(18), counts))
    data = huffman.encode(symbols, 18)
    assert huffman.lengths(counts).max() == 17
    assert np.array_equal(decode(CODECS["huffman"], data, len(symbols), 18), symbols)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=100))
def test_huffman_codes_are_prefix_free_and_ordered(counts):
    length = huffman.lengths(np.array(counts))
    code = huffman.codes(length)
    words = sorted(f"{c:0{n}b}" for c, n in zip(code.tolist(), length.tolist(), strict=True) if n > 0)
    assert not any(b.startswith(a) for a, b in pairwise(words))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2], [2, 2, 2], [24] * 5, [1, 2, 3, 3, 3], [0, 1], [0, 0]])
def test_huffman_decode_raises_for_an_incomplete_code(lengths):
    data = pack_levels(np.array(lengths)) + b"\x55" * 8
    with pytest.raises(CorruptFileError, match=r"complete code|needs none"):
        decode(CODECS["huffman"], data, 40, len(lengths))


# --- range coder


@given(st.lists(st.integers(0, range_coder.MAX_LEVEL), min_size=2, max_size=400))
def test_frequencies_are_positive_integers_with_sum_2_to_the_24(levels):
    actual = range_coder.frequencies(np.array(levels))
    assert actual.dtype == np.int64
    assert actual.min() >= 0
    assert actual.sum() == 1 << 24


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300))
def test_levels_for_gives_every_occurring_symbol_a_level(counts):
    levels = range_coder.levels_for(np.array(counts))
    assert ((levels != ABSENT) | (np.array(counts) == 0)).all()
    assert levels.max() <= range_coder.MAX_LEVEL


def test_range_coder_roots_equal_their_formula():
    assert range_coder._ROOTS.tolist() == [round(2 ** (32 - i / 4)) for i in range(4)]


# --- tables


@given(st.lists(st.one_of(st.just(ABSENT), st.integers(0, 40)), max_size=200), st.binary(max_size=5))
def test_unpack_levels_inverts_pack_levels_and_returns_the_length(levels, after):
    table = pack_levels(np.array(levels, np.int64))
    back, used = unpack_levels(table + after, len(levels), 40)
    assert back.tolist() == levels
    assert used == len(table)


@pytest.mark.parametrize(
    ("table", "alphabet", "error"),
    [
        (b"", 3, "does not end"),
        (b"\x00" * 100, 3, "does not end"),
        (pack_levels(np.zeros(5, np.int64)), 4, "alphabet of 4"),
        (pack_levels(np.array([41])), 1, "levels from 0 to 40"),
        (b"\xff", 1, "padding"),
    ],
)
def test_unpack_levels_raises_for_inconsistent_tables(table, alphabet, error):
    with pytest.raises(CorruptFileError, match=error):
        unpack_levels(table, alphabet, 40)


# --- relative indices


@st.composite
def positions(draw):
    """Strictly increasing positions, some with large differences."""
    return np.cumsum(draw(st.lists(st.integers(1, 70), max_size=80))).astype(np.int64) - 1


def test_relative_index_matches_the_example_of_han_2016():
    """Han et al. 2016, figure 2: entries 1, 4 and 15 at 3 bits need one filler."""
    differences, is_filler = relative_index.encode(np.array([1, 4, 15]) - 1, bits=3)
    assert (differences + 1).tolist() == [1, 3, 8, 3]
    assert is_filler.tolist() == [False, False, True, False]
    assert (relative_index.positions_after(-1, differences)[~is_filler] + 1).tolist() == [1, 4, 15]


@given(positions(), st.integers(1, 12))
def test_positions_after_inverts_relative_index_encode(positions, bits):
    differences, is_filler = relative_index.encode(positions, bits)
    assert np.array_equal(relative_index.positions_after(-1, differences)[~is_filler], positions)
    assert not len(differences) or (differences.min() >= 0 and differences.max() < 1 << bits)
    assert (differences[is_filler] == (1 << bits) - 1).all()
    assert len(differences) - len(positions) == (relative_index.steps_between(positions) >> bits).sum()
    assert not len(is_filler) or not is_filler[-1]


@given(positions(), st.integers(1, 12))
def test_relative_index_histogram_equals_encoded_counts(positions, bits):
    steps = np.unique(relative_index.steps_between(positions), return_counts=True)
    written, fillers = relative_index.histogram(*steps, bits)
    differences, is_filler = relative_index.encode(positions, bits)
    assert np.array_equal(written, np.bincount(differences, minlength=1 << bits))
    assert fillers == is_filler.sum()


@pytest.mark.parametrize("positions", [[3, 3], [4, 2], [-1]])
def test_relative_index_encode_raises_for_unordered_positions(positions):
    with pytest.raises(ValueError, match="strictly increasing positions"):
        relative_index.encode(np.array(positions), 4)
