"""One-dimensional k-means: the weights of a layer are replaced by k values.

    minimize Σ_i (w_i - c[a_i])²        the within-cluster sum of squares (WCSS)

Source: Han et al. 2016, section 3.1, eq. 2. The initializations of its section 3.2 are in `kmeans_init`.

In sorted order a cluster is an interval whose borders are the midpoints between centroids, and its sum is a
difference of prefix sums. An iteration of Lloyd's algorithm therefore costs O(k log n).
"""

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prunus.errors import NonFiniteError, QuantizationError

Floats = NDArray[np.float64]

MAX_MOVES = 100
"""How often unused centroids are moved at most; real layers need one to four moves."""


@dataclass(frozen=True)
class SortedValues:
    """Numbers in ascending order, with prefix sums."""

    values: NDArray[np.float32]
    """[n], ascending."""
    sums: Floats
    """[n + 1]: sums[i] is the sum of the first i."""

    @staticmethod
    def of(weights: NDArray[np.float32]) -> "SortedValues":
        """Sort a copy of `weights` (any shape). Raises QuantizationError when empty, NonFiniteError for NaN."""
        values = np.sort(weights, axis=None)
        if not len(values):
            raise QuantizationError("Expected at least one weight to quantize, got none.")
        if not (np.isfinite(values[0]) and np.isfinite(values[-1])):  # NaN sorts last
            raise NonFiniteError(
                f"Expected finite weights for k-means, got NaN or infinity among {len(values)}."
            )
        sums = np.zeros(len(values) + 1)
        np.cumsum(values, dtype=np.float64, out=sums[1:])
        return SortedValues(values, sums)


def midpoints(centroids: Floats) -> NDArray[np.float32]:
    """Return the [k - 1] borders between ascending centroids: the smallest float32 at or above each midpoint.

    A float32 number is below the midpoint exactly if it is below this border, so that neighboring floats and
    subnormal numbers are assigned to the nearest centroid, too. (A search in float64 would convert all weights.)
    """
    return _at_or_above((centroids[1:] + centroids[:-1]) / 2)


def _at_or_above(numbers: Floats) -> NDArray[np.float32]:
    """The smallest float32 that is not below each number."""
    rounded = numbers.astype(np.float32)
    return np.where(rounded < numbers, np.nextafter(rounded, np.float32(np.inf)), rounded)


def borders(values: NDArray[np.float32], centroids: Floats) -> NDArray[np.intp]:
    """The [k + 1] indices in ascending `values` where the clusters of ascending `centroids` begin and end.

    Args:
        values: The numbers, [n], ascending.
        centroids: The centroids, [k], ascending.

    Returns:
        The borders, ascending from 0 to n: cluster i is `values[borders[i]:borders[i + 1]]`, which may be empty.
    """
    return np.concatenate(([0], np.searchsorted(values, midpoints(centroids)), [len(values)]))


def lloyd(numbers: SortedValues, start: Floats, max_iterations: int = 300) -> Floats:
    """Run Lloyd's algorithm until no border moves. A cluster without weights keeps its centroid.

    Args:
        numbers: The numbers in ascending order.
        start: Initial centroids, [k].
        max_iterations: Number of iterations after which it ends in any case.

    Returns:
        Ascending centroids, [k] float64.
    """
    centroids = np.sort(start)
    previous = None
    for _ in range(max_iterations):
        edges = borders(numbers.values, centroids)
        if previous is not None and np.array_equal(edges, previous):
            break
        centroids = np.where(np.diff(edges) > 0, _means(numbers, edges), centroids)
        previous = edges
    return centroids


def cluster(numbers: SortedValues, start: Floats, k: int) -> Floats:
    """Run Lloyd's algorithm from `start`, and move the centroids that no number is nearest to, until all are used.

    An unused centroid moves to the cluster with the largest sum of squares, which is split in two at its mean, so that
    the sum of squares decreases every time. Otherwise, with one outlier, most centroids of a linear initialization
    are between it and the other numbers. Han et al. 2016 do not describe how they treat empty clusters.

    Args:
        numbers: The numbers in ascending order.
        start: Initial centroids, at most k.
        k: Number of clusters.

    Returns:
        Ascending centroids, [k] float64, each of which is nearest to some number; fewer if there are fewer distinct
        numbers, or if `MAX_MOVES` moves did not suffice.
    """
    centroids = lloyd(numbers, start)
    for _ in range(MAX_MOVES):
        edges = borders(numbers.values, centroids)
        used = np.diff(edges) > 0
        if len(centroids) == k and used.all():
            return centroids
        centroids = _split(numbers, np.append(edges[:-1][used], edges[-1]), k)
        if len(centroids) < k:
            return centroids
        centroids = lloyd(numbers, centroids)
    return centroids[np.diff(borders(numbers.values, centroids)) > 0]


def _means(numbers: SortedValues, edges: NDArray[np.intp]) -> Floats:
    """The mean of each cluster; an arbitrary number for an empty one."""
    counts = np.diff(edges)
    means = np.diff(numbers.sums[edges]) / np.maximum(counts, 1)
    # The error of a difference of prefix sums may be larger than the width of a cluster of small numbers.
    first = numbers.values[np.minimum(edges[:-1], len(numbers.values) - 1)].astype(np.float64)
    last = numbers.values[np.maximum(edges[1:] - 1, 0)].astype(np.float64)
    clipped: Floats = np.clip(means, np.minimum(first, last), np.maximum(first, last))
    return clipped


def _split(numbers: SortedValues, edges: NDArray[np.intp], k: int) -> Floats:
    """Split the cluster with the largest sum of squares until there are k; return the means."""
    clusters: list[tuple[float, int, int, int]] = []

    def push(first: int, end: int) -> None:
        values = numbers.values[first:end]
        if values[0] == values[-1]:
            heapq.heappush(clusters, (0.0, first, first, end))
            return
        mean = _means(numbers, np.array([first, end]))
        squares = float(((values - mean) ** 2).sum())
        below = int(np.searchsorted(values, _at_or_above(mean))[0])
        if below == 0:  # the mean was rounded to the smallest value
            below = int(np.searchsorted(values, values[0], side="right"))
        heapq.heappush(clusters, (-squares, first, first + below, end))

    for first, end in pairwise(edges.tolist()):
        push(first, end)
    while len(clusters) < k and clusters[0][0] < 0:
        _, first, middle, end = heapq.heappop(clusters)
        push(first, middle)
        push(middle, end)
    starts = np.array(sorted(first for _, first, _, _ in clusters))
    return _means(numbers, np.append(starts, len(numbers.values)))


def wcss(weights: NDArray[np.float32], centroids: Floats) -> float:
    """The within-cluster sum of squares of `weights`, each assigned to the nearest of ascending `centroids`.

    Args:
        weights: The weights, of any shape.
        centroids: The centroids, [k], ascending.

    Returns:
        The sum, computed in float64.
    """
    flat = weights.reshape(-1)
    return float(((flat.astype(np.float64) - centroids[nearest(flat, centroids)]) ** 2).sum())


def nearest(weights: NDArray[np.float32], centroids: Floats) -> NDArray[np.intp]:
    """The index of the nearest of ascending `centroids` [k] for every weight; ties go to the higher one.

    Args:
        weights: The weights, of any shape.
        centroids: The centroids, [k], ascending.

    Returns:
        The indices, 0 to k - 1, of the shape of `weights`.
    """
    return np.searchsorted(midpoints(centroids), weights, side="right")
