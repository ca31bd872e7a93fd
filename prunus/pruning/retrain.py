"""Prune and retrain: the three-step pipeline of Han et al. 2015 (train, prune, retrain), in rounds.

Survivors keep their values (they are not reinitialized); masks hold after every step; each round's masks lie
within those of the round before.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunus.data.validation import check_dataset
from prunus.errors import NoEffectWarning
from prunus.masks import Masks, mask_density
from prunus.pruning.criteria import Criterion
from prunus.pruning.dropout import scaled_dropout
from prunus.pruning.pruners import Pruner, make_prune_fn
from prunus.pruning.scopes import Scope, check_densities_reachable
from prunus.pruning.weights import set_weights
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Recipe, train
from prunus.training.checkpoint import check_writable
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.recipe import check_recipe
from prunus.types import Dataset, Density, MaskDict, Params, Progress


@dataclass(frozen=True)
class PruningRound:
    """One prune + retrain."""

    number: int
    density: float
    masks: MaskDict
    epochs: list[EpochMetrics]


def prune_and_retrain(
    model: nn.Module,
    weights: Params,
    data: Dataset,
    densities: Sequence[Density],
    retrain: Sequence[Recipe],
    *,
    criterion: Criterion | Pruner,
    scope: Scope,
    within: MaskDict | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: Callable[[EpochMetrics], None] | None = None,
    progress: Progress | None = None,
) -> list[PruningRound]:
    """Pass through `densities`, retraining after each with the recipe of the same place; `model` in place.

    Args:
        weights: the prunable parameters of `model`, by name (`prunable`).
        densities: from a schedule.
        retrain: one recipe a density; with no epochs there is no retraining.
        criterion: of weights alone, or a pruner, which looks at training examples and may update what stays.
        within: masks the first round's must lie within.
        checkpoints: a folder; with it a killed call goes on where it was, given the same arguments: `model` with the
            weights of the first call, the same data, densities, recipes and seed. Others are a CheckpointError.
        progress: called after every batch of a retraining, as by `train`.

    Raises what the criterion, the scope and the training raise; where the scope cannot give one of the densities, or
    the model cannot be trained on the data, before any training.
    """
    check_dataset(data, ("train", "validation"))
    for recipe in retrain:
        check_recipe(recipe)
        check_trainable(model, data, recipe)
    folder = None if checkpoints is None else Path(checkpoints)
    if folder is not None:
        check_dense_state(model)
        check_writable(folder / "prune-1.safetensors")
    check_densities_reachable(scope, weights, densities, within)
    masks = within
    rounds = []
    for number, (density, recipe) in enumerate(zip(densities, retrain, strict=True), start=1):
        prune = make_prune_fn(criterion, model, data.train, derive_seed(seed, "criterion", number), progress)
        done = prune(weights, density, scope, within=masks, seed=derive_seed(seed, "ties", number))
        masks = done.masks
        set_weights(model, done.weights)
        with scaled_dropout(model, masks):
            epochs = train(
                model,
                data,
                recipe,
                constraint=Masks(model, masks),
                seed=derive_seed(seed, "retrain", number),
                checkpoint=folder / f"prune-{number}.safetensors" if folder else None,
                report=report,
                progress=progress,
            )
        rounds.append(PruningRound(number, mask_density(masks), masks, epochs))
    if rounds and rounds[-1].density == 1.0:
        warnings.warn("Every density asked for is 1, so nothing is pruned.", NoEffectWarning, stacklevel=2)
    return rounds
