"""Masks as pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunus.compression.result import Compressed
from prunus.pruning.prunable import layer_kinds
from prunus.report import formatting
from prunus.report.png import TOP, Image, image

PIXELS = 500_000
"""The most pixels of all mask pictures of a page together."""
SMALLEST_SIDE = 4
"""A layer of 1, 4 or 9 inputs, or three times as many, does not look at a picture."""
MOST_KERNELS = 256
WIDEST_ROW = 120
"""Cells of a row of kernels."""
PRUNED = 7
"""The level of a pruned cell where cells are drawn."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputCoverage:
    """How many connections of the first layer are left at each pixel."""

    name: str
    side: int
    pictures: tuple[Image, ...]
    """One a channel."""
    most: int
    seen: int
    """Pixels, in any channel, with a connection left."""
    pixels: int


@dataclass(frozen=True)
class Bitmap:
    """The mask of one layer."""

    name: str
    picture: Image
    says: str


def input_coverage(compressed: Compressed) -> InputCoverage | None:
    """The pixels the first layer looks at, where it is linear with as many inputs as a picture has pixels."""
    name = _first(compressed)
    if name is None or compressed.masks[name].dim() != 2:
        return None
    counts = compressed.masks[name].sum(0).cpu().numpy()
    channels = next((c for c in (1, 3) if _side(len(counts) / c) >= SMALLEST_SIDE), 0)
    if not channels:
        return None
    side, most = _side(len(counts) / channels), int(counts.max(initial=0))
    pictures = tuple(
        image(
            np.ceil(TOP * plane / max(most, 1)).astype(np.uint8),
            f"connections left at each of {side} × {side} pixels, 0 to {most}",
            widest=280,
            highest=280,
            largest=24,
        )
        for plane in counts.reshape(channels, side, side)
    )
    return InputCoverage(name, side, pictures, most, int((counts > 0).sum()), len(counts))


def kernels(compressed: Compressed) -> Bitmap | None:
    """Each kernel of the first layer as a small grid, where it is a convolution over two dimensions."""
    name = _first(compressed)
    if name is None or compressed.masks[name].dim() != 4:
        return None
    mask = compressed.masks[name].cpu().numpy()
    count, height, width = mask.shape[0] * mask.shape[1], *mask.shape[2:]
    shown = min(count, MOST_KERNELS)
    rows = math.ceil(shown / max(1, WIDEST_ROW // (width + 1)))
    across = math.ceil(shown / rows)
    cells = np.zeros((rows * (height + 1) - 1, across * (width + 1) - 1), np.uint8)
    for index, kernel in enumerate(mask.reshape(count, height, width)[:shown]):
        top, left = index // across * (height + 1), index % across * (width + 1)
        cells[top : top + height, left : left + width] = np.where(kernel, TOP, PRUNED)
    says = f"The first {shown} of {count} kernels" if shown < count else formatting.pluralize(count, "kernel")
    says = f"{says} of {height} × {width}: a cell is a weight, dark where it is kept"
    return Bitmap(name, image(cells, says, widest=600, highest=480, largest=12), says)


def bitmaps(compressed: Compressed) -> list[Bitmap]:
    """Every mask as rows of outputs and columns of inputs; a large one is averaged over blocks."""
    flats = {name: _flat(mask.cpu().numpy()) for name, mask in compressed.masks.items() if mask.numel()}
    side, result = _longest_side([flat.shape for flat in flats.values()]), []
    for name, flat in flats.items():
        shares, block = _blocks(flat, side)
        levels = np.ceil(TOP * shares / (shares.max() or 1)).astype(np.uint8)
        rows, columns = (formatting.format_int(n) for n in flat.shape)
        says = f"{rows} × {columns}, " + (
            "a dot a kept weight" if block == (1, 1) else f"a dot a block of {block[0]} × {block[1]}"
        )
        result.append(Bitmap(name, image(levels, f"mask of {name}", 800, 300, 8), says))
    return result


def _first(compressed: Compressed) -> str | None:
    first = next(iter(layer_kinds(compressed.model)), None)
    return first if first in compressed.masks else None


def _side(pixels: float) -> int:
    """The side of a square of so many pixels; 0 where there is none."""
    side = math.isqrt(int(pixels))
    return side if side * side == pixels else 0


def _flat(mask: Array) -> Array:
    """[O, I], or [O, I, ...] with each kernel flat: [O, I × K × K]."""
    return mask.reshape(mask.shape[0], -1) if mask.ndim > 1 else mask.reshape(1, -1)


def _longest_side(shapes: Sequence[tuple[int, ...]]) -> int:
    """The longest side of a picture with which all of them keep within PIXELS."""
    sides = (800, 400, 200, 100, 50, 25)
    fits = (s for s in sides if sum(min(rows, s) * min(columns, s) for rows, columns in shapes) <= PIXELS)
    return next(fits, sides[-1])


def _blocks(mask: Array, side: int) -> tuple[Array, tuple[int, int]]:
    """The share kept of each block, in at most `side` × `side` blocks of one size, and that size."""
    height, width = (max(1, math.ceil(n / side)) for n in mask.shape)
    rows, columns = (np.arange(0, n, step) for n, step in zip(mask.shape, (height, width), strict=True))
    kept = np.add.reduceat(np.add.reduceat(mask.astype(np.int64), rows, 0), columns, 1)
    tall, wide = (np.diff(np.append(at, n)) for at, n in zip((rows, columns), mask.shape, strict=True))
    return kept / np.outer(tall, wide), (height, width)
