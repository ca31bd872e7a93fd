"""k-means against an independent exact solver."""

import kmeans1d
import numpy as np
import pytest

from prunus.compression.quantization.kmeans import SortedValues, lloyd, wcss
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.compression.quantization.optimal_kmeans import optimal_centroids


def oracle(values: np.ndarray, k: int) -> float:
    return wcss(values, np.sort(kmeans1d.cluster(values, k).centroids))


@pytest.mark.parametrize("k", [1, 2, 3, 7, 32, 100])
@pytest.mark.parametrize("draw", ["laplace", "standard_normal", "uniform"])
def test_optimal_centroids_equal_exhaustive_dynamic_programming(draw, k):
    values = getattr(np.random.default_rng(k), draw)(size=3000).astype(np.float32)
    assert wcss(values, optimal_centroids(SortedValues.of(values), k)) == pytest.approx(
        oracle(values, k), rel=1e-9
    )


def test_optimal_centroids_with_many_ties():
    values = np.random.default_rng(0).integers(-20, 20, size=5000).astype(np.float32)
    for k in (2, 8, 30):
        assert wcss(values, optimal_centroids(SortedValues.of(values), k)) == pytest.approx(
            oracle(values, k), rel=1e-9
        )


@pytest.mark.parametrize(("outlier", "excess"), [(0.0, 1e-4), (3000.0, 1e-3), (1e6, 1e-3)])
def test_optimal_centroids_on_a_histogram_are_nearly_optimal(outlier, excess):
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    values[0] = outlier
    numbers = SortedValues.of(values)
    actual = wcss(values, lloyd(numbers, KMEANS_INITS["optimal"](numbers, 32, np.random.default_rng(0))))
    assert actual <= oracle(values, 32) * (1 + excess)


def test_cube_root_init_is_near_the_optimum_where_linear_is_not():
    values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    numbers, generator = SortedValues.of(values), np.random.default_rng(0)
    best = oracle(values, 256)
    assert wcss(values, lloyd(numbers, KMEANS_INITS["cube_root"](numbers, 256, generator))) < 1.1 * best
    assert wcss(values, lloyd(numbers, KMEANS_INITS["linear"](numbers, 256, generator))) > 1.5 * best
