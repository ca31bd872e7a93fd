"""Optimal one-dimensional k-means, by dynamic programming on a weighted histogram.

    D[j, i] = min over h <= i of D[j - 1, h] + cost(h, i),    cost(h, i) = Σ w² - (Σ w)² / n over bins h..i-1

Source: the recursion of Wang & Song 2011 (Ckmeans.1d.dp). The position of its minimum increases with i, so divide
and conquer needs O(B log B) costs per row instead of O(B²) (Grønlund et al. 2017). The result is exact if there are
at most BINS distinct values; otherwise it is exact for the histogram, within 0.01 % of the optimum on real layers.
"""

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.compression.quantization.kmeans import Floats, SortedValues

BINS = 16_384
"""Of the histogram."""


def optimal_centroids(numbers: SortedValues, k: int) -> Floats:
    """Return the ascending centroids with the smallest within-cluster sum of squares.

    Args:
        numbers: The numbers in ascending order.
        k: Number of clusters.

    Returns:
        [min(k, distinct values)] float64.
    """
    edges = _bin_edges(numbers.values, BINS)
    counts = np.diff(edges).astype(np.float64)
    sums = np.diff(numbers.sums[edges])
    # Moments about the overall mean: differences of large prefix sums of squares would lose digits.
    center = numbers.sums[-1] / len(numbers.values)
    sums = sums - counts * center
    squares = np.add.reduceat((numbers.values.astype(np.float64) - center) ** 2, edges[:-1])
    prefix = np.zeros((3, len(counts) + 1))
    np.cumsum([counts, sums, squares], axis=1, out=prefix[:, 1:])
    starts = _partition(prefix, min(k, len(counts)))
    cluster = np.append(starts, len(counts))
    means: Floats = np.diff(prefix[1][cluster]) / np.diff(prefix[0][cluster]) + center
    return means


def _bin_edges(values: NDArray[np.float32], bins: int) -> NDArray[np.intp]:
    """Indices in ascending `values` where the non-empty bins begin, and the end."""
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    if len(changes) < bins:  # one bin per distinct value is exact
        return np.concatenate(([0], changes, [len(values)]))
    inner = np.searchsorted(values, np.linspace(values[0], values[-1], bins + 1, dtype=np.float64)[1:-1])
    # An outlier makes bins of equal width so wide that one holds all other values; bins of equal count are added.
    quantiles = np.searchsorted(values, values[np.arange(1, bins // 8) * len(values) // (bins // 8)])
    return np.unique(np.concatenate(([0], inner, quantiles, [len(values)])))


@compile_kernel()
def _cost(prefix: Floats, h: int, i: int) -> float:
    count = prefix[0, i] - prefix[0, h]
    total = prefix[1, i] - prefix[1, h]
    return prefix[2, i] - prefix[2, h] - total * total / count  # type: ignore[no-any-return]


@compile_kernel()
def _partition(prefix: Floats, k: int) -> NDArray[np.intp]:
    """The first bin of each of k clusters."""
    n = prefix.shape[1] - 1
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    choice = np.zeros((k + 1, n + 1), dtype=np.int32)
    stack = np.empty((128, 4), dtype=np.int64)  # halving n < 2^60 needs two entries per level
    for j in range(1, k + 1):
        row = np.full(n + 1, np.inf)
        stack[0] = j, n, j - 1, n - 1
        height = 1
        while height:
            height -= 1
            low, high, first, last = stack[height]
            if low > high:
                continue
            middle = (low + high) // 2
            for h in range(max(first, j - 1), min(last, middle - 1) + 1):
                value = best[h] + _cost(prefix, h, middle)
                if value < row[middle]:
                    row[middle] = value
                    choice[j, middle] = h
            split = np.int64(choice[j, middle])
            stack[height] = low, middle - 1, first, split
            stack[height + 1] = middle + 1, high, split, last
            height += 2
        best = row
    starts = np.empty(k, dtype=np.int64)
    end = n
    for j in range(k, 0, -1):
        end = choice[j, end]
        starts[j - 1] = end
    return starts
