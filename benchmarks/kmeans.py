"""k-means of 10 M weights by start, compared with the sort that all need, and how far each ends from the best."""

import numpy as np

from benchmarks.timing import interleaved, table
from prunus.compression.quantization.kmeans import SortedValues, cluster, nearest, wcss
from prunus.compression.quantization.kmeans_init import KMEANS_INITS


def run() -> str:
    weights = np.random.default_rng(0).laplace(size=10_000_000).astype(np.float32)
    numbers, rows = SortedValues.of(weights), []
    for k in (32, 256):
        centroids = {
            name: cluster(numbers, start(numbers, k, np.random.default_rng(0)), k)
            for name, start in KMEANS_INITS.items()
        }
        errors = {name: wcss(weights, values) for name, values in centroids.items()}
        functions = {
            name: lambda start=start, k=k: cluster(numbers, start(numbers, k, np.random.default_rng(0)), k)
            for name, start in KMEANS_INITS.items()
        }
        shared = {
            "sort": lambda: SortedValues.of(weights),
            "assign": lambda book=centroids["optimal"]: nearest(weights, book),
        }
        timed = interleaved({**shared, **functions}, rounds=3)
        for name in KMEANS_INITS:
            total = timed.median("sort") + timed.median(name) + timed.median("assign")
            over = 100 * (errors[name] / min(errors.values()) - 1)
            rows.append([k, name, f"{timed.median(name):.3f}", f"{total:.2f}", f"{over:+.2f} %"])
    header = [
        "k",
        "start",
        "start and passes, CPU s",
        "with sort and assignment, CPU s",
        "above the best WCSS",
    ]
    return table(header, rows)
