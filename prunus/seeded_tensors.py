"""Numbers that a seed gives on every platform, to the bit: named generators that never change.

    signs      +1 or -1
    normals    odd integers n = 2^17 (popcount(w) - 32) + 2 v - 65535, w of 64 random bits, v of 16

The random bits are NumPy's Philox4x64-10 (Salmon et al. 2011), a counter-based generator with a fixed stream. What
is made of them is integers that float32 holds exactly, and one float32 product: no logarithm, no cosine, no
rounding that a platform may do otherwise.

`normals` is a binomial count of 64 coins, smeared by a uniform number of its own step: mean 0, variance
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

Floats = NDArray[np.float32]

CHUNK = 1 << 15
"""Entries made at a time, so that little more memory is used than the result takes."""


def signs(seed: int, size: int) -> Floats:
    """+1 where bit i of the stream is 0, -1 where it is 1; the lowest bit of a word comes first.

    >>> signs(0, 6).tolist()
    [-1.0, -1.0, 1.0, -1.0, -1.0, 1.0]
    """
    stream, out = _philox(seed, 0), np.empty(size, np.float32)
    for part in _chunks(out):
        words = stream.random_raw(-(-part.size // 64)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), count=part.size, bitorder="little")
        np.subtract(1.0, 2.0 * bits, out=part, dtype=np.float32, casting="unsafe")
    return out


def normals(seed: int, size: int) -> Floats:
    """The integers n of the card, which have a standard deviation of `DEVIATION`.

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


GENERATORS: dict[str, Callable[[int, int], Floats]] = {"signs": signs, "normals": normals}
"""(seed, size) -> exact integers. A name's numbers never change; other numbers are another name."""

DEVIATION = {"signs": 1.0, "normals": sqrt(2**38 + (2**32 - 1) / 3)}
"""The standard deviation of each generator's integers."""


@dataclass(frozen=True)
class SeededTensor:
    """How a tensor comes from a seed: value = scale · integer, in float32, entries in row-major order."""

    generator: str
    """A key of GENERATORS."""
    seed: int
    """64 bits: 0 to 2^64 - 1."""
    scale: float
    """Rounded to float32; finite."""

    def flaw(self) -> str | None:
        """What is wrong with seed or scale, in words that go on after "is generated"; None: nothing is."""
        if not isinstance(self.seed, int | np.integer) or not 0 <= self.seed < 1 << 64:
            return f"from the seed {self.seed}; a seed is an integer from 0 to 2^64 - 1."
        if not is_float32(self.scale):
            return f"at the scale {self.scale}; a scale is a finite float32."
        return None

    def values(self, shape: tuple[int, ...]) -> Floats:
        """The tensor; its entries are infinite where scale · integer is. Raises SpecError where `flaw` says one.

        >>> SeededTensor("signs", 0, 0.5).values((2, 2)).tolist()
        [[-0.5, -0.5], [0.5, -0.5]]
        """
        if flaw := self.flaw():
            raise SpecError(f"Nothing is generated {flaw}")
        found = lookup("generator", GENERATORS, self.generator)(self.seed, prod(shape))
        with np.errstate(over="ignore"):
            found *= np.float32(self.scale)
        return found.reshape(shape)


def seeded_tensor_with_std(generator: str, seed: int, deviation: float) -> SeededTensor:
    """Generated values of (nearly, the scale is a float32) this standard deviation."""
    scale = deviation / lookup("generator", DEVIATION, generator)
    return SeededTensor(generator, seed, float(np.float32(scale)))


def is_float32(number: float) -> bool:
    """Whether a number is finite, and is so as a float32.

    >>> is_float32(0.1), is_float32(1e39)
    (True, False)
    """
    try:
        with np.errstate(over="ignore"):
            return isfinite(number) and bool(np.isfinite(np.float32(number)))
    except (TypeError, OverflowError):  # no number, or an integer beyond every float
        return False


def _philox(seed: int, stream: int) -> np.random.Philox:
    """The stream of 64-bit words of key (seed, stream), from its counter's beginning."""
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=0)


def _popcount(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many bits of each word are 1: sums of neighbors, in fields of 2, 4, then 8 bits."""
    one, two, four, sum_of_bytes = (np.uint64(int(pattern * 8, 16)) for pattern in ("55", "33", "0f", "01"))
    words = words - ((words >> np.uint64(1)) & one)
    words = (words & two) + ((words >> np.uint64(2)) & two)
    words = (words + (words >> np.uint64(4))) & four
    return (words * sum_of_bytes) >> np.uint64(56)


def _chunks(out: Floats) -> Iterator[Floats]:
    for start in range(0, out.size, CHUNK):
        yield out[start : start + CHUNK]
