"""What the experiments on the LeNets share: MNIST at a size, recipes at a size, a dense network, a pruned copy."""

import copy

from torch import nn

from prunus.compression.presets import CompressionRecipe
from prunus.compression.stages import prune_with_recipe
from prunus.data import load_data
from prunus.models import MODELS
from prunus.pruning.prunable import prunable_weights
from prunus.seeds import derive_seed
from prunus.training import train
from prunus.types import Dataset, MaskDict, Progress


def mnist(size: str) -> Dataset:
    """MNIST, or its first pictures for the smoke size."""
    return load_data("mnist").take(3000, 1000) if size == "smoke" else load_data("mnist")


def scale_recipe(recipe: CompressionRecipe, size: str) -> CompressionRecipe:
    """The recipe itself for "full"; with fewer epochs for the others."""
    if size == "full":
        return recipe
    dense, rounds, settle, finetune = (1, 2, 1, 1) if size == "smoke" else (10, 5, 6, 2)
    return recipe.replace(
        dense=recipe.dense.replace(epochs=dense),
        rounds=rounds,
        final_retrain=recipe.final_retrain.replace(epochs=settle),
        finetune=recipe.finetune.replace(epochs=finetune),
    )


def dense(
    name: str, data: Dataset, recipe: CompressionRecipe, replicate: int, progress: Progress | None = None
) -> nn.Module:
    """The model `name` of replicate `replicate`, trained by the recipe's dense settings."""
    model = MODELS[name](seed=derive_seed(replicate, "model"))
    train(model, data, recipe.dense, seed=derive_seed(replicate, "dense"), progress=progress)
    return model


def pruned(
    model: nn.Module,
    data: Dataset,
    recipe: CompressionRecipe,
    replicate: int,
    progress: Progress | None = None,
) -> tuple[nn.Module, MaskDict]:
    """A copy of `model`, pruned and retrained by the recipe, and its masks."""
    model = copy.deepcopy(model)
    rounds = prune_with_recipe(
        recipe, model, prunable_weights(model), data, seed=replicate, progress=progress
    )
    return model, rounds[-1].masks
