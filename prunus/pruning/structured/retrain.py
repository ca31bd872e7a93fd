"""Remove channels in rounds, and train the smaller network from its remaining weights after each round."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from prunus.data.examples import as_examples, sample_examples
from prunus.data.validation import check_dataset
from prunus.errors import DensityError, SpecError
from prunus.pruning.structured.criteria import filter_criterion
from prunus.pruning.structured.report import SlimReport
from prunus.pruning.structured.slim import BUDGETS, slim
from prunus.registry import check_callbacks, lookup
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Recipe, train
from prunus.training.checks import check_trainable
from prunus.training.fit import check_fit, check_recipes
from prunus.training.losses import AnyLoss, find_loss
from prunus.training.modes import restored_modes
from prunus.training.outputs import Forward
from prunus.training.recipe_checks import check_recipe
from prunus.types import Dataset, Progress

CALIBRATION_EXAMPLES = 1024
GOALS = {"macs": "multiply-accumulates", "parameters": "parameters"}
"""What each round keeps a fraction of."""


@dataclass(frozen=True)
class SlimRound:
    """One round: channels removed, then trained."""

    number: int
    report: SlimReport
    """The layers before and after this round; "before" is the network that the previous round left."""
    epochs: list[EpochMetrics]
    """Empty where a function of the user trained."""


def slim_and_retrain(
    model: nn.Module,
    example_inputs: object,
    data: Dataset | None,
    fractions: Sequence[float],
    retrain: Sequence[Recipe] = (),
    *,
    goal: str = "macs",
    fit: Callable[[nn.Module], object] | None = None,
    forward: Forward | None = None,
    loss: str | AnyLoss | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: Callable[[EpochMetrics], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[SlimRound]:
    """Remove channels from `model` in place in several rounds, and train it after each.

    Args:
        model: A trained network.
        example_inputs: As for `prunus.slim`.
        data: Training uses the training and validation splits; criteria see 1024 examples of the training split. None
            requires `fit`.
        fractions: The fraction of the dense MACs or parameters that each round keeps at most, decreasing, in (0, 1].
        retrain: One recipe per round; a recipe without epochs trains nothing.
        goal: "macs" or "parameters".
        fit: A function of the smaller model that trains it in place, in the place of recipes.
        forward, loss: As for `prunus.train`; criteria that differentiate a loss use them too.
        seed: Seed of random criteria, examples and training.
        checkpoints: A folder of checkpoints. A call that was killed continues from them if it is repeated with the same
            arguments.
        report: Called after each epoch of a recipe.
        progress: Called after every batch of training.
        options: Further arguments of `prunus.slim`, such as `criterion`, `refit` and `exclude`.

    Returns:
        One entry per round.

    Raises:
        SpecError: The number of recipes is not that of rounds, recipes, checkpoints or a report are given with `fit`,
            `fit` is not a function, or the options contain a budget.
        UnknownNameError: The goal is another.
        DensityError: The fractions do not decrease in (0, 1], or a budget cannot be met.
        ModelError: As `prunus.slim`, or the model cannot be trained on the data; raised before any training.
        StatisticsError: As `prunus.slim`.
        CheckpointError: `checkpoints` belong to other arguments.

    Example:
        >>> import prunus, torch
        >>> data = prunus.load_data("digits")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> recipe = Recipe(epochs=1, batch_size=64, learning_rate=0.1)
        >>> rounds = slim_and_retrain(model, data.train.inputs[:1], data, [0.5, 0.25], [recipe, recipe])
        >>> [own.report.macs for own in rounds], model[1].out_features
        ([(2368, 1184), (1184, 592)], 8)
    """
    check_callbacks(report=report, progress=progress)
    check_recipes(fractions, retrain, fit)
    _check_rounds(fractions, goal, options)
    check_fit(fit, "(model)", checkpoints=checkpoints, report=report)
    if fit is None:
        if data is None:
            raise SpecError("Expected data for recipes, got none; pass a prunus.Dataset, or fit.")
        check_dataset(data, ("train", "validation"))
        for recipe in retrain:
            check_recipe(recipe)
            check_trainable(model, data, recipe, forward=forward, loss=find_loss(loss))
    if options.get("calibration") is not None:
        options["calibration"] = as_examples(options["calibration"])  # an iterator can be read only once
    elif data is not None:
        count = min(CALIBRATION_EXAMPLES, len(data.train))
        options["calibration"] = sample_examples(data.train, count, derive_seed(seed, "calibration"))
    scorer = filter_criterion(options.get("criterion", "l2"))
    differentiated = loss if scorer.uses_loss else None
    rounds: list[SlimRound] = []
    dense: int | None = None
    for number, fraction in enumerate(fractions, start=1):
        limit = fraction if dense is None or fraction == 1 else max(fraction * dense, 2)
        settings: dict[str, Any] = {goal: limit, "seed": derive_seed(seed, "criterion", number), **options}
        plan = slim(model, example_inputs, forward=forward, loss=differentiated, **settings)
        described = plan.report
        dense = dense or getattr(described, goal)[0]
        plan.apply()
        epochs: list[EpochMetrics] = []
        if fit is not None:
            with restored_modes(model):
                fit(model)
        elif data is not None:
            path = None if checkpoints is None else Path(checkpoints) / f"slim-{number}.safetensors"
            epochs = train(
                model, data, retrain[number - 1], forward=forward, loss=loss, checkpoint=path,
                seed=derive_seed(seed, "retrain", number), report=report, progress=progress,
            )  # fmt: skip
        rounds.append(SlimRound(number, described, epochs))
    return rounds


def _check_rounds(fractions: Sequence[float], goal: str, options: Mapping[str, object]) -> None:
    is_decreasing = all(a >= b for a, b in pairwise(fractions))
    if not fractions or not is_decreasing or not 0 < fractions[-1] <= fractions[0] <= 1:
        raise DensityError(
            f"Expected fractions that decrease in (0, 1], one per round, got {list(fractions)}."
        )
    lookup("goal", GOALS, goal)
    if budgets := sorted(options.keys() & set(BUDGETS)):
        raise SpecError(
            f"Expected the budget of each round as goal and fractions, got {', '.join(budgets)}; leave it out."
        )
