"""The bytes themselves: a change here is a new version of the format."""

import numpy as np
import pytest
import torch
from codec_symbols import decode

from prunus.compression.codecs import CODECS
from prunus.compression.container import EncodingConfig, pack, unpack

SYMBOLS = np.array([0, 3, 1, 0, 0, 2, 0, 4, 0, 1, 1, 0, 0, 9, 0, 0, 1, 2, 0, 0])

CODED = {
    "bitpack": "03 10 02 04 01 10 09 00 12 00",
    "huffman": "92 99 09 d4 6c 63 94 79 60",
    "range": "49 04 a6 27 50 2d 9b 01 5d dc ec 1a 05",
}


@pytest.mark.parametrize("name", CODECS)
def test_codecs_write_golden_bytes(name):
    assert CODECS[name].encode(SYMBOLS, 12).hex(" ") == CODED[name]
    assert np.array_equal(decode(CODECS[name], bytes.fromhex(CODED[name]), 20, 12), SYMBOLS)


def test_huffman_bytes_are_readable_by_eye():
    """Lengths 1 of 11 for '0', 3 for '1', and so on; see the table and the codes in bits."""
    bits = "".join(f"{byte:08b}" for byte in CODECS["huffman"].encode(np.array([0, 1, 0, 2]), 4))
    runs = "1" "00100"  # run of 1: level 1, a step of 2 from -1: gamma(4)  # fmt: skip
    runs += "010" "010"  # run of 2: level 2, a step of 1: gamma(2)  # fmt: skip
    runs += "1" "1"  # run of 1: absent  # fmt: skip
    assert bits[:14] == runs
    assert bits[16:] == "0" "10" "0" "11" "00"  # fmt: skip


HEADER = (
    b'{"format":"prunus","made":{"by":"hand"},"model":{"arguments":{},"name":"m"},'
    b'"tensors":[["w","float32",[6,10],26],["b","float32",[2],9]]}'
)
FILE = b"".join(
    (
        bytes.fromhex("89 70 72 75 6e 75 73 0a  01 00  88 00 00 00"),
        HEADER,
        bytes.fromhex("b5 71 d6 cf"),
        bytes.fromhex(
            "06 02  0a 00 00 00 34 00 38 00 80 00 b8"
        ),  # codebook of halves, range; 0, .25, .5, -0, -.5
        bytes.fromhex("a8 2e 42 e8 02 e6 1f 2b ae 76 ec 93 0f"),  # table and words
        bytes.fromhex("4b 62 e3 62"),
        bytes.fromhex("00  00 00 c0 3f cd cc cc 3d"),  # two floats
        bytes.fromhex("26 80 58 4e"),
    )
)


def state():
    w = torch.zeros(6, 10)
    values = torch.tensor([0.5, -0.5, 0.5, 0.25, -0.5, 0.5, 0.5, -0.0])
    w.view(-1)[[0, 3, 4, 15, 16, 40, 41, 59]] = values
    return {"w": w, "b": torch.tensor([1.5, 0.1])}


def test_pack_writes_golden_bytes():
    model, made = {"name": "m", "arguments": {}}, {"by": "hand"}
    assert pack(state(), model=model, metadata=made, encoding=EncodingConfig("range", 3)) == FILE
    header, back = unpack(FILE)
    assert (header["model"], header["made"]) == (model, made)
    assert all(torch.equal(back[name], tensor) for name, tensor in state().items())
    assert torch.signbit(back["w"].view(-1)[59])


PATCH = {
    "bitpack": "07 00 00 09 14 17 01 92 cf 64 b3 d9 2c f6 4b 3d 92 cf 64 b3 d9 2c f6 4b 3d 92 cf 64 b0 "
    "04 00 3a 00 bd 55 55 50",
    "huffman": "07 01 00 09 14 0c 79 80 8f b0 5f a0 0c 24 9b 6d b6 d8 04 00 3a 00 bd 55 55 50",
    "range": "07 02 00 09 14 12 02 00 13 05 e0 4b 05 fa 00 c2 40 29 bf 00 7a dd 74 0e "
    "04 00 3a 00 bd 55 55 50",
}


def patch():
    """A tensor large enough that positions pay: 20 entries in the columns 3 and 29 of 40 by 50."""
    w = torch.zeros(40, 50)
    w[::4, 3], w[1::4, 29] = 0.75, -1.25
    return w


@pytest.mark.parametrize("codec", CODECS)
def test_sparse_blobs_have_golden_bytes(codec):
    data = pack({"w": patch()}, encoding=EncodingConfig(codec, 9))
    length = int(data.split(b"]]}")[0].rsplit(b",", 1)[1])
    assert data[-4 - length : -4].hex(" ") == PATCH[codec]
    assert torch.equal(unpack(data)[1]["w"], patch())
