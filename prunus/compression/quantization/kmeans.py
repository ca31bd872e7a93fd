"""k-means of numbers: the weights of a layer share k values.

    minimize Σ_i (w_i - c[a_i])²        the within-cluster sum of squares (WCSS)

Source: Han et al. 2016, section 3.1, eq. 2; the starts are its section 3.2 (`starts.py`).

Numbers on a line need no distances: in sorted order a cluster is an interval whose borders are the midpoints
between centroids, and its sum is a difference of prefix sums. A pass of Lloyd's algorithm therefore costs
k log n, whatever the number of weights.
"""

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prunus.errors import NonFiniteError, QuantizationError

Floats = NDArray[np.float64]

MOVES = 100
"""How often unused centroids are moved; real layers take one to four rounds."""


@dataclass(frozen=True)
class SortedValues:
    """Numbers in ascending order, with what makes interval sums O(1)."""

    values: NDArray[np.float32]
    """[n], ascending."""
    sums: Floats
    """[n + 1]: sums[i] is the sum of the first i."""

    @staticmethod
    def of(weights: NDArray[np.float32]) -> "SortedValues":
        """Sort a copy of `weights` (any shape). Raises QuantizationError when empty, NonFiniteError for NaN."""
        values = np.sort(weights, axis=None)
        if not len(values):
            raise QuantizationError("Expected at least one weight to share, got none.")
        if not (np.isfinite(values[0]) and np.isfinite(values[-1])):  # NaN sorts last
            raise NonFiniteError(f"k-means was asked for {len(values)} weights of which some are not finite.")
        sums = np.zeros(len(values) + 1)
        np.cumsum(values, dtype=np.float64, out=sums[1:])
        return SortedValues(values, sums)


def midpoints(centroids: Floats) -> NDArray[np.float32]:
    """Return the [k - 1] borders between ascending centroids: the smallest float32 at or above each midpoint.

    A float32 number is below the midpoint exactly where it is below this border, so that also neighboring floats and
    subnormal numbers go to the nearest centroid. (In float64 every search would first convert all the weights.)
    """
    return _at_or_above((centroids[1:] + centroids[:-1]) / 2)


def _at_or_above(numbers: Floats) -> NDArray[np.float32]:
    """The smallest float32 that is not below each number."""
    rounded = numbers.astype(np.float32)
    return np.where(rounded < numbers, np.nextafter(rounded, np.float32(np.inf)), rounded)


def borders(values: NDArray[np.float32], centroids: Floats) -> NDArray[np.intp]:
    """[k + 1] places in ascending `values` where the clusters of ascending `centroids` begin and end."""
    return np.concatenate(([0], np.searchsorted(values, midpoints(centroids)), [len(values)]))


def lloyd(numbers: SortedValues, start: Floats, passes: int = 300) -> Floats:
    """Lloyd's algorithm from `start` [k]; returns ascending centroids [k] in float64.

    Stops when no border moves. A cluster that lost all its weights keeps its centroid.
    """
    centroids = np.sort(start)
    previous = None
    for _ in range(passes):
        edges = borders(numbers.values, centroids)
        if previous is not None and np.array_equal(edges, previous):
            break
        centroids = np.where(np.diff(edges) > 0, _means(numbers, edges), centroids)
        previous = edges
    return centroids


def cluster(numbers: SortedValues, start: Floats, k: int) -> Floats:
    """Run Lloyd's algorithm from `start`, and move the centroids that no number is nearest to, until all are used.

    An unused centroid moves to the cluster with the largest sum of squares, which is split in two at its mean, so that
    the sum of squares falls every time. Without this, one outlier leaves most of the centroids of a linear
    initialization between itself and the other numbers. Where we depart: Han et al. 2016 do not say what becomes of an
    empty cluster.

    Args:
        numbers: The numbers in ascending order.
        start: [at most k] initial centroids.
        k: Number of clusters.

    Returns:
        [k] ascending centroids in float64, each of which is the nearest one of some of the numbers; fewer where there
        are fewer distinct numbers, or where `MOVES` rounds of moves did not suffice.
    """
    centroids = lloyd(numbers, start)
    for _ in range(MOVES):
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
    """The mean of each cluster; of an empty one, any number."""
    counts = np.diff(edges)
    means = np.diff(numbers.sums[edges]) / np.maximum(counts, 1)
    # A difference of prefix sums may be off by more than a cluster of small numbers is wide.
    first = numbers.values[np.minimum(edges[:-1], len(numbers.values) - 1)].astype(np.float64)
    last = numbers.values[np.maximum(edges[1:] - 1, 0)].astype(np.float64)
    inside: Floats = np.clip(means, np.minimum(first, last), np.maximum(first, last))
    return inside


def _split(numbers: SortedValues, edges: NDArray[np.intp], k: int) -> Floats:
    """The means of k clusters, made of those between `edges` by splitting the one of the largest sum of squares."""
    clusters: list[tuple[float, int, int, int]] = []

    def push(first: int, end: int) -> None:
        values = numbers.values[first:end]
        if values[0] == values[-1]:
            heapq.heappush(clusters, (0.0, first, first, end))
            return
        mean = _means(numbers, np.array([first, end]))
        squares = float(((values - mean) ** 2).sum())
        below = int(np.searchsorted(values, _at_or_above(mean))[0])
        if below == 0:  # the mean is so near to the smallest value that it was rounded to it
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
    """The within-cluster sum of squares of `weights`, each with its nearest of ascending `centroids`."""
    flat = weights.reshape(-1)
    return float(((flat.astype(np.float64) - centroids[nearest(flat, centroids)]) ** 2).sum())


def nearest(weights: NDArray[np.float32], centroids: Floats) -> NDArray[np.intp]:
    """The index of the nearest of ascending `centroids` [k] for every weight; ties go to the higher one."""
    return np.searchsorted(midpoints(centroids), weights, side="right")
