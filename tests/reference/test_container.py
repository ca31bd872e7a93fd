"""A second reader of the file, written from SPEC.md alone in plain Python, agrees with ours bit for bit."""

import json
import math
import zlib

import pytest
import torch

from prunus.compression.codecs import CODECS
from prunus.compression.container import EncodingConfig, pack, unpack

SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "bool": 1, "uint8": 1, "int8": 1}
SIZES |= {"uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8}
SIZES |= {"complex32": 4, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1}
SIZES |= {"float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1}
ROOTS = (4294967296, 3611622603, 3037000500, 2553802834)


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert n <= len(self.data) - self.at
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n):
        return int.from_bytes(self.take(n), "little")

    def varint(self):
        byte = self.number(1)
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def rest(self):
        return self.take(len(self.data) - self.at)


class BitRow:
    def __init__(self, data):
        self.bits, self.at = "".join(f"{byte:08b}" for byte in data), 0

    def take(self, n):
        self.at += n
        return int(self.bits[self.at - n : self.at] or "0", 2)

    def gamma(self):
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
        return (1 << zeros) + self.take(zeros)

    def whole_bytes(self):
        return (self.at + 7) // 8


def table(data, alphabet):
    bits, levels, last, absent = BitRow(data), [], -1, False
    while len(levels) < alphabet:
        run, z = bits.gamma(), bits.gamma() - 1
        absent = z == 0 and not absent
        if not absent:
            last += (z + 1) // 2 if z % 2 else -(z // 2)
        levels += [None if absent else last] * run
    assert len(levels) == alphabet
    return {s: level for s, level in enumerate(levels) if level is not None}, data[bits.whole_bytes() :]


def bitpack(data, count, alphabet):
    bits, width = BitRow(data), math.ceil(math.log2(alphabet))
    return [bits.take(width) for _ in range(count)]


def huffman(data, count, alphabet):
    lengths, data = table(data, alphabet)
    if len(lengths) <= 1:
        return list(lengths) * count
    words, code, last = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code <<= length - last
        words[length, code] = symbol
        code, last = code + 1, length
    bits, out = BitRow(data), []
    for _ in range(count):
        word = (0, 0)
        while word not in words:
            word = (word[0] + 1, word[1] * 2 + bits.take(1))
        out.append(words[word])
    return out


def range_coder(data, count, alphabet):
    levels, data = table(data, alphabet)
    if len(levels) <= 1:
        return list(levels) * count
    weights = [ROOTS[q % 4] >> (q // 4) for q in levels.values()]
    f = [2**24 * w // sum(weights) for w in weights]
    f[f.index(max(f))] += 2**24 - sum(f)
    n = len(f)
    left = [sum(f[:i]) * (2**24 - n) // 2**24 + i for i in range(n)] + [2**24]
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    state, out = 0, []

    def refill(state):
        while state < 2**32 and words:
            state = state * 2**32 + words.pop()
        return state

    state = refill(state)
    for _ in range(count):
        r = state % 2**24
        i = next(i for i in range(n) if left[i] <= r < left[i + 1])
        out.append(list(levels)[i])
        state = refill(state // 2**24 * (left[i + 1] - left[i]) + r - left[i])
    assert state == 0
    assert not words
    return out


DECODERS = (bitpack, huffman, range_coder)


def widen(half):
    sign, exponent, fraction = half >> 15, half >> 10 & 31, half & 1023
    if exponent == 31:  # infinity or NaN
        return sign << 31 | 255 << 23 | fraction << 13
    value = (-1) ** sign * (fraction / 1024 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 15)
    return torch.tensor(value, dtype=torch.float64).float().view(torch.int32).item() % 2**32 | sign << 31


def tensor(blob, dtype, shape):
    blob, flags = Bytes(blob), 0
    flags, size, m = blob.number(1), SIZES[dtype], math.prod(shape)
    codecs = [DECODERS[blob.number(1)] for flag in (1, 2) if flags & flag]
    if flags & 4:
        size = 2
    positions = range(m)
    if flags & 1:
        b, m = blob.number(1), blob.varint()
        differences = codecs[0](blob.take(blob.varint()), m, 2**b)
        positions, at = [], -1
        for difference in differences:
            at += difference + 1
            positions.append(at)
    if flags & 2:
        book = Bytes(blob.take(blob.varint()))
        values = [book.number(size) for _ in range(len(book.data) // size)]
        entries = [values[code] for code in codecs[-1](blob.rest(), m, len(values))]
    elif flags & 64:
        planes = [DECODERS[blob.number(1)](blob.take(blob.varint()), m, 256) for _ in range(size)]
        rotated = [int.from_bytes(bytes(column), "big") for column in zip(*planes, strict=True)]
        entries = [value >> 1 | (value & 1) << (8 * size - 1) for value in rotated]
        assert not blob.rest()
    else:
        entries = [blob.number(size) for _ in range(m)]
        assert not blob.rest()
    out = [0] * math.prod(shape)
    for position, entry in zip(positions, entries, strict=True):
        rows, columns = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        where = position % rows * columns + position // rows if flags & 8 else position
        if entry:
            out[where] = widen(entry) if flags & 4 else entry
    return out


def read_as_specified(data):
    file = Bytes(data)
    assert file.take(8) == b"\x89prunus\n"
    assert file.number(2) == 1
    header = file.take(file.number(4))
    content = data[: file.at]
    assert file.number(4) == zlib.crc32(content)
    tensors = {}
    for name, dtype, shape, length in json.loads(header)["tensors"]:
        blob = file.take(length)
        content += blob
        assert file.number(4) == zlib.crc32(content)
        if blob[0] == 32:
            earlier = Bytes(blob[1:])
            tensors[name] = list(tensors.values())[earlier.varint()]
            assert tensors[name][:2] == (dtype, shape)
            assert not earlier.rest()
        else:
            tensors[name] = (dtype, shape, tensor(blob, dtype, shape))
    assert not file.rest()
    return tensors


def as_numbers(t):
    """The bits of each entry, as an integer."""
    data, size = t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), t.element_size()
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("index_bits", [None, 2])
@pytest.mark.parametrize("share", [True, False])
def test_reader_written_from_the_specification_agrees(codec, index_bits, share):
    g = torch.Generator().manual_seed(7)
    values = torch.tensor([0.0] * 24 + [-0.5, 0.25, 1.5, -0.0, 6e-8, 0.1])
    state = {
        "few values": values[torch.randint(30, (12, 40), generator=g)],
        "halves": (values.half().float())[torch.randint(30, (5, 4, 3, 3), generator=g)],
        "columns": torch.zeros(30, 20).index_fill(1, torch.tensor([3, 4, 17]), 2.0),
        "dense": torch.randn(9, generator=g).to(torch.bfloat16),
        "double": torch.randn(4, generator=g).double(),
        "many": torch.randint(-(2**40), 2**40, (5,), generator=g),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3, dtype=torch.uint8),
        "empty": torch.zeros(0, 2),
        "zeros": torch.zeros(50),
        "complex": torch.randn(3, 2, generator=g, dtype=torch.complex128),
        "eighths": torch.randn(6, generator=g).to(torch.float8_e5m2),
    }
    many = torch.randn(90, 60, generator=g)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        state[f"many {dtype}"] = many.to(dtype)
    state |= {"many halves": many.half().float(), "many, pruned": torch.where(many < 1, many, 0.0)}
    state["tied"] = state["columns"]
    data = pack(state, metadata={"é": [1, 2.5]}, encoding=EncodingConfig(codec, index_bits, share))
    ours, theirs = unpack(data)[1], read_as_specified(data)
    assert list(theirs) == list(ours)
    for name, t in ours.items():
        dtype, shape, numbers = theirs[name]
        assert (dtype, shape) == (str(t.dtype).removeprefix("torch."), list(t.shape))
        assert numbers == as_numbers(t) == as_numbers(state[name]), name


def test_every_half_is_widened_exactly():
    """Infinities too; -0.0 is a value. A tensor with NaN is stored whole: its bits are kept, whatever widens a NaN."""
    bits = torch.tensor([widen(half) for half in range(1 << 16)])
    values = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
    for name, state in (("numbers", values[~values.isnan()]), ("with NaN", values)):
        data = pack({name: state}, encoding=EncodingConfig("bitpack", None, False))
        size = 4 if state.isnan().any() else 2
        assert size * len(state) < len(data) < size * len(state) + 300
        assert torch.equal(unpack(data)[1][name].view(torch.int32), state.view(torch.int32))
        assert read_as_specified(data)[name][2] == as_numbers(state)
