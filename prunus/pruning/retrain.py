"""Prune and retrain: the three-step pipeline of Han et al. 2015 (train, prune, retrain), in rounds.

Kept weights keep their values (they are not initialized again); masks hold after every step of retraining; the masks of
each round are nested in those of the round before.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from prunus.data.examples import sample_examples
from prunus.data.validation import check_dataset
from prunus.errors import NoEffectWarning, StatisticsError
from prunus.masks import Masks, mask_density
from prunus.modules import find_parameter, uncompiled
from prunus.pruning.dropout import scaled_dropout
from prunus.pruning.methods import pruning_method
from prunus.pruning.obs.method import PruningMethod
from prunus.pruning.scopes import Scope, parse_scope, shapes_of
from prunus.pruning.selection import select_weights
from prunus.pruning.statistics import Criterion, Statistics
from prunus.pruning.weights import set_weights
from prunus.registry import check_callbacks
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Recipe, train
from prunus.training.checkpoint import check_checkpoint_writable
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.fit import Fit, check_fit, check_recipes, train_with
from prunus.training.losses import Loss, LossFunction, find_loss
from prunus.training.outputs import Forward
from prunus.training.recipe_checks import check_recipe
from prunus.training.sparse.backend import check_backend
from prunus.types import Dataset, Density, MaskDict, Progress, Scores


@dataclass(frozen=True)
class PruningRound:
    """One round: pruned, then retrained."""

    number: int
    density: float
    masks: MaskDict
    epochs: list[EpochMetrics]
    """Each says which backend trained it."""


def prune_and_retrain(
    model: nn.Module,
    data: Dataset | None,
    densities: Sequence[Density],
    retrain: Sequence[Recipe] = (),
    *,
    fit: Fit | None = None,
    forward: Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    criterion: str
    | PruningMethod
    | Criterion
    | Callable[[Statistics], Scores]
    | Mapping[str, Tensor] = "magnitude",
    scope: str | Scope | Callable[..., MaskDict] = "layer",
    within: MaskDict | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: Callable[[EpochMetrics], None] | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
) -> list[PruningRound]:
    """Prune `model` to each of `densities` in place, and retrain it after each.

    Source: Han et al. 2015, section 3 and Figure 2.

    Args:
        model: A trained network.
        data: Retraining uses the training and validation splits; methods see examples of the training split. None
            requires `fit` and a criterion that uses no examples.
        densities: One per round, from a schedule.
        retrain: One recipe per round; a recipe without epochs retrains nothing.
        fit: A function (model, masks) that retrains the model in place after each round, in the place of recipes; it
            calls `masks.attach(optimizer)`.
        forward, loss: As for `prunus.train`; methods that differentiate a loss use them too.
        criterion: As for `prunus.prune`.
        scope: As for `prunus.prune`.
        within: Masks that those of the first round must be nested in.
        include: Shell patterns of the names of weights to prune.
        exclude: Shell patterns of the names of weights not to prune.
        seed: Seed of random criteria, ties, examples and retraining.
        checkpoints: A folder of checkpoints. A call that was killed continues from them if it is repeated with the same
            arguments: `model` with the weights of the first call, the same data, densities, recipes and seed.
        report: Called after each epoch.
        progress: Called after every batch of retraining.
        backend: What retrains, as for `prunus.train`; "auto" chooses in each round.

    Returns:
        One entry per round.

    Raises:
        DensityError: The scope cannot reach one of the densities; raised before any training.
        ModelError: The model cannot be trained on the data; raised before any training.
        SpecError: The number of recipes is not that of densities, or recipes or checkpoints are given with `fit`.
        CheckpointError: `checkpoints` belong to other arguments.
        TrainingError: `fit` changed a pruned weight.
        StatisticsError, NonFiniteError: As `prunus.prune`.
    """
    check_callbacks(report=report, progress=progress)
    check_recipes(densities, retrain, fit)
    method, scope = pruning_method(criterion), parse_scope(scope)
    original = uncompiled(model)
    selection = select_weights(original, method, scope, include, exclude, within=within, strict=True)
    weights, within = selection.weights, selection.within
    scope.check(shapes_of(weights), densities, within)
    folder = None if checkpoints is None else Path(checkpoints)
    check_backend(backend)
    sparse = backend if backend == "sparse" else None
    check_fit(fit, checkpoints=checkpoints, report=report, backend=sparse)
    if data is None and (fit is None or method.needs_examples):
        raise StatisticsError(
            "Expected data for recipes and for criteria that use examples, got none; pass a prunus.Dataset."
        )
    if data is not None and fit is None:
        _check_retraining(model, data, retrain, folder, forward, loss)
    masks, rounds = within, []
    for number, density in enumerate(densities, start=1):
        weights = {name: find_parameter(original, name) for name in weights}  # `fit` may have replaced them
        seeds = derive_seed(seed, "criterion", number), derive_seed(seed, "ties", number)
        examples = None
        if data is not None and method.needs_examples:
            examples = sample_examples(data.train, method.num_examples, seeds[0])
        result = method.prune(
            original, weights, density, scope, examples,
            within=masks, seeds=seeds, forward=forward, loss=loss, progress=progress,
        )  # fmt: skip
        masks, epochs = result.masks, []
        set_weights(original, result.weights)
        with scaled_dropout(original, masks):
            if fit is not None:
                train_with(fit, model, Masks(model, masks))
            elif data is not None:
                epochs = train(
                    model, data, retrain[number - 1],
                    constraint=Masks(model, masks), forward=forward, loss=loss,
                    seed=derive_seed(seed, "retrain", number),
                    checkpoint=folder / f"prune-{number}.safetensors" if folder else None,
                    report=report, progress=progress, backend=backend,
                )  # fmt: skip
        rounds.append(PruningRound(number, mask_density(masks), masks, epochs))
    if rounds and rounds[-1].density == 1.0:
        warnings.warn("Every density is 1, so nothing is pruned.", NoEffectWarning, stacklevel=2)
    return rounds


def _check_retraining(
    model: nn.Module,
    data: Dataset,
    recipes: Sequence[Recipe],
    folder: Path | None,
    forward: Forward | None,
    loss: str | Loss | LossFunction | None,
) -> None:
    """Raise what would stop a training with one of the recipes, before anything is pruned."""
    check_dataset(data, ("train", "validation"))
    for recipe in recipes:
        check_recipe(recipe)
        check_trainable(model, data, recipe, forward=forward, loss=find_loss(loss))
    if folder is not None:
        check_dense_state(model)
        check_checkpoint_writable(folder / "prune-1.safetensors")
