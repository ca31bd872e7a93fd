"""Prune and retrain: the three-step pipeline of Han et al. 2015 (train, prune, retrain), in rounds.

Survivors keep their values (they are not reinitialised); masks hold after every step; each round's masks lie
within those of the round before.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunus.data.check import check_dataset
from prunus.errors import NoEffectWarning
from prunus.nouns import Dataset, Density, Masks, Params, Progress, density_of
from prunus.pruning.criteria import Criterion
from prunus.pruning.dropout import scaled_dropout
from prunus.pruning.pruners import Pruner, prune_of
from prunus.pruning.scopes import Scope, rehearse
from prunus.pruning.weights import put
from prunus.seeds import derive
from prunus.training import Epoch, Masked, Recipe, train
from prunus.training.checkpoint import check_writable
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.loop import check_recipe


@dataclass(frozen=True)
class Round:
    """One prune + retrain."""

    number: int
    density: float
    masks: Masks
    epochs: list[Epoch]


def prune_and_retrain(
    model: nn.Module,
    weights: Params,
    data: Dataset,
    densities: Sequence[Density],
    retrain: Sequence[Recipe],
    *,
    criterion: Criterion | Pruner,
    scope: Scope,
    within: Masks | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> list[Round]:
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
    rehearse(scope, weights, densities, within)
    masks = within
    rounds = []
    for number, (density, recipe) in enumerate(zip(densities, retrain, strict=True), start=1):
        prune = prune_of(criterion, model, data.train, derive(seed, "criterion", number), progress)
        done = prune(weights, density, scope, within=masks, seed=derive(seed, "ties", number))
        masks = done.masks
        put(model, done.weights)
        with scaled_dropout(model, masks):
            epochs = train(
                model,
                data,
                recipe,
                constraint=Masked(model, masks),
                seed=derive(seed, "retrain", number),
                checkpoint=folder / f"prune-{number}.safetensors" if folder else None,
                report=report,
                progress=progress,
            )
        rounds.append(Round(number, density_of(masks), masks, epochs))
    if rounds and rounds[-1].density == 1.0:
        warnings.warn("Every density asked for is 1, so nothing is pruned.", NoEffectWarning, stacklevel=2)
    return rounds
