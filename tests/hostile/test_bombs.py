"""Small files that announce much: each is read, or refused by a named error, without hanging; at its peak the reader
takes at most three times the bytes of the file and its tensors, and never more than `max_bytes`.

The files are read by another process, which has warmed up the kernels before and reports the peak of its resident
memory above what it took before the call.
"""

import json
import subprocess
import sys
import zlib
from collections import namedtuple
from operator import itemgetter

import constriction
import numpy as np
import pytest
import torch

from prunus.compression.codecs import range_coder
from prunus.compression.codecs.bitstream import gamma, pack_levels
from prunus.compression.container.file_format import CHECKSUM, DTYPES, MAGIC, PREFIX, VERSION
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

DEFAULT_LIMIT = 256 << 20
MAX_SECONDS = 60.0
"""CPU seconds after which a read counts as hanging; each takes at most 4 on a machine with other work."""

CONSTANT = 12 << 20
"""Bytes that are allowed besides three times the file and its tensors: the objects of a header, one chunk of entries,
two tables, the noise of the allocator."""

BITPACK, HUFFMAN, RANGE = (CODEC_NUMBERS[name] for name in ("bitpack", "huffman", "range"))

Bomb = namedtuple("Bomb", "name data tensor_bytes is_read", defaults=[None])
"""A file, the bytes of the tensors that it announces, and whether it is read (None: it may be refused as well)."""


def framed(header, blobs):
    """A file whose lengths and checksums are right, whatever header and blobs say."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    content = PREFIX.pack(MAGIC, VERSION, len(text)) + text
    parts, running = [content], zlib.crc32(content)
    for blob in blobs:
        parts += [CHECKSUM.pack(running), blob]
        running = zlib.crc32(blob, running)
    return b"".join([*parts, CHECKSUM.pack(running)])


def file_of(dtype, shape, blob, num_tensors=1):
    """A file of tensors of one dtype, shape and blob."""
    rows = [[f"{i:x}", dtype, list(shape), len(blob)] for i in range(num_tensors)]
    return framed({"format": "prunus", "made": {}, "model": None, "tensors": rows}, [blob] * num_tensors)


def as_bytes(bits):
    """A text of 0 and 1 as bytes, padded with zeros."""
    size = -(-len(bits) // 8)
    return int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def table(alphabet, *present, others=-1):
    """A table in which the symbols `present` have level 0 and all others another level, by default none."""
    levels = np.full(alphabet, others)
    levels[list(present)] = 0
    return pack_levels(levels)


def positions(num_entries, index_bits=1, stream=None):
    """The fields of a blob that place `num_entries` entries, by default next to each other, without any payload."""
    stream = table(1 << index_bits, 0) if stream is None else stream
    return bytes([index_bits]) + varint(num_entries) + varint(len(stream)) + stream


def codebook(values, codes=None):
    """The fields of a codebook and its codes, by default those that are all 0, without any payload."""
    return varint(len(values)) + values + (table(1, 0) if codes is None else codes)


def number_one(dtype):
    """The number 1 in a dtype, as bytes."""
    return torch.ones(1, dtype=DTYPES[dtype]).view(torch.uint8).numpy().tobytes()


def shared(dtype, size, *, codec=RANGE, codes=None, values=None, flags=0):
    """A tensor of a code for every entry."""
    values = number_one("float16" if flags & HALF else dtype) if values is None else values
    return file_of(dtype, [size], bytes([CODEBOOK | flags, codec]) + codebook(values, codes))


def placed(dtype, size, *, flags=0, values=None):
    """A tensor [2, size / 2] with a position and a code for every entry."""
    values = number_one("float16" if flags & HALF else dtype) if values is None else values
    head = bytes([SPARSE | CODEBOOK | flags, RANGE, RANGE])
    return file_of(dtype, [2, size // 2], head + positions(size) + codebook(values))


def planes(dtype, size, *, flags=0, codec=RANGE, num_symbols=1):
    """A tensor of byte planes, of which each has this number of different symbols."""
    itemsize = 2 if flags & HALF else DTYPES[dtype].itemsize
    stream = table(256, 7) if num_symbols == 1 else table(256, 0, others=127)
    plane = bytes([codec]) + varint(len(stream)) + stream
    head = bytes([codec]) + positions(size) if flags & SPARSE else b""
    return file_of(dtype, [2, size // 2], bytes([PLANES | flags]) + head + plane * itemsize)


def seeded(generator, size):
    """A tensor that is generated."""
    how = SEED.pack(generator, 5, 1.0)
    return file_of(
        "float32", [size], bytes([GENERATED | CODEBOOK, RANGE]) + how + codebook(number_one("float32"))
    )


def largest_size(dtype, limit, num_streams):
    """The even number of entries of a tensor that takes nearly the memory and nearly the work of a limit."""
    by_memory = (limit - (5 << 20)) // DTYPES[dtype].itemsize
    by_work = (limit // 4 - (1 << 18)) // num_streams
    return min(by_memory, by_work) // 2 * 2


def streams(limit, dtypes=("float64", "float32", "float16", "bfloat16")):
    """Of each kind of tensor stream, a file that is just within the limit, and one whose tensor is of its size."""
    makers = {
        "codes": lambda dtype, size: shared(dtype, size),
        "codes in Huffman": lambda dtype, size: shared(dtype, size, codec=HUFFMAN),
        "codes in bit packing": lambda dtype, size: shared(dtype, size, codec=BITPACK, codes=b""),
        "codes of two symbols": lambda dtype, size: shared(
            dtype,
            size,
            values=number_one(dtype) + bytes(len(number_one(dtype))),
            codes=table(2, 0, others=127),
        ),
        "positions": lambda dtype, size: placed(dtype, size),
        "positions in columns": lambda dtype, size: placed(dtype, size, flags=COLUMN_MAJOR),
    }
    only_float32 = {
        "codes of halves": lambda dtype, size: shared(dtype, size, flags=HALF),
        "positions of halves in columns": lambda dtype, size: placed(dtype, size, flags=HALF | COLUMN_MAJOR),
        "signs": lambda dtype, size: seeded(0, size),
        "normals": lambda dtype, size: seeded(1, size),
    }
    for dtype in dtypes:
        itemsize = DTYPES[dtype].itemsize
        for name, make in (makers | (only_float32 if dtype == "float32" else {})).items():
            size = largest_size(dtype, limit, 2 if "positions" in name else 1)
            yield Bomb(f"{dtype} {name}", make(dtype, size), size * itemsize, True)
            size = limit // itemsize
            yield Bomb(f"{dtype} {name}, too large", make(dtype, size), size * itemsize, False)
    makers = {
        "planes": {},
        "planes of 256 symbols": {"num_symbols": 256},
        "planes and positions": {"flags": SPARSE},
        "planes of halves": {"flags": HALF},
    }
    for dtype in dtypes:
        for name, settings in makers.items():
            if settings.get("flags") == HALF and dtype != "float32":
                continue
            itemsize = DTYPES[dtype].itemsize
            by_work = (limit // 4 - (1 << 18)) * 4 // (itemsize + 4 * ("positions" in name))
            size = min((limit - (10 << 20)) // itemsize, by_work) // 2 * 2
            yield Bomb(f"{dtype} {name}", planes(dtype, size, **settings), size * itemsize, True)
            size = limit // itemsize
            yield Bomb(f"{dtype} {name}, too large", planes(dtype, size, **settings), size * itemsize, False)
    fillers = bytes([SPARSE | CODEBOOK, RANGE, RANGE]) + positions(limit // 16) + codebook(bytes(4))
    yield Bomb("fillers", file_of("float32", [limit // 8], fillers), limit // 2, True)
    zeros = (
        bytes([SPARSE | CODEBOOK, RANGE, RANGE])
        + positions(0, stream=table(2))
        + codebook(bytes(4), table(1))
    )
    yield Bomb("zeros", file_of("float32", [limit // 8], zeros), limit // 2, True)


def values(limit, dtypes=DTYPES):
    """Entries of every dtype that are in the file as they are, and such tensors of immense announced sizes."""
    for dtype in dtypes:
        itemsize = DTYPES[dtype].itemsize
        size = limit // 3 // itemsize
        yield Bomb(
            f"{dtype} values", file_of(dtype, [size], bytes(1 + size * itemsize)), size * itemsize, True
        )
        yield Bomb(f"{dtype} of 2^50 entries", file_of(dtype, [1 << 50], bytes(9)), 0, False)
    size = limit // 3 // 4
    yield Bomb("halves", file_of("float32", [size], bytes([HALF]) + bytes(2 * size)), 4 * size, True)


def tables():
    """Tables and codebooks that are large, or that take long to parse."""
    for size in (1 << 18, 1 << 20, 1 << 21):
        up, down = gamma(1) + gamma(2), gamma(1) + gamma(3)
        codes = as_bytes(up + (up + down) * (size // 2 - 1) + up)  # the levels 0, 1, 0, 1, ...
        for entries in (0, 1000):
            data = shared("float32", entries, values=bytes(4 * size), codes=codes)
            yield Bomb(f"{size} values for {entries} entries", data, 4 * entries, False)
    for size in (2**16 + 1, 2**24 - 1):
        data = shared("float16", size, values=bytes(2 * size), codes=as_bytes(gamma(size) + gamma(2)))
        yield Bomb(f"an alphabet of {size}", data, 2 * size, False)
    # The most segments that a table may have, in a stream that is sound otherwise.
    alphabet, entries = 1 << 16, 1 << 15
    levels = np.arange(alphabet) % 2
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(np.zeros(entries, np.int32), range_coder._model(levels))
    stream = pack_levels(levels) + coder.get_compressed().tobytes().rstrip(b"\0")
    blob = (
        bytes([SPARSE | CODEBOOK, RANGE, RANGE])
        + positions(entries, 16, stream)
        + codebook(number_one("float32"))
    )
    for num_tensors in (1, 4):
        data = file_of("float32", [entries], blob, num_tensors)
        yield Bomb(f"{num_tensors} tables of {alphabet} segments", data, 4 * entries * num_tensors, True)
    # A table of six bytes in which every one of 2^16 symbols is present.
    for codec, level in ((RANGE, 1), (HUFFMAN, 16)):
        stream = as_bytes(gamma(alphabet) + gamma(2 * level + 2)) + (b"\0\0\0\0" if codec == HUFFMAN else b"")
        blob = bytes([SPARSE, codec]) + positions(2, 16, stream) + bytes(8)
        yield Bomb(f"an alphabet of 2^16 in codec {codec}", file_of("float32", [2], blob), 8)


def headers():
    """Headers of many keys, values, tensors, or levels of nesting."""

    def about(made):
        return framed(b'{"format":"prunus","made":%s,"model":null,"tensors":[]}' % made, [])

    yield Bomb(
        "a million keys", about(b"{%s}" % b",".join(b'"%x":1' % i for i in range(1_000_000))), 0, False
    )
    yield Bomb("30,000 keys", about(b"{%s}" % b",".join(b'"%x":1' % i for i in range(30_000))), 0, True)
    yield Bomb("100,000 lists", about(b'{"a":[%s]}' % b",".join([b"[]"] * 100_000)), 0, True)
    yield Bomb("100,000 texts", about(b'{"a":[%s]}' % b",".join([b'"ab"'] * 100_000)), 0, True)
    yield Bomb("400,000 keys", about(b"{%s}" % b",".join(b'"%x":1' % i for i in range(400_000))), 0, False)
    for name, item in (("lists", b"[]"), ("objects", b"{}"), ("numbers", b"1"), ("texts", b'"ab"')):
        items = b",".join([item] * (((4 << 20) - 100) // (len(item) + 1)))
        yield Bomb(f"a header of {name}", about(b'{"a":[%s]}' % items), 0, False)
    yield Bomb("a header of one text", about(b'{"a":"%s"}' % (b"\\u00e9" * 690_000)), 0, True)
    yield Bomb("a header of escapes", framed(b'{"' + b'\\"' * ((2 << 20) - 2), []), 0, False)
    yield Bomb("a header of quotes", framed(b'"' * (4 << 20), []), 0, False)
    yield Bomb("deep lists", framed(b"[" * (4 << 20), []), 0, False)
    yield Bomb("deep objects", framed(b'{"a":' * 800_000, []), 0, False)


def many_tensors(divisor=1):
    """Files of very many tensors, whose objects in Python take more than their entries; and `divisor` times fewer."""
    coded = bytes([CODEBOOK, RANGE]) + codebook(number_one("float32"))
    sparse = bytes([SPARSE | CODEBOOK, RANGE, RANGE]) + positions(2, 2) + codebook(number_one("float32"))
    many, fewer = 30_000 // divisor, 15_000 // divisor
    yield Bomb(f"{many:,} values", file_of("int8", [], b"\0\1", many), many)
    yield Bomb(f"{many:,} tensors of one stream", file_of("float32", [2], coded, many), 8 * many)
    yield Bomb(f"{fewer:,} tensors of two streams", file_of("float32", [2], sparse, fewer), 8 * fewer)


CHILD = """
import ctypes, gc, json, sys, time
import torch
from prunus.compression.container import EncodingConfig, inspect, load, pack, read
from prunus.compression.container.reading import unpack
from prunus.errors import PrunusError
from prunus.seeded_tensors import SeededTensor

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def reset_peak():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

w = torch.tensor([0.0] * 20 + [0.5, 0.25])[torch.arange(120_000) * 7919 % 22].reshape(300, 400)
for codec in ("range", "huffman", "bitpack"):
    unpack(pack({"w": w, "f": w + 0.25, "b": w.bfloat16()}, encoding=EncodingConfig(codec)))
    unpack(pack({"w": torch.randn(100, 100)}, encoding=EncodingConfig(codec)))
for name in ("signs", "normals"):
    how = SeededTensor(name, 1, 0.5)
    unpack(pack({"w": torch.from_numpy(how.values((5000,)))}, generated={"w": how}))
for line in sys.stdin:
    path, function, max_bytes = json.loads(line)
    reset_peak()
    before, start = peak(), time.process_time()
    try:
        result = {"read": read, "inspect": inspect}[function](path, max_bytes)
        outcome = "read"
    except PrunusError as error:
        outcome = type(error).__name__
    except BaseException as error:
        outcome = f"unnamed: {type(error).__name__}: {error}"
    print(json.dumps([outcome, peak() - before, time.process_time() - start]), flush=True)
    result = None
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """Reads a file in another process: (bomb, function, max_bytes) → outcome, bytes at the peak, CPU seconds."""
    if not sys.platform.startswith("linux"):
        pytest.skip("The peak of memory is read from /proc.")
    path = tmp_path_factory.mktemp("bombs") / "f.prunus"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask(bomb, function, max_bytes):
            path.write_bytes(bomb.data)
            process.stdin.write(json.dumps([str(path), function, max_bytes]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            assert reply, f"the reader died of {bomb.name}"
            return json.loads(reply)

        yield ask
        process.stdin.close()


def check(child, bomb, max_bytes=None, functions=("read",)):
    """Read a bomb by each function and check the outcome, the peak and the time."""
    for function in functions:
        outcome, peak, seconds = child(bomb, function, max_bytes)
        summary = f"{bomb.name}, {function}: {outcome}, peak {peak / 2**20:.1f} MiB, {seconds:.2f} s"
        assert not outcome.startswith("unnamed"), summary
        is_read = outcome == "read"
        assert bomb.is_read in (None, is_read), summary
        held = len(bomb.data) + (bomb.tensor_bytes if is_read else 0)
        assert peak <= 3 * held + CONSTANT, summary
        assert peak <= (DEFAULT_LIMIT if max_bytes is None else max_bytes), summary
        assert seconds <= MAX_SECONDS, summary


LIMIT = 16 << 20


def test_reading_bombs_is_bounded_by_max_bytes(child):
    for bomb in (*streams(LIMIT, ("float32", "bfloat16")), *values(LIMIT, ("float64", "bool", "int16"))):
        check(child, bomb, LIMIT)


def test_reading_bombs_is_bounded_by_the_default_limit(child):
    """The largest of them that are read, and a tensor of exactly the limit, which is not."""
    size = largest_size("bfloat16", DEFAULT_LIMIT, 2)
    check(child, Bomb("positions", placed("bfloat16", size, flags=COLUMN_MAJOR), 2 * size, True))
    size = largest_size("float32", DEFAULT_LIMIT, 1)
    check(child, Bomb("normals", seeded(1, size), 4 * size, True))
    check(child, Bomb("positions", placed("bfloat16", DEFAULT_LIMIT // 2, flags=COLUMN_MAJOR), 0, False))


@pytest.mark.parametrize("group", [tables, headers], ids=["tables", "headers"])
def test_reading_large_tables_and_headers_is_fast(child, group):
    for bomb in group():
        check(child, bomb)


@pytest.mark.slow
def test_reading_every_bomb_is_bounded_by_the_default_limit(child):
    for bomb in (*streams(DEFAULT_LIMIT), *values(DEFAULT_LIMIT)):
        check(child, bomb, functions=("read", "inspect"))


@pytest.mark.slow
def test_reading_many_tensors_takes_time_in_proportion_to_their_number(child):
    """Their objects are counted by `max_bytes`, and take more than three times the bytes of such tensors."""
    for bomb, small in zip(many_tensors(), many_tensors(divisor=10), strict=True):
        outcome, peak, seconds = min((child(bomb, "read", None) for _ in range(3)), key=itemgetter(2))
        assert outcome == "read"
        assert peak <= DEFAULT_LIMIT
        assert seconds <= 2.5 * 10 * min(child(small, "read", None)[2] for _ in range(3))
        assert child(bomb, "read", 8 << 20)[0] == "SizeLimitError"


SCARCE = """
import resource, sys, torch
from prunus.compression.container import inspect, load, read
from prunus.errors import ContainerError
for path in sys.argv[4:]: read(path)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
for path in sys.argv[1:4]:
    for function in (read, inspect, load):
        try: function(path)
        except ContainerError as error: print(type(error).__name__, error)
"""


def test_reading_raises_a_named_error_without_memory(tmp_path):
    paths = []
    for size in (1 << 25, 2):
        for name, data in (
            ("codes", shared("float32", size)),
            ("positions", placed("float32", size)),
            ("normals", seeded(1, size)),
        ):
            paths.append(tmp_path / f"{name}-{size}")
            paths[-1].write_bytes(data)
    done = subprocess.run([sys.executable, "-c", SCARCE, *map(str, paths)], capture_output=True, text=True)
    lines = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert lines == ["SizeLimitError Reading the file takes more memory than is available"] * 9, done.stderr
