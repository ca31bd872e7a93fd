"""Random numbers that are the same bits for a seed on every platform: named generators that never change.

    signs      +1 or -1
    normals    odd integers n = 2^17 (popcount(w) - 32) + 2 v - 65535, w of 64 random bits, v of 16

The random bits are NumPy's Philox4x64-10 (Salmon et al. 2011), a counter-based generator with a fixed stream. They are
turned into integers that float32 represents exactly, and one float32 product: no logarithm, no cosine, no rounding
that may differ between platforms.

`normals` is a binomial count of 64 coin flips plus a uniform number as wide as its step: mean 0, variance
2^38 + (2^32 - 1) / 3 exactly, excess kurtosis -0.031 (a normal distribution: 0), a distribution function within
0.0013 of the normal one, and nothing beyond 8.1 standard deviations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from prunus.errors import SpecError
from prunus.registry import lookup

Float32Array = NDArray[np.float32]

CHUNK = 1 << 15
"""Entries computed at a time, so that little more memory is used than the result needs."""


def signs(seed: int, size: int) -> Float32Array:
    """Random signs: +1 where bit i of the stream is 0, -1 where it is 1; the lowest bit of a word comes first.

    Args:
        seed: 0 to 2^64 - 1.
        size: The number of entries.

    Returns:
        float32 [size].

    Example:
        >>> signs(0, 6).tolist()
        [-1.0, -1.0, 1.0, -1.0, -1.0, 1.0]
    """
    stream, out = _philox(seed, 0), np.empty(size, np.float32)
    for part in _chunks(out):
        words = stream.random_raw(-(-part.size // 64)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), count=part.size, bitorder="little")
        np.subtract(1.0, 2.0 * bits, out=part, dtype=np.float32, casting="unsafe")
    return out


def normals(seed: int, size: int) -> Float32Array:
    """Nearly normal integers, the n of the module docstring, with the standard deviation `DEVIATION["normals"]`.

    Args:
        seed: 0 to 2^64 - 1.
        size: The number of entries.

    Returns:
        float32 [size].

    Example:
        >>> normals(0, 3).tolist()
        [333825.0, -770055.0, -495591.0]
    """
    coins, steps, out = _philox(seed, 1), _philox(seed, 2), np.empty(size, np.float32)
    for part in _chunks(out):
        heads = _popcount(coins.random_raw(part.size)).astype(np.int32)
        words = steps.random_raw(-(-part.size // 4)).astype("<u8", copy=False)
        smear = words.view("<u2")[: part.size].astype(np.int32)
        part[:] = (heads - 32) * (1 << 17) + 2 * smear - 65535
    return out


GENERATORS: dict[str, Callable[[int, int], Float32Array]] = {"signs": signs, "normals": normals}
"""(seed, size) -> exact integers. The numbers of a name never change; other numbers need another name."""

DEVIATION = {"signs": 1.0, "normals": sqrt(2**38 + (2**32 - 1) / 3)}
"""The standard deviation of the integers of each generator."""


@dataclass(frozen=True)
class SeededTensor:
    """A tensor that is generated from a seed: value = scale · integer, in float32, entries in row-major order."""

    generator: str
    """A key of GENERATORS."""
    seed: int
    """64 bits: 0 to 2^64 - 1."""
    scale: float
    """Rounded to float32; finite."""

    def why_invalid(self) -> str | None:
        """Why no tensor can be generated, as a clause; None if the seed and the scale are valid."""
        if not isinstance(self.seed, int | np.integer) or not 0 <= self.seed < 1 << 64:
            return f"its seed is {self.seed}, not an integer from 0 to 2^64 - 1"
        if not is_float32(self.scale):
            return f"its scale is {self.scale}, not a finite float32"
        return None

    def values(self, shape: tuple[int, ...]) -> Float32Array:
        """The tensor; its entries are infinite where scale · integer is. Raises SpecError as `why_invalid` says.

        >>> SeededTensor("signs", 0, 0.5).values((2, 2)).tolist()
        [[-0.5, -0.5], [0.5, -0.5]]
        """
        if why := self.why_invalid():
            raise SpecError(f"The tensor cannot be generated: {why}.")
        numbers = lookup("generator", GENERATORS, self.generator)(self.seed, prod(shape))
        with np.errstate(over="ignore"):
            numbers *= np.float32(self.scale)
        return numbers.reshape(shape)


def seeded_tensor_with_std(generator: str, seed: int, deviation: float) -> SeededTensor:
    """A generated tensor with a standard deviation, up to the rounding of its scale to float32.

    Args:
        generator: A key of GENERATORS.
        seed: 0 to 2^64 - 1.
        deviation: The standard deviation.

    Returns:
        The description of the tensor.
    """
    scale = deviation / lookup("generator", DEVIATION, generator)
    return SeededTensor(generator, seed, float(np.float32(scale)))


def is_float32(number: float) -> bool:
    """Whether a number is finite, also as a float32.

    >>> is_float32(0.1), is_float32(1e39)
    (True, False)
    """
    try:
        with np.errstate(over="ignore"):
            return isfinite(number) and bool(np.isfinite(np.float32(number)))
    except (TypeError, OverflowError):  # not a number, or an integer larger than every float
        return False


def _philox(seed: int, stream: int) -> np.random.Philox:
    """The stream of 64-bit words of the key (seed, stream), from counter 0."""
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=0)


def _popcount(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The number of one bits of each word: sums of neighboring fields of 1, 2, then 4 bits."""
    ones, pairs, fours, sum_of_bytes = (
        np.uint64(int(pattern * 8, 16)) for pattern in ("55", "33", "0f", "01")
    )
    words = words - ((words >> np.uint64(1)) & ones)
    words = (words & pairs) + ((words >> np.uint64(2)) & pairs)
    words = (words + (words >> np.uint64(4))) & fours
    return (words * sum_of_bytes) >> np.uint64(56)


def _chunks(out: Float32Array) -> Iterator[Float32Array]:
    for start in range(0, out.size, CHUNK):
        yield out[start : start + CHUNK]
