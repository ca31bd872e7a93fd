"""A checkpoint with masks beside a dense one: LeNet-300-100 with SGD and with Adam."""

import tempfile
from pathlib import Path

from benchmarks.timing import table
from prunus import models
from prunus.data import load
from prunus.nouns import Evidence
from prunus.pruning.criteria import magnitude
from prunus.pruning.prunable import prunable
from prunus.pruning.scopes import layer
from prunus.training import RECIPES, Masked, train


def run() -> str:
    data, rows = load("mnist").first(600, 100), []
    for optimiser in ("sgd", "adam"):
        recipe = RECIPES["lenet-300-100"].but(optimiser=optimiser, epochs=1)
        sizes = []
        for masked in (False, True):
            model = models.lenet_300_100()
            masks = layer(magnitude(Evidence(prunable(model))), 0.1)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.safetensors"
                train(
                    model, data, recipe, constraint=Masked(model, masks) if masked else None, checkpoint=path
                )
                sizes.append(path.stat().st_size)
        rows.append([optimiser, *sizes, f"{sizes[1] / sizes[0]:.3f}"])
    return table(["checkpoint of LeNet-300-100", "dense, bytes", "with masks, bytes", "ratio"], rows)
