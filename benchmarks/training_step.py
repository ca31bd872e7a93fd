"""Training steps of ResNet-20 with augmentation, compared with forward + backward + step on one batch in memory.

The images are noise of the shape of CIFAR-10, which does not change the time. The first column is a loop of plain
PyTorch without data; `prunus.train` also draws the order of the examples, copies and augments each batch, and checks
the loss. A part of the epochs is trained with one of the options of a recipe each.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.timing import interleaved, table
from prunus.models import MODELS
from prunus.training import NoConstraint, Recipe
from prunus.training.trainer import Trainer
from prunus.types import Split

RECIPE = Recipe(1000, 0.1, 128, "sgd", momentum=0.9, weight_decay=1e-4, augmentation="flip_crop")
OPTIONS = {
    "prunus": {},
    "prunus, micro_batch_size=32": {"micro_batch_size": 32},
    "prunus, channels_last": {"channels_last": True},
    "prunus, autocast='bfloat16'": {"autocast": "bfloat16"},
    "prunus, compile": {"compile": True},
}
PLAIN, STEPS, ROUNDS = "one batch, plain PyTorch", 1, 20


def run() -> str:
    """CPU milliseconds per step, and the speed relative to the plain loop."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS * RECIPE.batch_size, 3, 32, 32, generator=draw)
    split = Split(images, torch.randint(0, 10, (len(images),), generator=draw))
    functions = {PLAIN: _plain_loop(split.take(RECIPE.batch_size))}
    functions |= {name: _epoch(split, RECIPE.replace(**changes)) for name, changes in OPTIONS.items()}
    timed = interleaved(functions, rounds=ROUNDS)
    rows = [
        [name, f"{timed.median(name) * 1000 / STEPS:.0f}", timed.ratio(PLAIN, name)] for name in functions
    ]
    header = f"ResNet-20, batch {RECIPE.batch_size}, one thread, n = {ROUNDS} x {STEPS} steps"
    return table([header, "CPU ms per step", "relative speed (quartiles)"], rows)


def _plain_loop(split: Split) -> Callable[[], object]:
    model = MODELS["resnet-20"](seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(split.inputs), split.labels).backward()
            optimizer.step()

    return steps


def _epoch(split: Split, recipe: Recipe) -> Callable[[], object]:
    model = MODELS["resnet-20"](seed=0).train()
    trainer = Trainer(model, recipe, NoConstraint(model))
    return lambda: trainer.epoch(split, seed=0)
