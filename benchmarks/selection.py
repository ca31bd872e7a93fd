"""Global magnitude selection of 90 % of 25 M weights, compared with one torch.kthvalue on the same numbers."""

import torch

from benchmarks.timing import interleaved, table
from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.scopes import Global
from prunus.pruning.statistics import Statistics


def run() -> str:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}": torch.randn(2_500_000, generator=generator) for i in range(10)}
    flat = torch.cat(list(weights.values())).abs()
    k = int(0.9 * flat.numel())
    timed = interleaved(
        {
            "prunus, masks of density 0.1": lambda: Global().select(magnitude(Statistics(weights)), 0.1),
            "torch.kthvalue": lambda: flat.kthvalue(k),
        },
        rounds=7,
    )
    rows = [
        [name, f"{timed.median(name):.3f}", timed.ratio(name, "torch.kthvalue")] for name in timed.seconds
    ]
    return table(["25 M weights, one thread, n = 7", "CPU s", "ratio (quartiles)"], rows)
