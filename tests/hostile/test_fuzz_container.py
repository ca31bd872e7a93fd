"""Mutated and made-up files: the reader answers each with a state or with a named error, within its limit of memory.

Every case belongs to a class: files that are built from nothing with real streams and lying fields, blobs and headers
that are mutated with lengths and checksums set right, headers of random bytes, and files that are mutated as they lie.
`python tests/hostile/test_fuzz_container.py --count 100000` runs any number of cases and prints their outcomes.
"""

import argparse
import collections
import ctypes
import gc
import json
import random
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.compression.codecs import CODECS
from prunus.compression.codecs.bitstream import pack_levels
from prunus.compression.container import EncodingConfig, pack, unpack
from prunus.compression.container.file_format import DTYPES
from prunus.compression.container.header import parse_header
from prunus.compression.container.reading import parse_file
from prunus.compression.container.tensor_blob import (
    CODEBOOK,
    CODEC_NUMBERS,
    COLUMN_MAJOR,
    GENERATED,
    HALF,
    PLANES,
    SEED,
    SPARSE,
    varint,
)
from prunus.errors import (
    CorruptFileError,
    NotAContainerError,
    SizeLimitError,
    TruncatedFileError,
    UnsupportedVersionError,
)
from prunus.seeded_tensors import SeededTensor
from tests.reference.test_container import as_numbers, read_as_specified

NAMED = (NotAContainerError, UnsupportedVersionError, TruncatedFileError, CorruptFileError, SizeLimitError)
LIMITS = (8 << 20, 256 << 20)
CONSTANT = 12 << 20
"""Bytes that are allowed besides three times the file and its tensors."""
MAX_ROUND_TRIP = 1 << 20
"""Tensors of more bytes than this are not written and read again."""
MAX_SECOND_READING = 4000
"""Nor are these read by the second reader."""
SEEDED = {"signs": SeededTensor("signs", 7, 0.5), "normals": SeededTensor("normals", 2**64 - 1, 0.001)}
NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 256, 2**16, 2**31, 2**32, 2**53, 2**62, 2**64, 10**30]
OTHERS = [1.5, True, None, "1", [], {}, "\ud800", "__metadata__", "\x1b[2J"]
TOKENS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"-1",
    b"1e9",
    b"1e999",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"float16",
    b"\xff",
]


# --- cases


def seeds():
    """Small files of every codec that have every form of tensor in them."""
    g = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0] * 20 + [0.5, -0.5, 0.1, -0.0])
    many = torch.randn(12, 9, generator=g)
    large = torch.randn(70, 60, generator=g).bfloat16()
    state = {
        "few": values[torch.randint(24, (20, 11), generator=g)],
        "columns": torch.zeros(30, 20).index_fill(1, torch.tensor([3, 17]), 2.0),
        "halves": values.half()[torch.randint(24, (4, 3, 3, 3), generator=g)].float(),
        "raw": torch.where(many > 1, many, torch.zeros(())),
        "planes": large,
        "bits": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "wide": torch.full((50,), 0.3, dtype=torch.float64),
        "brain": values.bfloat16()[torch.randint(24, (9, 9), generator=g)],
        "signs": torch.from_numpy(SEEDED["signs"].values((20, 9)))
        * values.bool()[torch.randint(24, (20, 9), generator=g)],
        "normals": torch.from_numpy(SEEDED["normals"].values((70,))) * 1.5,
    }
    state["signs"] += 0.0
    for codec in CODECS:
        for share in (True, False):
            yield pack(
                state,
                metadata={"a": [1, "é"]},
                encoding=EncodingConfig(codec, use_codebook=share),
                generated=SEEDED,
                factors={"normals": 1.5},
            )


def parts(data):
    """Header and blobs of a sound file."""
    (length,) = struct.unpack_from("<I", data, 10)
    header, at = json.loads(data[14 : 14 + length]), 14 + length + 4
    blobs = []
    for row in header["tensors"]:
        blobs.append(data[at : at + row[3]])
        at += row[3] + 4
    return header, blobs


def framed(header, blobs):
    """A file whose checksums hold, whatever header and blobs say."""
    content = b"\x89prunus\n" + struct.pack("<HI", 1, len(header)) + header
    data, running = content, zlib.crc32(content)
    for blob in blobs:
        data += struct.pack("<I", running) + blob
        running = zlib.crc32(blob, running)
    return data + struct.pack("<I", running)


def as_text(header):
    """A header as JSON, with lone surrogates as escapes."""
    return (
        json.dumps(header).encode()
        if "\\ud" in json.dumps(header)
        else json.dumps(header, ensure_ascii=False).encode()
    )


def mutated(data, r):
    """A few bytes flipped, set, cut out, put in, doubled or moved."""
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 4, 8))):
        at = r.randrange(len(out) + 1)
        size = r.choice((1, 1, 2, 4, 8, r.randrange(len(out) + 1)))
        match r.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << r.randrange(8)
            case 1 if out:
                out[at % len(out)] = r.choice((0, 1, 127, 128, 255, r.randrange(256)))
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = r.choice((bytes(size), r.randbytes(min(size, 64)), r.choice(TOKENS)))
            case 4:
                out[at:at] = out[at : at + size]
            case _:
                other = r.randrange(len(out) + 1)
                out[at : at + size] = out[other : other + size]
    return bytes(out)


def mutated_value(value, r):
    """A JSON value with one change."""
    if isinstance(value, list) and value and r.random() < 0.8:
        at = r.randrange(len(value))
        return [*value[:at], mutated_value(value[at], r), *value[at + 1 :]]
    if isinstance(value, dict) and value and r.random() < 0.8:
        key = r.choice(list(value))
        return {**value, key: mutated_value(value[key], r)}
    return r.choice(NUMBERS + OTHERS)


def bit_flip(data, r):
    """A sound file of which one bit is another."""
    out = bytearray(data)
    out[r.randrange(len(out))] ^= 1 << r.randrange(8)
    return bytes(out)


def mutated_blob(data, r):
    """A sound file of which one blob is mutated, or taken for another tensor; lengths and checksums are right."""
    header, blobs = parts(data)
    at = r.randrange(len(blobs))
    row = header["tensors"][at]
    if r.random() < 0.3:
        other = r.choice(header["tensors"])
        row[1], row[2] = r.choice(((other[1], row[2]), (row[1], other[2]), (other[1], other[2])))
    if r.random() < 0.85:
        blobs[at] = mutated(blobs[at], r)
    row[3] = len(blobs[at])
    return framed(as_text(header), blobs)


def mutated_header(data, r):
    """A sound file of which some values in the header are others."""
    header, blobs = parts(data)
    for _ in range(r.choice((1, 1, 2, 3))):
        if isinstance(header, dict):
            header = mutated_value(header, r)
    text = as_text(header)
    return framed(mutated(text, r) if r.random() < 0.3 else text, blobs)


def raw_header(data, r):
    """A header that is no sound JSON, or that is large or deep."""
    n = r.choice((10, 1000, 70_000, 300_000))
    match r.randrange(9):
        case 0:
            made = b"[" * n
        case 1:
            made = b'{"a":' * n
        case 2:
            made = b'{"a":%s1%s}' % (b"[" * (n % 99), b"]" * (n % 99))
        case 3:
            made = b'{"a":[%s]}' % b",".join([r.choice((b"[]", b"{}", b"1", b'"a"'))] * n)
        case 4:
            made = b"{%s}" % b",".join(b'"%x":1' % i for i in range(n))
        case 5:
            numbers = (b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"-0", b"1e-999", b"01", b"1.")
            made = b'{"a":%s}' % r.choice(numbers)
        case 6:
            made = b'{"a":1,"a":2}'
        case 7:
            made = b'{"%s":"%s"}' % (r.choice(TOKENS), r.choice(TOKENS))
        case _:
            made = r.randbytes(n % 499)
    text = b'{"format":"prunus","made":%s,"model":null,"tensors":[]}' % made
    return framed(r.choice((text, made, b"\xef\xbb\xbf" + text, text + b" ", text[:-1])), [])


def built(_, r):
    """A file from nothing: up to three tensors of any form, with streams that real codecs wrote and fields that lie."""
    rows, blobs = [], []
    for i in range(r.choice((1, 1, 1, 2, 3))):
        dtype, shape, blob = built_tensor(r)
        rows.append([r.choice((f"w{i}", f"w{i}", "w", "é")), dtype, shape, len(blob)])
        blobs.append(blob)
    header = {"format": "prunus", "made": {}, "model": None, "tensors": rows}
    return framed(as_text(header), blobs)


def built_tensor(r):
    """Dtype, shape and blob of a tensor, of which about one in two has a field that lies."""

    def lying(value, choices, odds=0.06):
        return r.choice(choices) if r.random() < odds else value

    flags = r.choice(
        (
            0,
            CODEBOOK,
            SPARSE,
            SPARSE | CODEBOOK,
            SPARSE | CODEBOOK | COLUMN_MAJOR,
            SPARSE | COLUMN_MAJOR,
            PLANES,
            PLANES | SPARSE,
            PLANES | SPARSE | COLUMN_MAJOR,
            GENERATED | CODEBOOK,
        )
    )
    flags |= HALF if r.random() < 0.2 and not flags & GENERATED else 0
    dtype = (
        "float32" if flags & (HALF | GENERATED) else r.choice(("float64", "float32", "float16", "bfloat16"))
    )
    dtype = r.choice(list(DTYPES)) if not flags else dtype
    itemsize = 2 if flags & HALF else DTYPES[dtype].itemsize
    shape = [r.choice((0, 1, 2, 3, 7, 16, 50)) for _ in range(r.choice((0, 1, 2, 2, 3)))]
    size = int(np.prod(shape)) if shape else 1
    if r.random() < 0.15 and flags & (CODEBOOK | PLANES):  # far more entries than bytes
        shape = [2, r.choice((1000, 10**5, 10**6, 3 * 10**6, 2**24, 2**25, 2**26))]
        shape = shape[: r.choice((1, 2))][::-1]
        size = int(np.prod(shape))
    dense = size > 1 << 17
    m = size
    if flags & SPARSE:
        m = lying(r.randrange(size + 1) if not dense or r.random() < 0.5 else size, (size, size + 1, 2**40))
    num_symbols = min(m, 1 << 17)

    def stream(alphabet, ceiling):
        """A codec and its bytes of symbols below `ceiling`; of one symbol alone where there are too many to write."""
        codec = r.choice(list(CODECS))
        if m > num_symbols:
            levels = np.full(min(alphabet, 1 << 16), r.choice((-1, 127 if codec == "range" else -1)))
            levels[0] = 0
            return codec, b"" if codec == "bitpack" else pack_levels(levels)
        symbols = np.random.default_rng(r.randrange(1 << 30)).integers(0, max(ceiling, 1), num_symbols)
        if r.random() < 0.2:
            symbols[:] = 0
        alphabet = min(lying(alphabet, (alphabet + 1, 2 * alphabet), 0.03), 1 << 16)
        data = CODECS[codec].encode(symbols.clip(max=alphabet - 1), alphabet)
        return codec, mutated(data, r) if r.random() < 0.05 else data

    out, codecs, body = [], [], []
    if flags & SPARSE:
        index_bits = r.choice((1, 2, 3, 5, 5, 8, 8, 12, 16))
        room = max(size - m, 0) // max(m, 1)
        codec, data = stream(1 << index_bits, min(1 << index_bits, room + 1 + (r.random() < 0.05)))
        codecs.append(codec)
        length = lying(len(data), (0, len(data) + 1, 2**50), 0.03)
        body += [bytes([lying(index_bits, (0, 17, 255), 0.03)]), varint(m), varint(length), data]
    if flags & GENERATED:
        scale = lying(0.5, (0.0, -1.0, float("nan"), float("inf"), 3e38))
        body.append(SEED.pack(lying(r.randrange(2), (2, 255), 0.03), r.randrange(1 << 64), scale))
    numbers = [0.0, -0.0, 1.0, -2.5, 65504.0, lying(0.25, (float("nan"), float("inf"), 1e30))]
    kind = torch.float16 if flags & HALF else DTYPES[dtype]

    def as_values(count):
        entries = torch.tensor([r.choice(numbers) for _ in range(min(count, 4096))], dtype=torch.float64)
        entries = entries if kind.is_floating_point else torch.nan_to_num(entries).clamp(0, 1)
        data = entries.to(kind).reshape(-1).view(torch.uint8).numpy().tobytes()
        return data + bytes(max(count - 4096, 0) * itemsize)

    if flags & CODEBOOK:
        num_values = lying(r.choice((1, 1, 2, 3, 5, 16)), (0, 70, 256, 257, 65_536, 65_537), 0.04)
        codec, data = stream(max(num_values, 1), num_values)
        codecs.append(codec)
        values = as_values(num_values)
        body += [varint(lying(len(values), (0, 1, len(values) + itemsize, 2**60), 0.03)), values, data]
    elif flags & PLANES:
        for _ in range(lying(itemsize, (0, itemsize - 1, itemsize + 1), 0.03)):
            codec, data = stream(256, r.choice((1, 2, 256)))
            number = lying(CODEC_NUMBERS[codec], (0, 1, 2, 3, 255), 0.03)
            body += [bytes([number]), varint(lying(len(data), (0, len(data) + 1, 2**50), 0.03)), data]
    else:
        body.append(as_values(max(min(m, 1 << 17) + lying(0, (-1, 1, 100)), 0)))
    out = [bytes([lying(flags, (64, 128, 255, 8, 16, 31, 66, 80), 0.03)])]
    out += [bytes([lying(CODEC_NUMBERS[codec], (0, 1, 2, 3, 255), 0.04)]) for codec in codecs]
    dtype = lying(dtype, list(DTYPES), 0.03)
    shape = lying(shape, ([2**20], [2**40], [0], [*shape, 2], shape[::-1], [2**61, 0]), 0.06)
    return dtype, shape, b"".join(out + body)


CLASSES = {built: 45, mutated_blob: 27, mutated_header: 13, raw_header: 2, mutated: 8, bit_flip: 5}
"""Each class of cases and its share of them, in percent."""
CHANGED_AS_THEY_LIE = (mutated, bit_flip)
"""Classes whose files are all refused, but for a mutation that changes nothing."""


# --- checks


class Memory:
    """The peak of the process's resident memory above what it was at `start`; 0 where /proc does not say."""

    def __init__(self):
        self.is_known = sys.platform.startswith("linux")
        if self.is_known:  # blocks of 128 KiB and more are given back to the system as soon as they are free
            ctypes.CDLL(None).mallopt(-3, 128 << 10)

    def start(self):
        if self.is_known:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._peak()

    def peak(self):
        return self._peak() - self.before if self.is_known else 0

    @staticmethod
    def _peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def same_bits(a, b):
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def check_state(data, state, limit, r):
    """What was read is within the limit, comes back from a file that is written of it, and is what a second reader,
    written from the specification alone, reads of the same file."""
    num_bytes = sum(t.numel() * t.element_size() for t in state.values())
    assert num_bytes <= limit
    if num_bytes <= MAX_ROUND_TRIP:
        again = unpack(pack(state, encoding=EncodingConfig(r.choice(list(CODECS)), 4)))[1]
        assert list(again) == list(state)
        assert all(same_bits(again[name], tensor) for name, tensor in state.items())
    if num_bytes <= MAX_SECOND_READING and all(is_plain(blob) for blob in parse_file(data).blobs):
        second = read_as_specified(data)
        assert list(second) == list(state)
        for name, tensor in state.items():
            expected = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape), as_numbers(tensor))
            assert second[name] == expected, name
    return num_bytes


def announced_bytes(data):
    """The bytes of the tensors that a sound header announces."""
    (length,) = struct.unpack_from("<I", data, 10)
    return sum(entry.nbytes for entry in parse_header(data[14 : 14 + length])[1])


def is_plain(blob):
    """Whether the second reader, which knows no generators and takes long over large alphabets, can read a blob."""
    return blob.generated is None and max(blob.index_bits, blob.codebook_size // 8) <= 8


def fuzz(seed, count):
    """Read `count` files and say how many of each class were read, and how many refused by which error.

    Returns a counter of (class, outcome), the largest peak of memory in bytes, and the largest ratio of a peak beyond
    the constant to what the file held. Raises AssertionError for an error that is not named, a change that is accepted,
    a state that is not restored, or memory beyond the limit.
    """
    r, files, memory = random.Random(seed), list(seeds()), Memory()
    for data in files:
        unpack(data)  # compiles
    outcomes, largest_peak, largest_ratio = collections.Counter(), 0, 0.0
    for i in range(count):
        make = r.choices(list(CLASSES), CLASSES.values())[0]
        original = r.choice(files)
        data, limit = make(original, r), r.choice(LIMITS)
        where = f"case {i} of seed {seed}, {make.__name__}, limit {limit}: {data[:2000].hex()}"
        if i % 1000 == 0:
            gc.collect()
        memory.start()
        try:
            state = unpack(data, max_bytes=limit)[1]
        except NAMED as error:
            state, outcome = None, type(error).__name__
            str(error).encode()  # has no lone surrogates
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}, which is not a named error: {where}") from error
        else:
            outcome = "read"
        peak, held = memory.peak(), len(data)
        if state is not None:
            assert make not in CHANGED_AS_THEY_LIE or data == original, f"a change is accepted: {where}"
            held += check_state(data, state, limit, r)
        elif (
            peak > 3 * held + CONSTANT
        ):  # the last symbol of a stream was wrong, or the last of several tensors
            held += announced_bytes(data)
        assert peak <= min(3 * held + CONSTANT, limit), f"{peak} bytes for {held}: {where}"
        largest_peak = max(largest_peak, peak)
        largest_ratio = max(largest_ratio, (peak - CONSTANT) / held)
        outcomes[make.__name__, outcome] += 1
    return outcomes, largest_peak, largest_ratio


def num_read(outcomes):
    return sum(n for (_, outcome), n in outcomes.items() if outcome == "read")


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_mutated_files_are_read_or_refused():
    outcomes, _, _ = fuzz(0, 700)
    assert num_read(outcomes) > 75
    assert {name for name, _ in outcomes} == {make.__name__ for make in CLASSES}
    assert {outcome for _, outcome in outcomes} >= {
        "CorruptFileError",
        "TruncatedFileError",
        "SizeLimitError",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_mutated_files_are_read_or_refused(seed):
    outcomes, _, _ = fuzz(seed, 2_500)
    assert num_read(outcomes) > 125


def raises_key_error(data, max_bytes=None):
    if max_bytes is not None:  # one of the cases, not of the seeds
        raise KeyError("key")


def takes_much_memory(data, max_bytes=None):
    # Much more than earlier tests in this process may have returned to the system.
    return {}, {"w": torch.ones(400 << 20, dtype=torch.uint8)[:1].clone()}


def accepts_changes(data, max_bytes=None):
    return {}, {}


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (raises_key_error, "not a named error"),
        (takes_much_memory, "bytes for"),
        (accepts_changes, "a change is accepted"),
    ],
)
def test_fuzzer_detects_a_reader_that(reader, message, monkeypatch):
    monkeypatch.setitem(globals(), "check_state", lambda *_: 0)
    monkeypatch.setitem(globals(), "unpack", reader)
    if reader is takes_much_memory:
        monkeypatch.setitem(globals(), "CLASSES", {mutated_blob: 1})
        if not Memory().is_known:
            pytest.skip("The peak of memory is read from /proc.")
    with pytest.raises(AssertionError, match=message):
        fuzz(0, 60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, outcomes, peak, ratio = time.time(), collections.Counter(), 0, 0.0
    for done in range(0, options.count, 1000):
        counts, batch_peak, batch_ratio = fuzz(
            1000 * options.seed + done // 1000, min(1000, options.count - done)
        )
        outcomes += counts
        peak, ratio = max(peak, batch_peak), max(ratio, batch_ratio)
        print(
            f"{sum(outcomes.values())} cases, {time.time() - start:.0f} s, {num_read(outcomes)} read",
            flush=True,
        )
    for (name, outcome), n in sorted(outcomes.items()):
        print(f"{name:16} {outcome:20} {n}")
    print(
        f"largest peak {peak / 2**20:.1f} MiB, {ratio:.2f} times what the file held beside {CONSTANT >> 20} MiB"
    )


if __name__ == "__main__":
    main()
