"""A masked training step beside a dense one: LeNet-300-100, batch 60, Adam."""

import torch

from benchmarks.timing import interleaved, table
from prunus import models
from prunus.masks import Masks
from prunus.pruning.criteria import magnitude
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import layer
from prunus.training import RECIPES
from prunus.training.constraint import NoConstraint
from prunus.training.loop import Trainer
from prunus.types import Statistics


def run() -> str:
    inputs, labels = torch.randn(60, 1, 28, 28), torch.randint(0, 10, (60,))
    steps = {}
    for name in ("dense", "masked, density 0.1"):
        model = models.lenet_300_100()
        masks = layer(magnitude(Statistics(prunable_weights(model))), 0.1)
        constraint = NoConstraint(model) if name == "dense" else Masks(model, masks)
        training = Trainer(model, RECIPES["lenet-300-100"], constraint)
        steps[name] = lambda training=training: [training.step(inputs, labels) for _ in range(100)]
    timed = interleaved(steps, rounds=25)
    rows = [[name, f"{timed.median(name) * 10:.2f}", timed.ratio(name, "dense")] for name in steps]
    return table(
        ["LeNet-300-100, batch 60, Adam, one thread, n = 25 x 100 steps", "CPU ms a step", "ratio"], rows
    )
