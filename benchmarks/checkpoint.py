"""A checkpoint with masks compared with a dense one: LeNet-300-100 with SGD and with Adam."""

import tempfile
from pathlib import Path

from benchmarks.timing import table
from prunus.data import load_data
from prunus.masks import Masks
from prunus.models import MODELS
from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Layer
from prunus.pruning.statistics import Statistics
from prunus.training import RECIPES, train


def run() -> str:
    data, rows = load_data("mnist").take(600, 100), []
    for optimizer in ("sgd", "adam"):
        recipe = RECIPES["lenet-300-100"].replace(optimizer=optimizer, epochs=1)
        sizes = []
        for masked in (False, True):
            model = MODELS["lenet-300-100"]()
            masks = Layer().select(magnitude(Statistics(prunable_weights(model))), 0.1)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.safetensors"
                train(
                    model, data, recipe, constraint=Masks(model, masks) if masked else None, checkpoint=path
                )
                sizes.append(path.stat().st_size)
        rows.append([optimizer, *sizes, f"{sizes[1] / sizes[0]:.3f}"])
    return table(["checkpoint of LeNet-300-100", "dense, bytes", "with masks, bytes", "ratio"], rows)
