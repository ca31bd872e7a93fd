"""Bad files and bad requests: a named error each, bounded memory, and no half-written file."""

import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import prunus
from prunus.compression.codecs.bitstream import pack_levels
from prunus.compression.container import EncodingConfig, inspect, load, pack, read, read_header, unpack, write
from prunus.compression.container.file_format import DTYPES, as_bytes
from prunus.compression.container.tensor_blob import CODEBOOK, GENERATED, HALF, PLANES, SPARSE, TIED, varint
from prunus.errors import (
    ContainerError,
    CorruptFileError,
    ModelMismatchError,
    NonFiniteError,
    NotAContainerError,
    OutputError,
    PrunusError,
    SizeLimitError,
    SpecError,
    TruncatedFileError,
    UnknownNameError,
    UnsupportedVersionError,
)
from prunus.seeded_tensors import SeededTensor


def small_file(codec="range"):
    """A file with every form of tensor in it, of a few hundred bytes."""
    g = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0] * 40 + [0.5, -0.5, 0.1])
    state = {
        "sparse": values[torch.randint(43, (30, 20), generator=g)],
        "codes": torch.tensor([0.25, 0.5])[torch.randint(2, (40,), generator=g)],
        "raw": torch.randn(3, generator=g),
        "int": torch.tensor([5]),
        "flag": torch.tensor([True, False]),
    }
    return pack(
        state, metadata={"a": 1}, model={"name": "lenet-5", "arguments": {}}, encoding=EncodingConfig(codec)
    )


def framed(header, blobs):
    """A file whose lengths and checksums hold, for any header and blobs."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    content = b"\x89prunus\n" + struct.pack("<HI", 1, len(header)) + header
    data, running = content, zlib.crc32(content)
    for blob in blobs:
        data += struct.pack("<I", running) + blob
        running = zlib.crc32(blob, running)
    return data + struct.pack("<I", running)


def of_tensors(rows, blobs):
    return framed({"format": "prunus", "made": {}, "model": None, "tensors": rows}, blobs)


def one_tensor(blob, shape=(4, 4), dtype="float32"):
    return of_tensors([["w", dtype, list(shape), len(blob)]], [blob])


def test_frame_helper_equals_pack():
    assert unpack(one_tensor(b"\0" + bytes(64)))[1]["w"].tolist() == [[0.0] * 4] * 4


# --- damage


@pytest.mark.parametrize("codec", ["bitpack", "huffman", "range"])
def test_unpack_detects_every_flipped_byte(codec):
    data = small_file(codec)
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= mask
            with pytest.raises(ContainerError):
                unpack(bytes(damaged))


def test_unpack_detects_every_truncation():
    data = small_file()
    for end in range(len(data)):
        with pytest.raises((TruncatedFileError, NotAContainerError)):
            unpack(data[:end])


@pytest.mark.parametrize("more", [b"\0", b"\x89prunus\n", bytes(1000)])
def test_unpack_detects_trailing_bytes(more):
    with pytest.raises(CorruptFileError, match=f"{len(more)} bytes follow"):
        unpack(small_file() + more)


def test_unpack_detects_exchanged_blobs():
    """Two blobs of one length, with and without the checksum behind each."""
    data = pack({"a": torch.randn(50), "b": torch.randn(50)})
    for length in (201, 205):
        a, b = slice(-410, -410 + length), slice(-205, -205 + length or None)
        swapped = bytearray(data)
        swapped[a], swapped[b] = data[b], data[a]
        assert len(swapped) == len(data)
        with pytest.raises(CorruptFileError, match="checksum of 'a'"):
            unpack(bytes(swapped))


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\x80\x04pickle", bytes(100), b"\x89prunus\r\n" + bytes(99)]
)
def test_unpack_names_other_file_types(data):
    with pytest.raises(NotAContainerError):
        unpack(data)


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_unpack_names_other_versions(version):
    data = bytearray(small_file())
    data[8:10] = struct.pack("<H", version)
    with pytest.raises(UnsupportedVersionError, match=f"version {version}"):
        unpack(bytes(data))


# --- lies


def test_unpack_refuses_a_huge_header_unread():
    for length, error in ((2**32 - 1, SizeLimitError), (4 << 20, TruncatedFileError)):
        data = b"\x89prunus\n" + struct.pack("<HI", 1, length) + bytes(100)
        with pytest.raises(error):
            unpack(data)


GOOD = {"format": "prunus", "made": {}, "model": None, "tensors": []}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format":"prunus","made":{"a":' + b"[" * 65 + b"]" * 65 + b'},"model":null,"tensors":[]}',
        b'{"a":' * 100_000,
        b'{"format":"prunus","format":"prunus","made":{},"model":null,"tensors":[]}',
        b'{"format":"prunus","made":{"a":NaN},"model":null,"tensors":[]}',
        b'{"format":"prunus","made":{"a":-Infinity},"model":null,"tensors":[]}',
        b'{"format":"prunus","made":{"a":1e999},"model":null,"tensors":[]}',
        b'{"format":"prunus","made":{"a":' + b"9" * 5000 + b'},"model":null,"tensors":[]}',
        {**GOOD, "format": "other"},
        {**GOOD, "format": 1},
        {**GOOD, "more": 1},
        {**GOOD, "made": []},
        {**GOOD, "model": "lenet-5"},
        {**GOOD, "model": {"name": "lenet-5"}},
        {**GOOD, "model": {"name": 5, "arguments": {}}},
        {**GOOD, "model": {"name": "lenet-5", "arguments": [1]}},
        {**GOOD, "model": {"name": "lenet-5", "arguments": {"a": [1]}}},
        {**GOOD, "tensors": {}},
        {"format": "prunus", "made": {}, "tensors": []},
    ],
    ids=lambda header: str(header)[:40],
)
def test_unpack_refuses_headers_outside_the_specification(header):
    with pytest.raises(CorruptFileError):
        unpack(framed(header, []))


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        "w",
        {"name": "w"},
        ["w", "float32", [1], 5, 0],
        [1, "float32", [1], 5],
        ["w", "float31", [1], 5],
        ["w", None, [1], 5],
        ["w", "complex31", [1], 9],
        ["w", "json", [1], 9],
        ["w", "float32", 1, 5],
        ["w", "float32", "1", 5],
        ["w", "float32", [-1], 5],
        ["w", "float32", [1.0], 5],
        ["w", "float32", [True], 5],
        ["w", "float32", [None], 5],
        ["w", "float32", [[1]], 5],
        ["w", "float32", [1], -5],
        ["w", "float32", [1], True],
        ["w", "float32", [1], "5"],
        ["w", "float32", [0, 2**62], 1],
        ["w", "float32", [0, 2**61, 2**61], 1],
        ["w", "float32", [1] * 65, 5],
    ],
    ids=str,
)
def test_unpack_refuses_tensors_outside_the_specification(row):
    with pytest.raises(CorruptFileError, match="tensor"):
        unpack(of_tensors([row], [b"\0" + bytes(4)]))


def test_unpack_refuses_duplicate_names():
    row = ["w", "float32", [1], 5]
    with pytest.raises(CorruptFileError, match="twice"):
        unpack(of_tensors([row, row], [b"\0" + bytes(4)] * 2))


@pytest.mark.parametrize("length", [0, 4, 6, 2**40])
def test_unpack_refuses_blobs_of_another_length(length):
    with pytest.raises((CorruptFileError, TruncatedFileError)):
        unpack(of_tensors([["w", "float32", [1], length]], [b"\0" + bytes(4)]))


HOLED = bytes([SPARSE, 0, 4])  # packed differences of 4 bits; then entries, length, stream, values
CODED = bytes([CODEBOOK, 0])  # packed codes; then length of the codebook, codebook, codes


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "announces 1 bytes"),
        (b"\x10" + bytes(64), "flags"),
        (b"\x08" + bytes(64), "flags"),
        (b"\x00" + bytes(63), "not a multiple"),
        (b"\x00" + bytes(60), "15 values for 16"),
        (bytes([HALF]) + bytes(64), "32 values for 16"),
        (bytes([SPARSE, 3, 4, 0, 0]), "codec 3"),
        (bytes([SPARSE, 0, 0, 0, 0]), "0 bits"),
        (bytes([SPARSE, 0, 17, 0, 0]), "17 bits"),
        (HOLED + varint(17) + bytes(99), "17 entries"),
        (HOLED + b"\xff" * 20, "63 bits"),
        (HOLED + varint(2) + varint(1) + b"\x11", "0 values for 2"),
        (HOLED + varint(2) + varint(2**60) + b"\x11", "announces"),
        (
            HOLED + varint(2) + varint(2) + b"\x11\x11" + bytes(8),
            "Expected 1 bytes for 2 symbols of 4 bits, got 2",
        ),
        (HOLED + varint(2) + varint(1) + b"\x1f" + b"\1" * 8, "a value at 17 of 16"),
        (HOLED + varint(1) + varint(1) + b"\xf1" + b"\1" * 4, "padding"),
        (CODED + varint(0) + bytes(2), "empty codebook"),
        (CODED + varint(68) + bytes(68 + 10), "a codebook of 17 values for 16 entries"),
        (
            bytes([SPARSE, 2, 4]) + varint(1) + varint(8) + pack_levels(np.arange(16) % 2) + bytes(4),
            "more segments than 1 symbols",
        ),
        (CODED + varint(5) + bytes(5 + 2), "not a multiple"),
        (CODED + varint(8) + bytes(8 + 1), "Expected 2 bytes for 16 symbols of 1 bits, got 1"),
        (CODED + varint(12) + bytes(12) + b"\xff" * 4, "Expected symbols below 3, got 3"),
        (bytes([PLANES | CODEBOOK]) + bytes(64), "flags"),
        (bytes([PLANES]) + bytes([3]), "codec 3"),
        (bytes([PLANES]) + bytes([0]) + varint(17) + bytes(16), "announces 17"),
        (bytes([PLANES]) + 3 * (bytes([0]) + varint(16) + bytes(16)), "announces 1 bytes"),
        (bytes([PLANES]) + 4 * (bytes([0]) + varint(15) + bytes(15)), "Expected 16 bytes for 16 symbols"),
        (bytes([PLANES]) + 4 * (bytes([0]) + varint(16) + bytes(16)) + bytes(1), "after its 4 byte planes"),
        (bytes([CODEBOOK, 1]) + varint(8) + bytes(8), "does not end"),
        (bytes([CODEBOOK, 2]) + varint(8) + bytes(8) + b"\xff" * 9, "table|padding"),
    ],
)
def test_unpack_refuses_inconsistent_blobs(blob, message):
    with pytest.raises(CorruptFileError, match=message):
        unpack(one_tensor(blob))


def seeded(number=0, scale=1.0, codes=bytes(2), factor=0.0, zero=0.0):
    """A generated blob of 16 entries, by a codebook of `zero` and `factor`."""
    made = struct.pack("<BQf", number, 5, scale)
    return bytes([GENERATED | CODEBOOK, 0]) + made + varint(8) + struct.pack("<ff", zero, factor) + codes


def test_unpack_names_unknown_generators():
    assert unpack(one_tensor(seeded()))[1]["w"].tolist() == [[0.0] * 4] * 4
    for number in (2, 255):
        with pytest.raises(UnsupportedVersionError, match=f"has generator {number}, expected one of"):
            unpack(one_tensor(seeded(number)))


@pytest.mark.parametrize("flags", [GENERATED, GENERATED | CODEBOOK | HALF, GENERATED | CODEBOOK | SPARSE])
def test_unpack_refuses_other_flags_with_generated(flags):
    with pytest.raises(CorruptFileError, match="flags"):
        unpack(one_tensor(bytes([flags]) + seeded()[1:]))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf")])
def test_unpack_refuses_nonfinite_scales(scale):
    with pytest.raises(CorruptFileError, match="scale"):
        unpack(one_tensor(seeded(scale=scale)))


def test_unpack_refuses_truncated_or_non_float32_generated_blobs():
    blob = seeded()
    for end in range(1, len(blob)):
        with pytest.raises(CorruptFileError):
            unpack(one_tensor(blob[:end]))
    with pytest.raises(CorruptFileError, match="not allowed for"):
        unpack(one_tensor(blob, dtype="float64"))


def test_generated_tensors_count_towards_max_bytes():
    blob = bytes([GENERATED | CODEBOOK, 0]) + struct.pack("<BQf", 1, 5, 1.0) + varint(4) + b"\0\0\x80?"
    for entries in (2**27, 2**58):
        with pytest.raises(SizeLimitError, match="max_bytes"):
            unpack(of_tensors([["w", "float32", [entries], len(blob)]], [blob]))
    tracemalloc.start()
    try:
        unpack(of_tensors([["w", "float32", [2**22], len(blob)]], [blob]), max_bytes=5 * 2**22)
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**22
    finally:
        tracemalloc.stop()


def bits_of(value, dtype):
    """A float as bytes of a dtype."""
    return torch.tensor([value], dtype=dtype).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_unpack_reads_nonfinite_values(dtype, value):
    """As entries, in a codebook, and between zeros."""
    kind = getattr(torch, dtype)
    four = varint(2) + varint(1) + b"\x11"
    values = bits_of(1.0, kind) + bits_of(value, kind)
    book = varint(len(values)) + values
    blobs = [b"\0" + values, CODED + book + b"\x40", HOLED + four + values]
    for blob in [*blobs, bytes([SPARSE | CODEBOOK, 0, 0, 4]) + four + book + b"\x40"]:
        data = one_tensor(blob, shape=(4,) if blob[0] & SPARSE else (2,), dtype=dtype)
        tensor = unpack(data)[1]["w"]
        assert bytes(tensor[tensor != 0].view(torch.uint8).numpy()) == values


def tied(number):
    return bytes([TIED]) + varint(number)


@pytest.mark.parametrize(
    ("row", "blob"),
    [
        (["b", "float32", [2], 2], tied(1)),  # itself
        (["b", "float32", [2], 2], tied(9)),
        (["b", "float32", [1, 2], 2], tied(0)),
        (["b", "int32", [2], 2], tied(0)),
        (["b", "float32", [2], 3], tied(0) + b"\0"),
        (["b", "float32", [2], 1], tied(0)[:1]),
    ],
)
def test_unpack_refuses_a_reference_to_no_such_tensor(row, blob):
    first = ["a", "float32", [2], 9], b"\0" + bytes(8)
    assert unpack(of_tensors([first[0], ["b", "float32", [2], 2]], [first[1], tied(0)]))[1]["b"].shape == (2,)
    with pytest.raises(CorruptFileError, match="'b'"):
        unpack(of_tensors([first[0], row], [first[1], blob]))


def test_unpack_refuses_a_reference_to_a_reference():
    rows = [["a", "float32", [0], 1], ["b", "float32", [0], 2], ["c", "float32", [0], 2]]
    with pytest.raises(CorruptFileError, match="'c' refers to tensor 1, which is not an earlier tensor"):
        unpack(of_tensors(rows, [b"\0", tied(0), tied(1)]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"NaN",
        b"1e999",
        b'{"a":1,"a":2}',
        b'"\\ud800"',
        b"\xff",
        b"[" * 70 + b"]" * 70,
        b'{"$float":"1"}',
        b'{"$tuple":1}',
        b'{"$other":[]}',
        b'{"$tuple":[],"more":1}',
        b'{"$set":[[]]}',
        b'{"$dict":[[1]]}',
        b'{"$bytes":"!"}',
        b'{"$tensor":["float32",[2],"AAAA"]}',
        b'{"$tensor":["float32",[99999999999,99999999999],""]}',
        b'{"$tensor":["float32",[-1],"AAAAAA=="]}',
        b'{"$tensor":["object",[1],"AAAAAA=="]}',
        b'{"$tensor":["bool",[1],"Ag=="]}',
    ],
)
def test_unpack_refuses_values_that_are_no_plain_data(content):
    with pytest.raises(CorruptFileError, match="The value of 'w'"):
        unpack(of_tensors([["w", "json", [], len(content)]], [content]))


@pytest.mark.parametrize("number", [0, 1])
def test_generated_factors_of_zero_give_positive_zero(number):
    plus, minus = (
        unpack(one_tensor(seeded(number, codes=b"\x5a\x0f", factor=-1.0, zero=zero)))[1]["w"]
        for zero in (0.0, -0.0)
    )
    assert int(minus.view(torch.int32).count_nonzero()) == 8
    assert torch.equal(plus.view(torch.int32), minus.view(torch.int32))


def test_unpack_refuses_infinite_generated_entries():
    """A nonfinite factor, even where no code refers to it; a nonfinite product, unless the entry is zero."""
    for factor in (float("nan"), float("inf"), float("-inf")):
        for codes in (b"\xff\xff", b"\0\0"):
            with pytest.raises(CorruptFileError, match="'w' holds values that are NaN or infinite"):
                unpack(one_tensor(seeded(factor=factor, codes=codes)))
    for number, scale, factor in ((1, 3e38, 1.0), (0, 3e38, 2.0), (0, -2.0, 3e38)):
        with pytest.raises(CorruptFileError, match="'w' generates infinite entries"):
            unpack(one_tensor(seeded(number, scale, b"\0\1", factor)))
        assert unpack(one_tensor(seeded(number, scale, b"\0\0", factor)))[1]["w"].tolist() == [[0.0] * 4] * 4


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8", "int64"])
def test_unpack_refuses_flags_of_integer_tensors(dtype):
    with pytest.raises(CorruptFileError, match="not allowed for"):
        unpack(one_tensor(HOLED + varint(0) + varint(0), dtype=dtype))


def test_unpack_refuses_half_flag_of_other_dtypes():
    with pytest.raises(CorruptFileError, match="not allowed for"):
        unpack(one_tensor(bytes([HALF]) + bytes(32), dtype="float64"))


def test_unpack_refuses_other_truth_values():
    with pytest.raises(CorruptFileError, match="neither 0 nor 1"):
        unpack(one_tensor(b"\0\0\1\2", shape=(3,), dtype="bool"))


# --- memory


def bomb(entries):
    """A file of some 200 bytes that announces `entries` float32, all the same, by a code of no bits."""
    return of_tensors([["w", "float32", [entries], 7]], [CODED + varint(4) + b"\0\0\x80?"])


def test_default_limit_bounds_announced_tensors():
    assert unpack(bomb(1000))[1]["w"].tolist() == [1.0] * 1000
    for entries in (2**27, 2**40, 2**58):
        with pytest.raises(SizeLimitError, match="max_bytes"):
            unpack(bomb(entries))


def test_max_bytes_is_exact():
    assert len(unpack(bomb(1000), max_bytes=4000)[1]["w"]) == 1000
    with pytest.raises(SizeLimitError, match="4000 bytes; max_bytes allows 3999"):
        unpack(bomb(1000), max_bytes=3999)


def test_max_bytes_counts_all_tensors_together():
    blob = CODED + varint(4) + b"\0\0\x80?"
    rows = [[str(i), "float32", [2**20], len(blob)] for i in range(100)]
    with pytest.raises(SizeLimitError):
        unpack(of_tensors(rows, [blob] * 100))


@pytest.mark.parametrize(
    "data",
    [
        bomb(2**27),
        of_tensors([["w", "float32", [2**25], 99]], [HOLED + varint(2**25) + varint(2**30) + bytes(90)]),
        of_tensors([["w", "float32", [2**25], 25]], [bytes([CODEBOOK, 1]) + varint(4) + bytes(22)]),
        framed(b"[" * (1 << 20), []),
        b"\x89prunus\n" + struct.pack("<HI", 1, 4 << 20) + bytes(1000),
    ],
    ids=["announced", "stream", "codes", "nested", "header"],
)
def test_corrupt_files_take_no_memory(data):
    tracemalloc.start()
    try:
        with pytest.raises(ContainerError):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_reading_memory_is_within_max_bytes():
    with pytest.raises(SizeLimitError, match="16777216 of them for its tensors; max_bytes allows 16777216"):
        unpack(bomb(2**22), max_bytes=2**24)
    tracemalloc.start()
    try:
        unpack(bomb(2**22), max_bytes=5 * 2**22)
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**22
    finally:
        tracemalloc.stop()


# --- writing


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_save_refuses_nonfinite_parameters_and_keeps_such_buffers(value, dtype, tmp_path):
    layer = nn.Linear(3, 1, dtype=dtype)
    layer.register_buffer("mask", torch.full((3, 3), value, dtype=dtype).triu(1))
    prunus.save(layer, tmp_path / "f.prunus")
    assert torch.equal(as_bytes(read(tmp_path / "f.prunus")["mask"]), as_bytes(layer.mask))
    (tmp_path / "f.prunus").unlink()
    layer.weight.data[0, 1] = value
    with pytest.raises(NonFiniteError, match=r"parameter 'weight' holds 1 of 3"):
        prunus.save(layer, tmp_path / "f.prunus")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            (("signs", seed, 1.0), f"its seed is {seed}, not an integer")
            for seed in (-1, 2**64, 1.5, None, "1")
        ),
        *(
            (("signs", 1, scale), f"its scale is {scale}, not a finite")
            for scale in (1e300, 10**400, None, "1")
        ),
        *(
            (("normals", 1, float(scale)), f"its scale is {scale}, not a finite")
            for scale in ("nan", "inf", "-inf")
        ),
    ],
    ids=str,
)
def test_pack_refuses_invalid_seeds(arguments, message):
    seeded = SeededTensor(*arguments)
    for tensor in (torch.zeros(3), torch.ones(3), torch.zeros(0)):
        with pytest.raises(ContainerError, match=rf"fc1\.weight cannot be generated: {re.escape(message)}"):
            pack({"fc1.weight": tensor}, generated={"fc1.weight": seeded})
    with pytest.raises(SpecError, match=re.escape(message)):
        seeded.values((3,))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), float("-inf"), 1e300, 10**400, None, "2"])
def test_pack_refuses_nonfinite_factors(factor):
    with pytest.raises(
        ContainerError, match=re.escape(f"Expected a finite float32 as the factor of w, got {factor}")
    ):
        pack({"w": torch.zeros(3)}, generated={"w": SeededTensor("signs", 1, 0.5)}, factors={"w": factor})


@pytest.mark.parametrize("generated", [None, {}, {"v": SeededTensor("signs", 1, 0.5)}])
def test_pack_refuses_factors_without_generated(generated):
    state = {"w": torch.zeros(3), "v": torch.zeros(3)}
    for name in ("w", "not there"):
        with pytest.raises(ContainerError, match=f"Expected `factors` of tensors in `generated`, got {name}"):
            pack(state, generated=generated, factors={name: 2.0})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        nn.LazyLinear(3).weight,
        {"extra": torch.float32},
        [nn.Linear(1, 1)],
        {"extra": torch.eye(3).to_sparse()},
    ],
    ids=["sparse", "meta", "lazy", "dtype in extra state", "module in a list", "sparse in extra state"],
)
def test_pack_refuses_unsupported_tensors(tensor):
    with pytest.raises(ContainerError, match="odd"):
        pack({"good": torch.zeros(1), "odd": tensor})


@pytest.mark.parametrize("state", [None, [torch.zeros(1)], nn.Linear(2, 2)], ids=["none", "list", "module"])
def test_pack_refuses_other_types(state):
    with pytest.raises(ContainerError, match="Expected a state_dict"):
        pack(state)


def test_pack_accepts_views_of_any_stride():
    """A single entry of a larger tensor has any stride; an imaginary part is negated where it is read."""
    state = {
        "one": torch.arange(4.0)[1::2][:1],
        "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "spread": torch.ones(1, dtype=torch.bfloat16).expand(3),
        "scalar": torch.arange(3)[1],
    }
    back = unpack(pack(state))[1]
    assert [tensor.tolist() for tensor in back.values()] == [[1.0], [-2.0, 4.0], [1.0] * 3, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_save_clears_and_counts_negative_zeros(dtype, tmp_path):
    """Pruning by a product with a mask leaves -0.0; the file is that of the same weights with 0.0, and one count."""
    g = torch.Generator().manual_seed(0)
    module = nn.Linear(200, 100, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(100, 200, generator=g) * (torch.rand(100, 200, generator=g) < 0.1))
    before = module.weight.detach().clone()
    num_negative = int(((before == 0) & before.signbit()).sum())
    assert num_negative > 5000
    size = prunus.save(module, tmp_path / "f.prunus")
    back = read(tmp_path / "f.prunus")["weight"]
    assert torch.equal(back, before)
    assert not ((back == 0) & back.signbit()).any()
    assert torch.equal(module.weight.signbit(), before.signbit())
    made = read_header(tmp_path / "f.prunus")["made"]
    assert made["negative_zeros_cleared"] == num_negative
    with torch.no_grad():
        module.weight.add_(0.0)
    count = f'"negative_zeros_cleared":{num_negative},'
    assert prunus.save(module, tmp_path / "f.prunus") == size - len(count)
    assert "negative_zeros_cleared" not in read_header(tmp_path / "f.prunus")["made"]


def test_write_keeps_negative_zeros():
    w = torch.tensor([0.0, -0.0, 1.0, -0.0])
    assert unpack(pack({"w": w}))[1]["w"].signbit().tolist() == w.signbit().tolist()


@pytest.mark.parametrize(
    "made",
    [{"a": float("nan")}, {"a": torch.zeros(1)}, {"a": {1, 2}}, {"a": "\ud800"}, {"a": "x" * (5 << 20)}],
)
def test_pack_refuses_metadata_outside_json(made):
    with pytest.raises(ContainerError, match="header"):
        pack({}, metadata=made)


def test_encoding_config_refuses_invalid_values():
    with pytest.raises(UnknownNameError, match="huffman"):
        EncodingConfig("hufman")
    with pytest.raises(UnknownNameError, match="available: bitpack"):
        EncodingConfig(None)
    for bits in (0, 17, -1, 5.0, "5", True):
        with pytest.raises(ContainerError, match="index_bits"):
            EncodingConfig(index_bits=bits)


FULL_DISK = """
import resource, sys, torch
from prunus.compression.container import write
from prunus.errors import OutputError
g = torch.Generator().manual_seed(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write(sys.argv[1], {"w": torch.randn(100, 100, generator=g)})
except OutputError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("before", [None, b"before"])
def test_write_to_a_full_disk_keeps_the_old_file(before, tmp_path):
    """The kernel refuses to let the file grow beyond 4 KiB, as it does when a disk is full."""
    path = tmp_path / "f.prunus"
    if before is not None:
        path.write_bytes(before)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "f.prunus cannot be written: File too large." in done.stdout
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])


def test_write_names_a_missing_folder(tmp_path):
    with pytest.raises(OutputError, match=r"nowhere.*No such file"):
        write(tmp_path / "nowhere" / "f.prunus", {})


def test_write_refuses_a_folder(tmp_path):
    (tmp_path / "f.prunus").mkdir()
    with pytest.raises(OutputError, match="cannot be written: it is a folder"):
        write(tmp_path / "f.prunus", {})
    assert [p.name for p in tmp_path.iterdir()] == ["f.prunus"]


# --- reading and loading


def test_inspect_accepts_other_json_formatting(tmp_path):
    (tmp_path / "f").write_bytes(of_tensors([['\u00e9\U0001f600"\x1b', "uint8", [3], 4]], [b"\0abc"]))
    inspection = inspect(tmp_path / "f")
    assert inspection.layers[0].name == '\u00e9\U0001f600"\x1b'
    assert 0 < inspection.metadata_bytes < inspection.framing_bytes < inspection.file_bytes


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc00\ud800"])
def test_unpaired_surrogates_are_refused_everywhere(text):
    headers = [
        {**GOOD, "tensors": [[text, "uint8", [3], 4]]},
        {**GOOD, "made": {text: 1}},
        {**GOOD, "made": {"a": [{"b": text}]}},
        {**GOOD, "model": {"name": text, "arguments": {}}},
    ]
    for header in headers:
        with pytest.raises(CorruptFileError, match="not valid Unicode"):
            unpack(framed(header, [b"\0abc"] * len(header["tensors"])))
    with pytest.raises(ContainerError, match="Unicode"):
        pack({text: torch.zeros(1)})
    with pytest.raises(ContainerError, match="Unicode"):
        pack({}, metadata={"a": [text]})


def test_reading_refuses_devices_and_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for function in (read, load, inspect):
        for path in ("/dev/zero", "/dev/null"):
            with pytest.raises(NotAContainerError, match="not a regular file"):
                function(path)
        with pytest.raises(NotAContainerError, match="null byte"):
            function("a\0b")


@pytest.mark.parametrize("function", [read, load, inspect])
def test_all_readers_have_the_same_limit(function, tmp_path):
    path = tmp_path / "f.prunus"
    module = prunus.models.lenet_300_100(seed=0)
    size = write(path, module.state_dict(), model={"name": "lenet-300-100", "arguments": {}})
    assert size > 800_000
    function(path, max_bytes=2 * size + (3 << 20))
    for limit in (size + (512 << 10), 266_610 * 4 - 1, 1000, 0):
        with pytest.raises(SizeLimitError, match="max_bytes allows"):
            function(path, max_bytes=limit)
        if function is not load:
            continue
        with pytest.raises(SizeLimitError, match="max_bytes allows"):
            load(path, prunus.models.lenet_300_100(seed=0), limit)


def test_commands_have_the_limit_of_the_library(run_cli, tmp_path):
    path = tmp_path / "f.prunus"
    prunus.save(prunus.models.lenet_300_100(seed=0), path)
    for command in (("inspect", path), ("evaluate", path, "--data", "digits"), ("decompress", path)):
        refused = run_cli(*command, "--max-bytes", 100_000, code=7)
        assert "max_bytes allows 100000" in refused.err
    assert not (tmp_path / "f.safetensors").exists()
    run_cli("decompress", path, "--max-bytes", 5_000_000)
    assert (tmp_path / "f.safetensors").exists()


def test_decompress_refuses_the_reserved_name(run_cli, tmp_path):
    write(tmp_path / "f.prunus", {"__metadata__": torch.zeros(1), "w": torch.zeros(2)})
    assert "__metadata__" in run_cli("decompress", tmp_path / "f.prunus", code=4).err
    assert [path.name for path in tmp_path.iterdir()] == ["f.prunus"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_decompress_writes_valid_safetensors(run_cli, dtype, tmp_path):
    state = {
        "w": torch.ones(2, 3).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
        "\x1b[2J": torch.tensor(1).to(dtype),
    }
    write(tmp_path / "f.prunus", state)
    if dtype in (torch.complex32, torch.complex128):  # which safetensors files have no name for
        run_cli("decompress", tmp_path / "f.prunus", code=4)
        return
    run_cli("decompress", tmp_path / "f.prunus")
    back = load_file(tmp_path / "f.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(as_bytes(back[name]), as_bytes(tensor)) for name, tensor in state.items())


def test_control_characters_do_not_reach_the_terminal(run_cli, tmp_path):
    name = "\x1b[2J\u202e\x07"
    write(tmp_path / "f.prunus", {name: torch.zeros(2)}, metadata={name: name})
    for options in ((), ("--json",)):
        printed = run_cli("inspect", tmp_path / "f.prunus", *options)
        assert not set(name) - set("[2J") & set(printed.out + printed.err)
    with pytest.raises(ModelMismatchError) as error:
        load(tmp_path / "f.prunus", into=nn.Linear(2, 2))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("function", [read, read_header, load, inspect])
def test_all_readers_raise_named_errors(function, tmp_path):
    with pytest.raises(NotAContainerError, match="No such file"):
        function(tmp_path / "missing")
    with pytest.raises(NotAContainerError, match="directory"):
        function(tmp_path)
    (tmp_path / "other").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(NotAContainerError, match="begins with"):
        function(tmp_path / "other")
    data = small_file()
    (tmp_path / "cut").write_bytes(data[:100])
    with pytest.raises(TruncatedFileError):
        function(tmp_path / "cut")
    (tmp_path / "damaged").write_bytes(data[:50] + b"!" + data[51:])
    with pytest.raises(CorruptFileError):
        function(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "into="),
        ({"name": "alexnet", "arguments": {}}, "'alexnet', which is not built in; .* into="),
        ({"name": "lenet-5", "arguments": {"dropout": "much"}}, "dropout"),
        ({"name": "lenet-5", "arguments": {"dropout": 7}}, "dropout"),
        ({"name": "lenet-5", "arguments": {"width": 2**62}}, "width"),
        ({"name": "lenet-5", "arguments": {"": None}}, "lenet-5"),
        ({"name": "lenet-5", "arguments": {}}, "missing: .*conv1.weight"),
        ({"name": "conv-2", "arguments": {"width": 1e9}}, "cannot be built: Expected a width"),
        ({"name": "vit-small", "arguments": {"blocks": 10**9}}, "1 to 100 blocks, got 1000000000"),
    ],
)
def test_load_raises_mismatch_for_models_that_cannot_be_built(model, message, tmp_path):
    write(tmp_path / "f.prunus", {"weight": torch.zeros(1)}, model=model)
    with pytest.raises(ModelMismatchError, match=message):
        load(tmp_path / "f.prunus")


def test_reading_in_a_limited_process_raises_a_named_error(tmp_path):
    """The same bombs under a real limit of address space, in a separate process."""
    for i, data in enumerate((bomb(2**40), framed(b"[" * (4 << 20), []))):
        (tmp_path / str(i)).write_bytes(data)
    program = (
        "import resource, sys, torch; from prunus.compression.container import read;"
        "from prunus.errors import ContainerError;"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try: read(path)\n"
        "    except ContainerError as error: print(type(error).__name__)"
    )
    paths = [str(tmp_path / str(i)) for i in range(2)]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True)
    assert done.stdout.split() == ["SizeLimitError", "CorruptFileError"], done.stderr


def test_files_cannot_execute_code(tmp_path):
    """No pickle: a pickled payload in the place of a file, or of a blob, is bytes."""
    payload = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "owned") + b"'\ntR."
    for data in (payload, one_tensor(payload), framed(payload, [])):
        with pytest.raises(PrunusError):
            unpack(data)
    assert not (tmp_path / "owned").exists()


def test_empty_and_one_weight_layers_are_stored(tmp_path):
    state = {**nn.Linear(1, 1).state_dict(), "none": torch.zeros(0), "rows": torch.zeros(3, 0, 2)}
    write(tmp_path / "f.prunus", state)
    back = read(tmp_path / "f.prunus")
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in state.items()}
