"""k-means of numbers: the weights of a layer share k values.

    minimise Σ_i (w_i - c[a_i])²        the within-cluster sum of squares (WCSS)

Source: Han et al. 2016, section 3.1, eq. 2; the starts are its section 3.2 (`starts.py`).

Numbers on a line need no distances: in sorted order a cluster is an interval whose borders are the midpoints
between centroids, and its sum is a difference of prefix sums. A pass of Lloyd's algorithm therefore costs
k log n, whatever the number of weights.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunus.errors import NotFiniteError, SharingError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sorted:
    """Numbers in ascending order, with what makes interval sums O(1)."""

    values: NDArray[np.float32]
    """[n], ascending."""
    sums: Floats
    """[n + 1]: sums[i] is the sum of the first i."""

    @staticmethod
    def of(weights: NDArray[np.float32]) -> "Sorted":
        """Sort a copy of `weights` (any shape). Raises SharingError when empty, NotFiniteError for NaN."""
        values = np.sort(weights, axis=None)
        if not len(values):
            raise SharingError("k-means was asked for no weights at all.")
        if not (np.isfinite(values[0]) and np.isfinite(values[-1])):  # NaN sorts last
            raise NotFiniteError(f"k-means was asked for {len(values)} weights of which some are not finite.")
        sums = np.zeros(len(values) + 1)
        np.cumsum(values, dtype=np.float64, out=sums[1:])
        return Sorted(values, sums)


def midpoints(centroids: Floats) -> NDArray[np.float32]:
    """[k - 1] borders between ascending centroids, in the weights' own precision.

    (In float64 every search would first convert all the weights.)
    """
    return ((centroids[1:] + centroids[:-1]) / 2).astype(np.float32)


def borders(values: NDArray[np.float32], centroids: Floats) -> NDArray[np.intp]:
    """[k + 1] places in ascending `values` where the clusters of ascending `centroids` begin and end."""
    return np.concatenate(([0], np.searchsorted(values, midpoints(centroids)), [len(values)]))


def lloyd(numbers: Sorted, start: Floats, passes: int = 300) -> Floats:
    """Lloyd's algorithm from `start` [k]; returns ascending centroids [k] in float64.

    Stops when no border moves. A cluster that lost all its weights keeps its centroid.
    """
    centroids = np.sort(start)
    previous = None
    for _ in range(passes):
        edges = borders(numbers.values, centroids)
        if previous is not None and np.array_equal(edges, previous):
            break
        counts = np.diff(edges)
        totals = np.diff(numbers.sums[edges])
        centroids = np.where(counts > 0, totals / np.maximum(counts, 1), centroids)
        previous = edges
    return centroids


def wcss(weights: NDArray[np.float32], centroids: Floats) -> float:
    """The within-cluster sum of squares of `weights`, each with its nearest of ascending `centroids`."""
    flat = weights.reshape(-1)
    return float(((flat.astype(np.float64) - centroids[nearest(flat, centroids)]) ** 2).sum())


def nearest(weights: NDArray[np.float32], centroids: Floats) -> NDArray[np.intp]:
    """The index of the nearest of ascending `centroids` [k] for every weight; ties go to the higher one."""
    return np.searchsorted(midpoints(centroids), weights, side="right")
