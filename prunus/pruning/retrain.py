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

from prunus.data.validation import check_dataset
from prunus.errors import NoEffectWarning
from prunus.masks import Masks, mask_density
from prunus.pruning.dropout import scaled_dropout
from prunus.pruning.methods import pruning_method, sample_examples
from prunus.pruning.obs.method import PruningMethod
from prunus.pruning.scopes import Scope, parse_scope, shapes_of
from prunus.pruning.statistics import Criterion, Statistics
from prunus.pruning.weights import set_weights
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Recipe, train
from prunus.training.checkpoint import check_writable
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.recipe import check_recipe
from prunus.training.sparse.backend import check_backend
from prunus.types import Dataset, Density, MaskDict, Params, Progress, Scores


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
    weights: Params,
    data: Dataset,
    densities: Sequence[Density],
    retrain: Sequence[Recipe],
    *,
    criterion: str | PruningMethod | Criterion | Callable[[Statistics], Scores] | Mapping[str, Tensor],
    scope: str | Scope | Callable[..., MaskDict],
    within: MaskDict | None = None,
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
        weights: Its parameters to prune, by name, from `prunable_weights`.
        data: Retraining uses the training and validation splits; methods see examples of the training split.
        densities: One per round, from a schedule.
        retrain: One recipe per round; a recipe without epochs retrains nothing.
        criterion: As for `prunus.prune`.
        scope: As for `prunus.prune`.
        within: Masks that those of the first round must be nested in.
        seed: Of random criteria, ties, examples and retraining.
        checkpoints: A folder; with it a killed call continues where it was, given the same arguments: `model` with the
            weights of the first call, the same data, densities, recipes and seed.
        report: Called after each epoch.
        progress: Called after every batch of retraining.
        backend: What retrains, as for `prunus.train`; "auto" chooses in each round.

    Returns:
        One entry per round.

    Raises:
        DensityError: The scope cannot give one of the densities; raised before any training.
        ModelError: The model cannot be trained on the data; raised before any training.
        CheckpointError: `checkpoints` belong to other arguments.
        StatisticsError, NonFiniteError: As `prunus.prune`.
    """
    method, scope = pruning_method(criterion), parse_scope(scope)
    scope.check(shapes_of(weights), densities, within)
    folder = None if checkpoints is None else Path(checkpoints)
    check_backend(backend)
    _check_training(model, data, retrain, folder)
    masks, rounds = within, []
    for number, (density, recipe) in enumerate(zip(densities, retrain, strict=True), start=1):
        seeds = derive_seed(seed, "criterion", number), derive_seed(seed, "ties", number)
        examples = None
        if method.needs_examples:
            examples = sample_examples(data.train, method.num_examples, seeds[0])
        result = method.prune(
            model, weights, density, scope, examples, within=masks, seeds=seeds, progress=progress
        )
        masks = result.masks
        set_weights(model, result.weights)
        with scaled_dropout(model, masks):
            epochs = train(
                model, data, recipe,
                constraint=Masks(model, masks), seed=derive_seed(seed, "retrain", number),
                checkpoint=folder / f"prune-{number}.safetensors" if folder else None,
                report=report, progress=progress, backend=backend,
            )  # fmt: skip
        rounds.append(PruningRound(number, mask_density(masks), masks, epochs))
    if rounds and rounds[-1].density == 1.0:
        warnings.warn("Every density is 1, so nothing is pruned.", NoEffectWarning, stacklevel=2)
    return rounds


def _check_training(model: nn.Module, data: Dataset, retrain: Sequence[Recipe], folder: Path | None) -> None:
    """Raise, before any work, what retraining and checkpoints will raise."""
    check_dataset(data, ("train", "validation"))
    for recipe in retrain:
        check_recipe(recipe)
        check_trainable(model, data, recipe)
    if folder is not None:
        check_dense_state(model)
        check_writable(folder / "prune-1.safetensors")
