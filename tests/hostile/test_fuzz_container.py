"""Mutated files: the reader answers each with a state or with a ContainerError, and with nothing else.

Half of them are mutated as they lie; the other half within header and blobs, lengths and checksums then set
right, so that what lies behind the checksums is reached.
"""

import json
import random
import struct
import zlib

import pytest
import torch

from prunus.compression.codecs import CODECS
from prunus.compression.container import Coding, pack, unpack
from prunus.errors import ContainerError
from prunus.generators import Generated

LIMIT = 1 << 22
SEEDED = {"signs": Generated("signs", 7, 0.5), "normals": Generated("normals", 2**64 - 1, 0.001)}
NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 256, 2**16, 2**31, 2**32, 2**53, 2**62, 2**64, 10**30]
OTHERS = [1.5, True, None, "1", [], {}]
TOKENS = [b"", b"{}", b"[]", b"null", b"NaN", b"-1", b"1e9", b"1e999", b'"', b"\\u0000", b"float16", b"\xff"]


def seeds():
    """Small files of every codec that have every form of tensor in them."""
    g = torch.Generator().manual_seed(0)
    few = torch.tensor([0.0] * 20 + [0.5, -0.5, 0.1, -0.0])
    many = torch.randn(12, 9, generator=g)
    state = {
        "few": few[torch.randint(24, (20, 11), generator=g)],
        "columns": torch.zeros(30, 20).index_fill(1, torch.tensor([3, 17]), 2.0),
        "halves": few.half()[torch.randint(24, (4, 3, 3, 3), generator=g)].float(),
        "raw": torch.where(many > 1, many, torch.zeros(())),
        "bits": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "wide": torch.full((50,), 0.3, dtype=torch.float64),
        "signs": torch.from_numpy(SEEDED["signs"].values((20, 9)))
        * few.bool()[torch.randint(24, (20, 9), generator=g)],
        "normals": torch.from_numpy(SEEDED["normals"].values((70,))) * 1.5,
    }
    state["signs"] += 0.0
    for codec in CODECS:
        for share in (True, False):
            yield pack(
                state,
                made={"a": [1, "é"]},
                coding=Coding(codec, share=share),
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
    """A JSON value with one thing in it changed."""
    if isinstance(value, list) and value and r.random() < 0.8:
        at = r.randrange(len(value))
        return [*value[:at], mutated_value(value[at], r), *value[at + 1 :]]
    if isinstance(value, dict) and value and r.random() < 0.8:
        key = r.choice(list(value))
        return {**value, key: mutated_value(value[key], r)}
    return r.choice(NUMBERS + OTHERS)


def mutated_within(data, r):
    """The same inside header or blobs, with the frame set right again."""
    header, blobs = parts(data)
    kind = r.randrange(4)
    if kind:
        at = r.randrange(len(blobs))
        blobs[at] = mutated(blobs[at], r)
        header["tensors"][at][3] = len(blobs[at])
    if kind == 1:
        row = r.choice(header["tensors"])
        row[1], row[2] = r.choice(header["tensors"])[1], r.choice(header["tensors"])[2]
    if kind == 0:
        header = mutated_value(header, r)
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    return framed(mutated(text, r) if kind == 0 and r.random() < 0.3 else text, blobs)


def fuzz(seed, count):
    """How many of `count` mutated files are read and how many refused."""
    r, files = random.Random(seed), list(seeds())
    read = refused = 0
    for i in range(count):
        data = (mutated, mutated_within)[i % 2](r.choice(files), r)
        try:
            state = unpack(data, max_bytes=LIMIT)[1]
        except ContainerError:
            refused += 1
            continue
        read += 1
        assert sum(t.numel() * t.element_size() for t in state.values()) <= LIMIT
        again = unpack(pack(state, coding=Coding("bitpack", 4)))[1]
        for name, tensor in state.items():
            assert torch.equal(again[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    return read, refused


def test_mutated_files_are_read_or_refused():
    read, refused = fuzz(0, 2_000)
    assert read > 20
    assert refused > 1_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_very_many_mutated_files_are_read_or_refused(seed):
    read, refused = fuzz(seed, 10_000)
    assert read > 100
    assert refused > 5_000
