"""What pruning biases costs, compared with pruning as many weights, and the same fraction of the weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.han2015 import LENET_ONLY, PAPER
from prunus.experiments.trained_networks import (
    LENETS,
    CompressedNetwork,
    TrainedNetwork,
    evaluate_test,
    one_run_per_value,
)
from prunus.masks import Masks
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.prune import prune
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import train
from prunus.types import Dataset

_SOURCE = "a common assumption, without a published number"
BIASES, AS_MANY, SAME_FRACTION = "biases", "as many weights", "the same fraction of the weights"


@dataclass(frozen=True)
class BiasPruning(TrainedNetwork):
    """The settings of one curve; retraining has a tenth of the learning rate."""

    kind: ClassVar[str] = "bias-pruning"

    retrain_epochs: int = 1
    fractions: tuple[float, ...] = (0.5, 0.9, 1.0)
    """Of the biases, or of the weights, that are pruned."""
    curve: str = ""


def _template(model: str, size: str) -> FunctionRun:
    dense = CompressedNetwork.of_size(model, size).dense
    epochs = 5 if size == "full" else 1
    settings = BiasPruning(dense.recipe, dense.model, dense.data, dense.examples, retrain_epochs=epochs)
    return FunctionRun.of(error_added, settings)


def error_added(settings: BiasPruning, replicate: int, dense: RunDirectory) -> list[Row]:
    """Prune every fraction of the biases or of the weights, those of smallest magnitude, each from the dense network.

    Args:
        settings: The network, the curve, the fractions and the recipe of training.
        replicate: Number of the replicate, the seed of ties, from which that of retraining is derived.
        dense: The finished run of the dense network.

    Returns:
        One row per fraction, but none where all weights would be pruned: "pruned %", "pruned parameters"; "error
        added", by which the test error rises, in percentage points; "error added per 1,000", the same per 1,000 pruned
        parameters; and both "after retraining", compared with the dense network that is trained as long.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, network = settings.dense.dataset(), settings.dense.load(dense)
    dense_errors = _errors(settings, replicate, copy.deepcopy(network), data, None)
    biases = [name for name, parameter in network.named_parameters() if parameter.dim() == 1]
    weights = list(prunable_weights(network))
    rows: list[Row] = []
    for fraction in settings.fractions:
        if settings.curve == SAME_FRACTION and fraction == 1:
            continue
        pruned = copy.deepcopy(network)
        names = biases if settings.curve == BIASES else weights
        ratio = _numel(network, biases) / _numel(network, weights) if settings.curve == AS_MANY else 1.0
        masks = _prune_smallest(pruned, names, ratio * fraction, replicate)
        count = sum(int((~mask).sum()) for mask in masks.values())
        row: Row = {"pruned %": 100 * fraction, "pruned parameters": count}
        for after, error in _errors(settings, replicate, pruned, data, masks).items():
            added = error - dense_errors[after]
            row |= {f"error added{after}": added, f"error added per 1,000{after}": 1000 * added / count}
        rows.append(row)
    return rows


def _errors(
    settings: BiasPruning, replicate: int, model: nn.Module, data: Dataset, masks: Masks | None
) -> dict[str, float]:
    """The test errors in percent before and after retraining, which changes the model."""
    before, seed = evaluate_test(model, data).error, derive_seed(replicate, "retraining")
    retraining = settings.retraining(settings.retrain_epochs)
    train(model, data, retraining, constraint=masks, seed=seed, backend="dense")
    return {"": before, " after retraining": evaluate_test(model, data).error}


def _prune_smallest(model: nn.Module, names: Sequence[str], fraction: float, seed: int) -> Masks:
    """Prune a fraction of some parameters, ranked together by magnitude; also all of them."""
    if fraction < 1:
        return prune(model, 1 - fraction, scope="global", include=names, seed=seed).masks
    none_kept = {name: torch.zeros_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    masks = Masks(model, none_kept)
    masks.apply()
    return masks


def _numel(model: nn.Module, names: Sequence[str]) -> int:
    return sum(model.get_parameter(name).numel() for name in names)


def _claims(after: str) -> tuple[Claim, Claim]:
    return (
        Claim(
            f"Pruning biases adds more error than pruning as many weights{after}", BIASES, "higher", AS_MANY,
            f"error added{after}", _SOURCE, at={"pruned %": (90.0, 100.0)},
        ),
        Claim(
            f"Per parameter, pruning biases adds more error than pruning the same fraction of the weights{after}",
            BIASES, "higher", SAME_FRACTION, f"error added per 1,000{after}", _SOURCE,
            at={"pruned %": (50.0, 90.0)},
        ),
    )  # fmt: skip


biases = Experiment(
    name="families.biases",
    paper=PAPER,
    title="The error that pruning biases adds, compared with weights",
    question="Does pruning biases add more error per parameter than pruning weights?",
    template=_template,
    runs=one_run_per_value("curve", (BIASES, AS_MANY, SAME_FRACTION)),
    figures=tuple(
        FigureSpec(
            name, f"error added{after}", "test error added (pp)", f"Error added by pruning{after}", x="pruned %",
            x_label="pruned biases or weights (%)",
        )
        for name, after in (("pruned", ""), ("retrained", " after retraining"))
    ),
    claims=(*_claims(""), *_claims(" after retraining")),
    differences=(LENET_ONLY[1], "The paper prunes no biases; there is no published value."),
    networks=LENETS,
    against=BIASES,
    metrics=(
        "pruned parameters", "error added", "error added per 1,000", "error added after retraining",
        "error added per 1,000 after retraining",
    ),
    described=("error added", "error added after retraining"),
    points=("pruned %",),
    replicates=(1, 3, 5),
    note="Error is added in percentage points of the test examples; after retraining, compared with the dense network "
    "trained as long. LeNet-300-100 has 410 biases beside 266,200 weights, "
    "LeNet-5 580 beside 430,500.",
)  # fmt: skip
