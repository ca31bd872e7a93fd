"""Generalization of pruned networks: LeCun, Denker, Solla 1990 and Hassibi & Stork 1993, on small training sets.

For every pruned network, a copy of the dense network is trained for as many steps, so that what pruning does is not
confused with what the additional training does.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from prunus.data import load_data
from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.lecun1990 import PAPER
from prunus.experiments.rows import group_rows
from prunus.models.loading import make_model
from prunus.pruning.activation_zeros import activation_zeros
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.scopes import SCOPES
from prunus.runs.content import Row
from prunus.seeds import derive_seed, make_generator
from prunus.training import Recipe, evaluate, train
from prunus.types import Dataset, Split

EXAMPLES = (1000, 5000, 20000)
VALIDATION_EXAMPLES = 1000


@dataclass(frozen=True)
class PrunedBesideDense:
    """The settings of a network that is pruned in rounds, and of the dense one that is trained as long."""

    kind: ClassVar[str] = "pruned-beside-dense"

    recipe: Recipe
    retrain_epochs: int
    """After each round."""
    densities: tuple[float, ...]
    """Of the rounds, in falling order."""
    model: str = "lenet-300-100"
    data: str = "mnist"
    examples: int = EXAMPLES[-1]
    """Number of training examples, which are different ones in each replicate."""

    @classmethod
    def of_size(cls, model: str, size: str) -> "PrunedBesideDense":
        """Return the settings of a size for the largest training set.

        Args:
            model: A key of MODELS.
            size: "smoke", "default" or "full".

        Returns:
            The settings, on MNIST.
        """
        epochs, retrain = {"smoke": (1, 1), "default": (9, 3), "full": (30, 15)}[size]
        densities = (0.5, 0.1) if size == "smoke" else (0.5, 0.2, 0.1, 0.05, 0.02)
        recipe = Recipe(epochs, 1.2e-3, 60, lr_schedule="cosine")
        return cls(recipe, retrain, densities, model, examples=1500 if size == "smoke" else EXAMPLES[-1])

    def with_examples(self, examples: int) -> "PrunedBesideDense":
        """Return the settings for another number of training examples, with about as many steps of training."""
        factor = self.examples / examples
        recipe = self.recipe.replace(epochs=round(self.recipe.epochs * factor))
        retrain_epochs = round(self.retrain_epochs * factor)
        return replace(self, recipe=recipe, retrain_epochs=retrain_epochs, examples=examples)

    def dataset(self, replicate: int) -> Dataset:
        """Load the data, with training examples selected at random and all test examples."""
        data = load_data(self.data)
        generator = make_generator(replicate, "training examples")
        indices = torch.randperm(len(data.train), generator=generator)[: self.examples]
        examples = Split(data.train.inputs[indices], data.train.labels[indices])
        return replace(data, train=examples, validation=data.validation.take(VALIDATION_EXAMPLES))


def prune_beside_dense(settings: PrunedBesideDense, replicate: int) -> list[Row]:
    """Train a network, prune it in rounds, and train a copy of the dense network for as many steps.

    Args:
        settings: The model, the data, the densities and the recipe, which is also that of retraining.
        replicate: Number of the replicate, from which all seeds and the choice of the training examples are derived.

    Returns:
        One row for the dense network and one per density: "density", from 0 to 1; and in percent "test error %"; "dense
        test error %", that of the dense network trained as long; "error lower by", the difference; and "zeros in LAYER
        %" and "dense zeros in LAYER %", the zeros in the inputs of each layer but the first.

    Raises:
        UnknownNameError: There is no such model or data set.
    """
    data, model = settings.dataset(replicate), make_model(settings.model, derive_seed(replicate, "model"))
    train(model, data, settings.recipe, seed=derive_seed(replicate, "dense"), backend="dense")
    dense, masks = copy.deepcopy(model), None
    retraining = settings.recipe.replace(epochs=settings.retrain_epochs)
    rows = [_row(1.0, model, dense, data)]
    for number, density in enumerate(settings.densities):
        seed = derive_seed(replicate, "round", number)
        rounds = prune_and_retrain(
            model, data, [density], [retraining],
            criterion=CRITERIA["magnitude"], scope=SCOPES["global"], seed=seed, within=masks, backend="dense",
        )  # fmt: skip
        masks = rounds[-1].masks
        train(dense, data, retraining, seed=seed, backend="dense")
        rows.append(_row(density, model, dense, data))
    return rows


def _row(density: float, pruned: nn.Module, dense: nn.Module, data: Dataset) -> Row:
    row: Row = {"density": density}
    for prefix, model in (("", pruned), ("dense ", dense)):
        row[f"{prefix}test error %"] = evaluate(model, data.test, backend="dense").error
        _, *zeros = activation_zeros(model, data.validation).items()
        row |= {f"{prefix}zeros in {name} %": 100 * fraction for name, fraction in zeros}
    return {**row, "error lower by": row["dense test error %"] - row["test error %"]}


def examples_needed(rows: Sequence[Row]) -> list[Row]:
    """Add how many examples a dense network would need for the error of a pruned one, relative to the pruned one's.

    The errors of the dense networks of a replicate, trained as long, are interpolated (or extrapolated) as a straight
    line of log error against log examples between the two training sets nearest in error.

    Args:
        rows: The rows of `prune_beside_dense`, with "examples".

    Returns:
        The rows, with "dense needs": 2.0 means that the dense network needs twice as many examples. It is missing where
        there are fewer than two training sets, or the dense error does not fall with the examples or falls to 0.
    """
    result = []
    for members in group_rows(rows, ("network", "replicate", "density %")).values():
        points = sorted((row["examples"], row["dense test error %"]) for row in members)
        result += [{**row, **_needed(row, points)} for row in members]
    return result


def _needed(row: Row, points: Sequence[tuple[int, float]]) -> Row:
    errors = [error for _, error in points]
    falls = len(points) > 1 and all(after < before for before, after in pairwise(errors))
    if not falls or min(errors[-1], row["test error %"]) <= 0:  # which has no logarithm
        return {}
    first = next((i for i in range(len(points) - 2) if errors[i + 1] <= row["test error %"]), len(points) - 2)
    (n0, e0), (n1, e1) = points[first : first + 2]
    slope = math.log(n1 / n0) / math.log(e1 / e0)
    needed = n0 * math.exp(slope * math.log(row["test error %"] / e0))
    return {"dense needs": needed / row["examples"]}


def training_sets(template: FunctionRun, size: str) -> LabeledRuns:
    """Training sets of three sizes: of the template's, of a quarter and of a twentieth of it.

    Args:
        template: The run of `prune_beside_dense` on the largest training set.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        One run per training set, the smallest first.
    """
    runs = []
    for part in (20, 4, 1):
        examples = max(1, template.settings.examples // part)
        run = replace(template, settings=template.settings.with_examples(examples))
        runs.append(({"curve": f"{examples:,} examples", "examples": examples}, run))
    return runs


_SMALLEST, _MIDDLE, _LARGEST = (f"{examples:,} examples" for examples in EXAMPLES)
_AT = {"density %": (20.0, 10.0)}
_SOURCE = "LeCun et al. 1990"

generalization = Experiment(
    name="lecun1990.generalization",
    paper=PAPER,
    place="Abstract",
    title="Test error against density, for training sets of three sizes",
    question="Does a pruned network generalize better than a dense one, and does it need fewer examples?",
    template=lambda model, size: FunctionRun.of(prune_beside_dense, PrunedBesideDense.of_size(model, size)),
    runs=training_sets,
    figures=(
        FigureSpec("error", "test error %", "test error (%)", "Test error of pruned networks", point="density %"),
        FigureSpec(
            "gain", "error lower by", "dense error minus pruned error (pp)",
            "How much lower the test error is than that of a dense network trained as long", point="density %",
        ),
    ),
    claims=(
        *(
            Claim(
                f"With {curve}, pruned networks have a lower test error than dense ones trained as long", curve,
                "higher", 0.0, "error lower by", _SOURCE, at=_AT, published="lower, with half of the parameters",
            )
            for curve in (_SMALLEST, _MIDDLE, _LARGEST)
        ),
        Claim(
            "To reach the error of a pruned network, a dense network needs more examples", _MIDDLE, "higher", 1.0,
            "dense needs", _SOURCE, at=_AT, published="fewer training examples required",
        ),
        Claim(
            "The fewer the examples, the more pruning lowers the error", _SMALLEST, "higher", _LARGEST,
            "error lower by", _SOURCE, at=_AT,
        ),
    ),
    differences=(
        "The network is LeNet-300-100 on MNIST with weights pruned by magnitude and retrained; the paper prunes a "
        "convolutional network for zip-code digits by OBD.",
        "Beside each pruned network the dense one is trained for as many steps; all training sets have about as many "
        "steps.",
    ),
    networks=("lenet-300-100",),
    metrics=("test error %", "dense test error %", "error lower by", "dense needs"),
    points=("density %",),
    select=examples_needed,
    replicates=(1, 8, 8),
    note="The dense test error is that of the dense network trained as long, and the reduction of the test error is in "
    "percentage points. \"dense needs\" is how many times as many examples the dense network needs for the error of "
    "the pruned one.",
)  # fmt: skip
