"""Encoding and decoding 16.8 M weights at 90 % sparsity with 32 shared values, compared with `xz -6`."""

import lzma

import numpy as np
import torch

from benchmarks.timing import interleaved, table
from prunus.compression.container import EncodingConfig, pack, unpack


def run() -> str:
    draw = np.random.default_rng(0)
    weights = np.zeros(4096 * 4096, dtype=np.float32)
    places = draw.random(len(weights)) < 0.1
    levels = np.linspace(-1, 1, 32, dtype=np.float32)
    weights[places] = levels[np.clip(np.round(draw.laplace(0, 4, places.sum()) + 15.5), 0, 31).astype(int)]
    state = {"weight": torch.from_numpy(weights.reshape(4096, 4096))}
    n, raw = len(weights), weights.tobytes()
    rows = []
    for codec in ("range", "huffman", "bitpack"):
        encoding = EncodingConfig(codec=codec)
        data = pack(state, encoding=encoding)
        timed = interleaved(
            {
                "encode": lambda encoding=encoding: pack(state, encoding=encoding),
                "decode": lambda data=data: unpack(data),
            },
            rounds=5,
        )
        speeds = [f"{n / timed.median(name) / 1e6:.0f}" for name in ("encode", "decode")]
        rows.append([f"prunus, {codec}", *speeds, len(data), f"{8 * len(data) / n:.3f}"])
    small = raw[: len(raw) // 8]
    packed = lzma.compress(small, preset=6)
    timed = interleaved(
        {"encode": lambda: lzma.compress(small, preset=6), "decode": lambda: lzma.decompress(packed)},
        rounds=1 + 1,
    )
    speeds = [f"{n / 8 / timed.median(name) / 1e6:.1f}" for name in ("encode", "decode")]
    rows.append(
        ["xz -6 (of the first eighth, scaled)", *speeds, 8 * len(packed), f"{64 * len(packed) / n:.3f}"]
    )
    return table(
        ["4096 x 4096, one thread, n = 5", "encode M/s", "decode M/s", "bytes", "bits a weight"], rows
    )
