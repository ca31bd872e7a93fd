"""Encoding and decoding of shared and of unshared weights, compared with `xz -6`."""

import lzma

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import interleaved, table
from prunus.compression.container import EncodingConfig, pack, unpack
from prunus.compression.container.file_format import as_bytes


def run() -> str:
    return f"{_shared()}\n\n{_unshared()}"


def _shared() -> str:
    """16.8 M weights at 90 % sparsity with 32 shared values."""
    draw = np.random.default_rng(0)
    weights = np.zeros(4096 * 4096, dtype=np.float32)
    places = draw.random(len(weights)) < 0.1
    levels = np.linspace(-1, 1, 32, dtype=np.float32)
    weights[places] = levels[np.clip(np.round(draw.laplace(0, 4, places.sum()) + 15.5), 0, 31).astype(int)]
    tensor = torch.from_numpy(weights.reshape(4096, 4096))
    rows = [_prunus_row(f"prunus, {codec}", tensor, codec) for codec in ("range", "huffman", "bitpack")]
    rows.append(_xz_row("xz -6 (of the first eighth, scaled)", tensor[:512], scale=8))
    return table(
        ["4096 x 4096, one thread, n = 5", "encode M/s", "decode M/s", "bytes", "bits per weight"], rows
    )


def _unshared() -> str:
    """4.2 M weights that all differ, dense and pruned."""
    draw = torch.Generator().manual_seed(0)
    dense = 0.02 * torch.randn(2048, 2048, generator=draw)
    half = torch.where(torch.rand(2048, 2048, generator=draw) < 0.5, dense, 0.0)
    tensors = {"float32": dense, "float32, half pruned": half, "bfloat16": dense.bfloat16()}
    rows = []
    for name, tensor in tensors.items():
        rows += [_prunus_row(f"{name}: prunus, {codec}", tensor, codec) for codec in ("range", "bitpack")]
        rows.append(_xz_row(f"{name}: xz -6", tensor))
    return table(
        ["2048 x 2048, one thread, n = 5", "encode M/s", "decode M/s", "bytes", "bits per weight"], rows
    )


def _prunus_row(name: str, tensor: Tensor, codec: str) -> list[object]:
    state, encoding = {"weight": tensor}, EncodingConfig(codec=codec)
    data = pack(state, encoding=encoding)
    timed = interleaved(
        {"encode": lambda: pack(state, encoding=encoding), "decode": lambda: unpack(data)}, rounds=5
    )
    n = tensor.numel()
    speeds = [f"{n / timed.median(key) / 1e6:.0f}" for key in ("encode", "decode")]
    return [name, *speeds, len(data), f"{8 * len(data) / n:.3f}"]


def _xz_row(name: str, tensor: Tensor, scale: int = 1) -> list[object]:
    raw, n = as_bytes(tensor).numpy().tobytes(), tensor.numel()
    packed = lzma.compress(raw, preset=6)
    timed = interleaved(
        {"encode": lambda: lzma.compress(raw, preset=6), "decode": lambda: lzma.decompress(packed)}, rounds=2
    )
    speeds = [f"{n / timed.median(key) / 1e6:.1f}" for key in ("encode", "decode")]
    return [name, *speeds, scale * len(packed), f"{8 * len(packed) / n:.3f}"]
