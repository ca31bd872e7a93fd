"""LeCun, Denker, Solla 1990, "Optimal Brain Damage"."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

import torch
from torch import nn

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.trained_networks import (
    SMOKE_EXAMPLES,
    TrainedNetwork,
    evaluate_test,
    one_run_per_value,
)
from prunus.masks import Masks
from prunus.models.initialization import glorot_normal
from prunus.models.mlp import ScaledTanh
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.obs.obd import Obd
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.obs.state import Examine, prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.pruning.weights import set_weights, with_weights
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import Recipe, evaluate, train
from prunus.types import Params, Split

PAPER = 'LeCun, Denker, Solla 1990, "Optimal Brain Damage"'
DELETED = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Fractions of the weights deleted."""
OBD, OBD_LM, MAGNITUDE, RANDOM = "OBD", "OBD, Levenberg-Marquardt", "magnitude", "random"
MNIST_NETWORK = (
    "The network is a small convolutional one for MNIST with scaled tanh and 3,870 weights; the paper's had 2,578 "
    "parameters for 16 x 16 zip-code digits.",
    "It is trained with Adam on the cross-entropy, which is the error shown; the paper uses the mean squared error.",
    "Biases are not deleted. The Hessian diagonal is computed on 2,000 training examples.",
)


def network(seed: int) -> nn.Module:
    """Two convolutions of stride two and a linear layer: 150 + 1,800 + 1,920 weights. [B, 1, 28, 28] -> [B, 10].

    >>> sum(weight.numel() for weight in prunable_weights(network(0)).values())
    3870
    """
    first, second = nn.Conv2d(1, 6, 5, stride=2), nn.Conv2d(6, 12, 5, stride=2)
    layers = first, ScaledTanh(), second, ScaledTanh(), nn.Flatten(), nn.Linear(192, 10)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        glorot_normal(model, seed)
    return model


@dataclass(frozen=True)
class Deletion(TrainedNetwork):
    """The settings of one curve."""

    kind: ClassVar[str] = "deletion"

    model: str = "prunus.experiments.lecun1990:network"
    method: str = ""
    curvature_examples: int = 2000
    """Training examples on which errors and curvature are computed."""
    deleted: tuple[float, ...] = DELETED
    retrain_epochs: int | None = None
    """After every deletion; None for no retraining."""


def _settings(size: str) -> Deletion:
    recipe = Recipe({"smoke": 3, "default": 10, "full": 20}[size], 2e-3, 60, lr_schedule="cosine")
    return Deletion(recipe, examples=SMOKE_EXAMPLES if size == "smoke" else None)


def deletions_without_retraining(settings: Deletion, replicate: int, dense: RunDirectory) -> list[Row]:
    """Delete every fraction of the weights, each from the trained network.

    Args:
        settings: The network, the method, the fractions to delete and the number of examples for errors and curvature.
        replicate: Number of the replicate, the seed of ties, from which that of random deletion is derived.
        dense: The finished run of the dense network.

    Returns:
        One row per fraction: "remaining weights"; "deleted %"; "training error", the loss in nats; "test error %";
        "true", the increase of the training error; and "predicted", the increase that the method predicts, where it
        predicts one.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    model, data = settings.dense.load(dense), settings.dense.dataset()
    examples, weights = data.train.take(settings.curvature_examples), prunable_weights(model)
    start = evaluate(model, examples, backend="dense").loss
    total = sum(weight.numel() for weight in weights.values())
    method = _method(settings.method, model, examples, weights, derive_seed(replicate, settings.method))
    rows: list[Row] = []
    for fraction in settings.deleted:
        pruned = prune_in_steps(method, weights, 1 - fraction, SCOPES["global"], seed=replicate)
        trial = with_weights(model, pruned.weights)
        remaining = sum(int(mask.sum()) for mask in pruned.masks.values())
        error = evaluate(trial, examples, backend="dense").loss
        predicted = {"predicted": pruned.predicted_increase} if isfinite(pruned.predicted_increase) else {}
        row = {"remaining weights": remaining, "deleted %": round(100 * (1 - remaining / total), 1)}
        row |= {"training error": error, "test error %": evaluate_test(trial, data).error}
        rows.append({**row, "true": error - start, **predicted})
    return rows


def _method(name: str, model: nn.Module, split: Split, weights: Params, seed: int) -> Examine:
    if name in (MAGNITUDE, RANDOM):
        return CriterionMethod(CRITERIA[name]).examiner(seed=seed)
    objective = make_objective(model, weights, split.inputs, split.labels)
    return Obd(diagonal="recursion" if name == OBD else "levenberg_marquardt").examiner(objective)


deletion = Experiment(
    name="lecun1990.deletion",
    paper=PAPER,
    place="Figure 1a",
    title="Error after deletion by OBD, by magnitude and at random, without retraining",
    question="Does OBD delete weights with a smaller increase of the error than magnitude and random deletion?",
    template=lambda _, size: FunctionRun.of(deletions_without_retraining, _settings(size)),
    runs=one_run_per_value("method", (OBD, OBD_LM, MAGNITUDE, RANDOM)),
    figures=(
        FigureSpec(
            "figure1a", "training error", "training error (cross-entropy, nats)", "Deletion without retraining",
            x="remaining weights", x_label="remaining weights", invert_x=True, y_log=True,
        ),
    ),
    claims=tuple(
        Claim(
            f"OBD increases the error less than {other} deletion", OBD, "lower", other, "training error", "Figure 1a",
            at={"deleted %": (30.0, 40.0, 50.0)},
        )
        for other in (MAGNITUDE, RANDOM)
    ),
    differences=MNIST_NETWORK,
    networks=("mnist network",),
    against=OBD,
    metrics=("training error", "test error %"),
    points=("remaining weights", "deleted %"),
    replicates=(1, 10, 10),
    note="Training errors are in nats; each point is one deletion from the trained network.",
)  # fmt: skip


def predicted_and_true(rows: Sequence[Row]) -> list[Row]:
    """Make a row of each of the two increases: one curve per method and kind."""
    return [
        {**row, "curve": f"{row['curve']}: {kind}", "increase": row[kind]}
        for kind in ("true", "predicted")
        for row in rows
    ]


prediction = replace(
    deletion,
    name="lecun1990.prediction",
    place="Figure 1b",
    title="The increase of the error that OBD predicts, and the true one",
    question="Up to which fraction of deleted weights does OBD predict the increase of the error?",
    runs=one_run_per_value("method", (OBD, OBD_LM)),
    figures=(
        FigureSpec(
            "figure1b", "increase", "increase of the training error (nats)", "Predicted and true increase",
            x="deleted %", x_label="deleted weights (sparsity, %)",
            select=predicted_and_true,
        ),
    ),
    claims=(
        Claim(
            "Predicted and true increase agree up to 30 % deleted, within 0.05 nats", f"{OBD}: predicted", "equal",
            f"{OBD}: true", "increase", "Figure 1b", at={"deleted %": (10.0, 20.0, 30.0)}, margin=0.05,
            published="agree up to about 30 %",
        ),
    ),
    against="",
    metrics=("increase",),
    points=("deleted %",),
    select=predicted_and_true,
    note="Increases of the training error are in nats.",
)  # fmt: skip


def deletions_one_after_another(settings: Deletion, replicate: int, dense: RunDirectory) -> list[Row]:
    """Delete in steps, the diagonal recomputed before each, with or without retraining after each.

    Args:
        settings: The network, the method, the fractions to delete, and the epochs of retraining after each deletion.
        replicate: Number of the replicate, the seed of ties, from which that of retraining is derived.
        dense: The finished run of the dense network.

    Returns:
        One row per fraction: "deleted %"; "training error" and "test error", losses in nats; and "test error %".

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    model, data = settings.dense.load(dense), settings.dense.dataset()
    examples, masks = data.train.take(settings.curvature_examples), None
    retraining = settings.recipe.replace(epochs=settings.retrain_epochs or 0, learning_rate=5e-4)
    rows: list[Row] = []
    for number, fraction in enumerate(settings.deleted):
        weights = prunable_weights(model)
        method = _method(settings.method, model, examples, weights, replicate)
        pruned = prune_in_steps(method, weights, 1 - fraction, SCOPES["global"], within=masks, seed=replicate)
        masks = pruned.masks
        set_weights(model, pruned.weights)
        if settings.retrain_epochs:
            seed = derive_seed(replicate, "again", number)
            train(model, data, retraining, constraint=Masks(model, masks), seed=seed, backend="dense")
        training, test = evaluate(model, examples, backend="dense"), evaluate_test(model, data)
        row = {"deleted %": round(100 * fraction, 1), "training error": training.loss}
        rows.append({**row, "test error": test.loss, "test error %": test.error})
    return rows


def with_and_without_retraining(template: FunctionRun, size: str) -> LabeledRuns:
    """OBD and magnitude, each with and without retraining.

    Args:
        template: The run of `deletions_one_after_another`, without its input and method.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        Four runs, one per method and way of retraining.
    """
    settings = template.settings
    return labeled(
        {
            f"{method}, {name}": template.changed(settings.dense.run(), method=method, retrain_epochs=epochs)
            for epochs, name in ((None, "not retrained"), (settings.retrain_epochs, "retrained"))
            for method in (OBD, MAGNITUDE)
        }
    )


def _retraining_template(_: str, size: str) -> FunctionRun:
    epochs = {"smoke": 1, "default": 2, "full": 4}[size]
    return FunctionRun.of(deletions_one_after_another, replace(_settings(size), retrain_epochs=epochs))


retraining = replace(
    deletion,
    name="lecun1990.retraining",
    place="Figure 2",
    title="Weights deleted in steps, with and without retraining after each",
    question="How many weights can be deleted without increasing the error if the network is retrained?",
    template=_retraining_template,
    runs=with_and_without_retraining,
    figures=tuple(
        FigureSpec(
            f"figure2.{kind}", f"{kind} error", f"{kind} error (cross-entropy, nats)",
            f"{kind.capitalize()} error after deletion in steps", x="deleted %",
            x_label="deleted weights (sparsity, %)", y_log=True,
        )
        for kind in ("training", "test")
    ),
    claims=(
        Claim(
            "With retraining, the test error at 60 % deleted is that at 5 % deleted, within 0.05 nats",
            f"{OBD}, retrained", "equal", f"{OBD}, retrained", "test error", "Figure 2", at={"deleted %": (60.0,)},
            against_at={"deleted %": (5.0,)}, margin=0.05, published="almost the same up to 60 %",
        ),
        Claim(
            "Retraining lowers the test error after OBD", f"{OBD}, retrained", "lower", f"{OBD}, not retrained",
            "test error", "LeCun et al. 1990", at={"deleted %": (40.0, 50.0, 60.0)},
        ),
        Claim(
            "With retraining, OBD has a lower test error than magnitude deletion", f"{OBD}, retrained", "lower",
            f"{MAGNITUDE}, retrained", "test error", "LeCun et al. 1990", at={"deleted %": (60.0, 70.0, 80.0)},
        ),
    ),
    against=f"{OBD}, retrained",
    metrics=("training error", "test error", "test error %"),
    points=("deleted %",),
    note="Errors are in nats, or in percent of the test examples.",
)  # fmt: skip
