"""Masks as small PNG images in one color, transparent where weights are pruned."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prunus.compression.result import Compressed
from prunus.pruning.weight_layers import layer_kinds
from prunus.text_tables import pluralize

COLOR = bytes((0x8E, 0x3B, 0x76))
MAX_LEVEL = 63
"""The level of full color; level 0 is transparent."""
PRUNED_LEVEL = 7
"""The level of a pruned weight in the images of kernels."""

MAX_PIXELS = 500_000
"""The most pixels of all mask images of a page together."""
MIN_SIDE = 4
"""The inputs of a first layer are drawn as an image if its side has at least this many pixels."""
MAX_KERNELS = 256
MAX_KERNEL_COLUMNS = 120
"""The most pixels in a row of kernels, with one between kernels."""

Array = npt.NDArray[Any]


class MaskImage(NamedTuple):
    """An image and its size on the page."""

    source: str
    """A data URI."""
    width: int
    height: int
    description: str
    pixelated: bool
    """Whether pixels are enlarged and must stay sharp."""


class InputCoverage(NamedTuple):
    """The number of remaining connections of the first layer at each input pixel."""

    name: str
    side: int
    images: list[MaskImage]
    """One per channel."""
    max_connections: int
    num_connected: int
    """Inputs with a remaining connection."""
    num_inputs: int


class LayerImage(NamedTuple):
    """The mask of one layer."""

    name: str
    image: MaskImage
    caption: str


def make_image(levels: Array, description: str, max_width: int, max_height: int, max_scale: int) -> MaskImage:
    """Draw `levels`, [rows, columns] in 0..MAX_LEVEL, enlarged by an integer factor within the given limits.

    Args:
        levels: The opacity of each pixel, [rows, columns], from 0 (transparent) to `MAX_LEVEL`.
        description: What the image shows, for readers who cannot see it.
        max_width: The largest width on the page, in pixels.
        max_height: The largest height on the page, in pixels.
        max_scale: The largest factor.

    Returns:
        The image with its size on the page; an image that is larger than the limits is not enlarged and keeps its size.
    """
    rows, columns = levels.shape
    scale = max(1, min(max_width // columns, max_height // rows, max_scale))
    source = "data:image/png;base64," + base64.b64encode(encode_png(levels)).decode()
    return MaskImage(source, columns * scale, rows * scale, description, scale > 1)


def encode_png(levels: Array) -> bytes:
    """Encode levels as a PNG with a palette of one color and `MAX_LEVEL` + 1 opacities."""
    from PIL import Image

    rows, columns = levels.shape
    image = Image.frombytes("P", (columns, rows), levels.astype(np.uint8).tobytes())
    image.putpalette(COLOR * (MAX_LEVEL + 1))
    opacities = bytes(255 * level // MAX_LEVEL for level in range(MAX_LEVEL + 1))
    file = io.BytesIO()
    image.save(file, "png", transparency=opacities, optimize=True)
    return file.getvalue()


def input_coverage(compressed: Compressed) -> InputCoverage | None:
    """The input pixels that the first layer uses, if it is linear with as many inputs as a square image has values."""
    name = _first_layer(compressed)
    if name is None or compressed.masks[name].dim() != 2:
        return None
    counts = compressed.masks[name].sum(0).cpu().numpy()
    channels = next((c for c in (1, 3) if _square_side(len(counts) / c) >= MIN_SIDE), 0)
    if not channels:
        return None
    side, most = _square_side(len(counts) / channels), int(counts.max(initial=0))
    images = [
        make_image(
            np.ceil(MAX_LEVEL * plane / max(most, 1)),
            f"remaining connections at each of {side} × {side} pixels, 0 to {most}",
            max_width=280,
            max_height=280,
            max_scale=24,
        )
        for plane in counts.reshape(channels, side, side)
    ]
    return InputCoverage(name, side, images, most, int((counts > 0).sum()), len(counts))


def draw_kernels(compressed: Compressed) -> LayerImage | None:
    """Each kernel of the first layer as a small grid, if it is a two-dimensional convolution."""
    name = _first_layer(compressed)
    if name is None or compressed.masks[name].dim() != 4:
        return None
    mask = compressed.masks[name].flatten(0, 1).cpu().numpy()
    count, height, width = mask.shape
    shown = min(count, MAX_KERNELS)
    num_rows = math.ceil(shown / max(1, MAX_KERNEL_COLUMNS // (width + 1)))
    per_row = math.ceil(shown / num_rows)
    levels = np.zeros((num_rows * (height + 1) - 1, per_row * (width + 1) - 1), np.uint8)
    for index, kernel in enumerate(mask[:shown]):
        top, left = index // per_row * (height + 1), index % per_row * (width + 1)
        levels[top : top + height, left : left + width] = np.where(kernel, MAX_LEVEL, PRUNED_LEVEL)
    text = f"The first {shown} of {count} kernels" if shown < count else pluralize(count, "kernel")
    text += f" of {height} × {width}: one cell per weight, dark where it remains"
    return LayerImage(name, make_image(levels, text, max_width=600, max_height=480, max_scale=12), text)


def draw_masks(compressed: Compressed) -> list[LayerImage]:
    """Every mask with one row per output and one column per input; a large mask is averaged over blocks."""
    matrices = {
        name: mask.reshape(mask.shape[0] if mask.dim() > 1 else 1, -1).cpu().numpy()
        for name, mask in compressed.masks.items()
        if mask.numel()
    }
    max_side, result = _max_side([matrix.shape for matrix in matrices.values()]), []
    for name, matrix in matrices.items():
        densities, block = _block_densities(matrix, max_side)
        levels = np.ceil(MAX_LEVEL * densities / (densities.max() or 1))
        rows, columns = matrix.shape
        unit = "remaining weight" if block == (1, 1) else f"block of {block[0]} × {block[1]}"
        image = make_image(levels, f"mask of {name}", max_width=800, max_height=300, max_scale=8)
        result.append(LayerImage(name, image, f"{rows:,} × {columns:,}, one dot per {unit}"))
    return result


def _first_layer(compressed: Compressed) -> str | None:
    first = next(iter(layer_kinds(compressed.model)), None)
    return first if first in compressed.masks else None


def _square_side(num_pixels: float) -> int:
    """The side of a square of `num_pixels` pixels; 0 where there is none."""
    side = math.isqrt(int(num_pixels))
    return side if side * side == num_pixels else 0


def _max_side(shapes: Sequence[tuple[int, ...]]) -> int:
    """The longest side of an image with which all of them together have at most MAX_PIXELS."""
    sides = (800, 400, 200, 100, 50, 25)
    fits = (s for s in sides if sum(min(rows, s) * min(columns, s) for rows, columns in shapes) <= MAX_PIXELS)
    return next(fits, sides[-1])


def _block_densities(mask: Array, max_side: int) -> tuple[Array, tuple[int, int]]:
    """The density of each block, in at most `max_side` × `max_side` blocks of one size, and that size."""
    height, width = (max(1, math.ceil(n / max_side)) for n in mask.shape)
    rows, columns = (np.arange(0, n, step) for n, step in zip(mask.shape, (height, width), strict=True))
    remaining = np.add.reduceat(np.add.reduceat(mask.astype(np.int64), rows, 0), columns, 1)
    heights, widths = (np.diff(np.append(at, n)) for at, n in zip((rows, columns), mask.shape, strict=True))
    return remaining / np.outer(heights, widths), (height, width)
