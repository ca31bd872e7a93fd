"""Small pictures as PNG data URIs: one ink, 64 levels of it, nothing where there is nothing."""

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

INK = bytes((0x8E, 0x3B, 0x76))
TOP = 63
"""The level of full ink; 0 lets the page through."""


@dataclass(frozen=True)
class Image:
    """A picture and the size it is to be shown at."""

    source: str
    """A data URI."""
    width: int
    height: int
    """Pixels on the page."""
    says: str
    sharp: bool
    """Whether its dots are to be seen as squares."""


def image(levels: npt.NDArray[Any], says: str, widest: int, highest: int, largest: int) -> Image:
    """`levels` [rows, columns] of 0..TOP, enlarged by a whole number that keeps within the sizes."""
    rows, columns = levels.shape
    scale = max(1, min(widest // columns, highest // rows, largest))
    source = "data:image/png;base64," + base64.b64encode(encode(levels)).decode()
    return Image(source, columns * scale, rows * scale, says, scale > 1)


def encode(levels: npt.NDArray[Any]) -> bytes:
    """A PNG with a palette (its specification's color type 3), filter 0 in every row."""
    rows, columns = levels.shape
    raw = np.zeros((rows, columns + 1), np.uint8)
    raw[:, 1:] = levels
    alpha = bytes(255 * level // TOP for level in range(TOP + 1))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", INK * (TOP + 1)),
        (b"tRNS", alpha),
        (b"IDAT", zlib.compress(raw.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
