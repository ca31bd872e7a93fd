"""A masked training step beside a dense one: LeNet-300-100, batch 60, Adam.

In the training loop of prunus, and in a loop of one's own to whose optimizer the masks are attached.
"""

import torch
from torch.nn import functional as F

from benchmarks.timing import interleaved, table
from prunus import models
from prunus.masks import Masks
from prunus.training import RECIPES, NoConstraint
from prunus.training.loop import Trainer

DENSITY, ROUNDS, STEPS = 0.1, 300, 10


def run() -> str:
    """Print CPU milliseconds per step, and the ratio to a dense step of the same loop."""
    inputs, labels = torch.randn(60, 1, 28, 28), torch.randint(0, 10, (60,))
    loops = {}
    for name in ("dense", "masked", "own loop, dense", "own loop, masks attached"):
        model = models.lenet_300_100()
        weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
        masks = Masks(model, {name: torch.rand(weight.shape) < DENSITY for name, weight in weights.items()})
        if name in ("dense", "masked"):
            constraint = masks if name == "masked" else NoConstraint(model)
            trainer = Trainer(model, RECIPES["lenet-300-100"], constraint)
            loops[name] = lambda trainer=trainer: [trainer.step(inputs, labels) for _ in range(STEPS)]
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=True)
            if name.endswith("attached"):
                masks.attach(optimizer)

            def loop(model=model, optimizer=optimizer):
                for _ in range(STEPS):
                    optimizer.zero_grad()
                    F.cross_entropy(model(inputs), labels).backward()
                    optimizer.step()

            loops[name] = loop
    timed = interleaved(loops, rounds=ROUNDS)
    rows = [
        [name, f"{timed.median(name) * 1000 / STEPS:.3f}", timed.ratio(name, dense)]
        for name, dense in zip(loops, ("dense", "dense", *["own loop, dense"] * 2), strict=True)
    ]
    title = f"LeNet-300-100, batch 60, Adam, density {DENSITY}, one thread, n = {ROUNDS} x {STEPS} steps"
    return table([title, "CPU ms per step", "ratio to dense (quartiles)"], rows)
