"""Initializations of k-means: (sorted numbers, k, generator) -> k centroids.

    linear        evenly spaced over [min, max]                    Han et al. 2016, section 3.2
    density       evenly spaced in the cumulative distribution     Han et al. 2016, section 3.2
    random        k of the weights, sampled without replacement      Han et al. 2016, section 3.2 ("Forgy")
    cube_root     evenly spaced in the integral of density^(1/3)   Panter & Dite 1951: best for many levels
    optimal       the global optimum on a histogram                `optimal_kmeans`

`linear` suits few centroids: large weights are important and rare. From 64 centroids on, most of them are where no
weights are and `kmeans.cluster` moves them; `cube_root` then ends within a few percent of the optimum.
"""

from collections.abc import Callable

import numpy as np

from prunus.compression.quantization.kmeans import Floats, SortedValues

KMeansInit = Callable[[SortedValues, int, np.random.Generator], Floats]


def linear(numbers: SortedValues, k: int, generator: np.random.Generator) -> Floats:
    """Evenly spaced from the smallest to the largest, both included.

    Args:
        numbers: The weights to quantize, in ascending order.
        k: The number of centroids, at least 1.
        generator: Unused.

    Returns:
        The centroids, [k] float64, ascending.
    """
    return np.linspace(numbers.values[0], numbers.values[-1], k, dtype=np.float64)


def density(numbers: SortedValues, k: int, generator: np.random.Generator) -> Floats:
    """The quantiles (i + 1/2) / k.

    Args:
        numbers: The weights to quantize, in ascending order.
        k: The number of centroids, at least 1.
        generator: Unused.

    Returns:
        The centroids, [k] float64, ascending.
    """
    indices = ((np.arange(k) + 0.5) / k * len(numbers.values)).astype(np.intp)
    quantiles: Floats = numbers.values[indices].astype(np.float64)
    return quantiles


def random(numbers: SortedValues, k: int, generator: np.random.Generator) -> Floats:
    """k of the weights, sampled without replacement; with replacement where there are fewer than k.

    Args:
        numbers: The weights to quantize, in ascending order.
        k: The number of centroids, at least 1.
        generator: The source of the random choice.

    Returns:
        The centroids, [k] float64, ascending.
    """
    indices = generator.choice(len(numbers.values), size=k, replace=len(numbers.values) < k)
    return np.sort(numbers.values[indices].astype(np.float64))


def cube_root(numbers: SortedValues, k: int, generator: np.random.Generator) -> Floats:
    """Evenly spaced in ∫ p(w)^(1/3) dw, with p from a histogram of 2 n^(1/3) bins.

    The number of bins follows Rice's rule: in finer bins the cube root of a noisy count is too small in the tails.

    Args:
        numbers: The weights to quantize, in ascending order.
        k: The number of centroids, at least 1.
        generator: Unused.

    Returns:
        The centroids, [k] float64, ascending.
    """
    bins = int(np.ceil(2 * np.cbrt(len(numbers.values))))
    edges = np.linspace(numbers.values[0], numbers.values[-1], bins + 1, dtype=np.float64)
    counts = np.diff(np.searchsorted(numbers.values, edges[1:-1]), prepend=0, append=len(numbers.values))
    mass = np.concatenate(([0.0], np.cumsum(np.cbrt(np.maximum(counts, 0)))))
    centroids: Floats = np.interp((np.arange(k) + 0.5) / k * mass[-1], mass, edges)
    return centroids


def optimal(numbers: SortedValues, k: int, generator: np.random.Generator) -> Floats:
    """The optimum by dynamic programming, which Lloyd's iterations change by rounding only.

    Args:
        numbers: The weights to quantize, in ascending order.
        k: The number of centroids, at least 1.
        generator: Unused.

    Returns:
        The centroids, float64, ascending; fewer than k where there are fewer distinct weights.
    """
    from prunus.compression.quantization.optimal_kmeans import optimal_centroids  # compiles for half a second

    return optimal_centroids(numbers, k)


KMEANS_INITS: dict[str, KMeansInit] = {
    "linear": linear,
    "density": density,
    "random": random,
    "cube_root": cube_root,
    "optimal": optimal,
}
