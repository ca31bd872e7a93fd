"""What the experiments on the LeNets share: MNIST at a size, recipes at a size, a dense network, a pruned copy."""

import copy

from torch import nn

from prunus.compression.deep_compression import prune_as
from prunus.compression.recipes import CompressionRecipe
from prunus.data import load
from prunus.models import MODELS
from prunus.nouns import Dataset, Masks, Progress
from prunus.pruning.prunable import prunable
from prunus.seeds import derive
from prunus.training import train


def mnist(size: str) -> Dataset:
    """MNIST, or its first pictures for the smoke size."""
    return load("mnist").first(3000, 1000) if size == "smoke" else load("mnist")


def at_size(recipe: CompressionRecipe, size: str) -> CompressionRecipe:
    """The recipe itself for "full"; with fewer epochs for the others."""
    if size == "full":
        return recipe
    dense, rounds, settle, finetune = (1, 2, 1, 1) if size == "smoke" else (10, 5, 6, 2)
    return recipe.but(
        dense=recipe.dense.but(epochs=dense),
        rounds=rounds,
        settle=recipe.settle.but(epochs=settle),
        finetune=recipe.finetune.but(epochs=finetune),
    )


def dense(
    name: str, data: Dataset, recipe: CompressionRecipe, replicate: int, progress: Progress | None = None
) -> nn.Module:
    """The model `name` of replicate `replicate`, trained by the recipe's dense settings."""
    model = MODELS[name](seed=derive(replicate, "model"))
    train(model, data, recipe.dense, seed=derive(replicate, "dense"), progress=progress)
    return model


def pruned(
    model: nn.Module,
    data: Dataset,
    recipe: CompressionRecipe,
    replicate: int,
    progress: Progress | None = None,
) -> tuple[nn.Module, Masks]:
    """A copy of `model`, pruned and retrained by the recipe, and its masks."""
    model = copy.deepcopy(model)
    rounds = prune_as(recipe, model, prunable(model), data, seed=replicate, progress=progress)
    return model, rounds[-1].masks
