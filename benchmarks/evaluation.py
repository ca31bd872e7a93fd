"""Evaluation of 1,000 examples in batches of 100 (the size on a CPU), compared with one batch of all.

The examples are noise and the weights as they are drawn: neither changes the time.
"""

from functools import partial

import torch

from benchmarks.timing import interleaved, table
from prunus.models import MODELS
from prunus.training import evaluate
from prunus.types import Split

SHAPES = {
    "lenet-300-100": (1, 28, 28),
    "lenet-5": (1, 28, 28),
    "conv-2": (3, 32, 32),
    "conv-6": (3, 32, 32),
    "resnet-20": (3, 32, 32),
}
EXAMPLES, ROUNDS = 1000, 9


def run() -> str:
    rows = []
    for name, shape in SHAPES.items():
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(EXAMPLES, *shape, generator=draw)
        split, model = Split(inputs, torch.zeros(EXAMPLES, dtype=torch.int64)), MODELS[name](seed=0)
        sizes = {str(size): partial(evaluate, model, split, size) for size in (100, EXAMPLES)}
        timed = interleaved(sizes, rounds=ROUNDS)
        rows.append(
            [name, *(f"{timed.median(size):.3f}" for size in sizes), timed.ratio("100", str(EXAMPLES))]
        )
    header = [f"one thread, n = {ROUNDS}", "batches of 100, CPU s", "of 1,000", "ratio (quartiles)"]
    return table(header, rows)
