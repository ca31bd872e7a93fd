"""Trained and pruned networks that function experiments start from, as runs of their own.

Experiments that need the same network of the same replicate share its run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from prunus.compression.presets import COMPRESSION_RECIPES, CompressionRecipe
from prunus.compression.stages import prune_with_recipe
from prunus.data import load_data
from prunus.experiments.experiment import LabeledRuns, labeled
from prunus.experiments.function_run import FunctionRun, Output
from prunus.models.loading import make_model
from prunus.pruning.prunable import prunable_weights
from prunus.registry import lookup
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import Evaluation, Recipe, evaluate, train
from prunus.types import Dataset, MaskDict

SMOKE_EXAMPLES = 3000


def evaluate_test(model: nn.Module, data: Dataset) -> Evaluation:
    """Evaluate a model on the test split with PyTorch alone, whose results do not depend on kernels of prunus.

    Args:
        model: The model.
        data: The data set.

    Returns:
        The evaluation.
    """
    return evaluate(model, data.test, backend="dense")


@dataclass(frozen=True)
class TrainedNetwork:
    """The settings of one training."""

    kind: ClassVar[str] = "trained-network"

    recipe: Recipe
    model: str = "lenet-300-100"
    """A key of MODELS, or "package.module:function" that takes `seed` and returns a module."""
    data: str = "mnist"
    examples: int | None = None
    """Number of training examples, with a third as many in the other splits; None means all."""

    @property
    def dense(self) -> "TrainedNetwork":
        """The settings of the training alone, for settings of what is then done with the network."""
        return TrainedNetwork(self.recipe, self.model, self.data, self.examples)

    def dataset(self) -> Dataset:
        """Load the data."""
        data = load_data(self.data)
        return data if self.examples is None else data.take(self.examples, max(1, self.examples // 3))

    def network(self, seed: int = 0) -> nn.Module:
        """Make the untrained network."""
        return make_model(self.model, seed)

    def run(self) -> FunctionRun:
        """Return the run that trains it."""
        return FunctionRun.of(train_network, self)

    def load(self, directory: RunDirectory) -> nn.Module:
        """Make the network with the tensors that a finished run has stored."""
        network = self.network()
        network.load_state_dict(directory.load_tensors("tensors"))
        return network

    def retraining(self, epochs: int) -> Recipe:
        """Return the recipe with another number of epochs, and a tenth of the learning rate."""
        return self.recipe.replace(epochs=epochs, learning_rate=self.recipe.learning_rate / 10)


def one_run(template: FunctionRun, size: str) -> LabeledRuns:
    """The run of the template on the dense network, whose curve is the name of the model.

    Args:
        template: The run of one network, without its input.
        size: "smoke", "default" or "full"; not used, because the template has the settings of its size.

    Returns:
        One run.
    """
    return labeled({template.settings.model: template.changed(template.settings.dense.run())})


def one_run_per_value(setting: str, values: Sequence[str]) -> Callable[[FunctionRun, str], LabeledRuns]:
    """Make the `runs` of an experiment: one curve per value of a setting, all from one dense network.

    Args:
        setting: The name of a setting of the template.
        values: Its values, which name the curves.

    Returns:
        A function (template, size) -> labeled runs, as `Experiment.runs` requires.
    """
    return lambda template, size: labeled(
        {value: template.changed(template.settings.dense.run(), **{setting: value}) for value in values}
    )


def train_network(settings: TrainedNetwork, replicate: int) -> Output:
    """Train a network and keep its tensors.

    Args:
        settings: The model, the data and the recipe.
        replicate: Number of the replicate, from which the seeds of the initialization and of the training are derived.

    Returns:
        One row with the "test accuracy" in percent, and all tensors of the trained network.

    Raises:
        UnknownNameError: There is no such model or data set.
    """
    data, network = settings.dataset(), settings.network(derive_seed(replicate, "model"))
    train(network, data, settings.recipe, seed=derive_seed(replicate, "dense"), backend="dense")
    return Output([{"test accuracy": evaluate_test(network, data).accuracy}], network.state_dict())


@dataclass(frozen=True)
class CompressedNetwork:
    """The settings of the experiments with Deep Compression: a network, and a part of its recipe."""

    kind: ClassVar[str] = "compressed-network"

    compression: CompressionRecipe
    model: str = "lenet-300-100"
    data: str = "mnist"
    examples: int | None = None

    @classmethod
    def of_size(cls, model: str, size: str) -> "CompressedNetwork":
        """Return the recipe of Han et al. 2016 for a LeNet: with fewer epochs unless the size is "full".

        No code is left for zero: most of these experiments do not count codes.

        Args:
            model: One of LENETS.
            size: "smoke", "default" or "full": the smoke size also has fewer training examples, SMOKE_EXAMPLES.

        Returns:
            The settings, on MNIST.

        Raises:
            UnknownNameError: The model is none of LENETS.
        """
        recipe = lookup("network", {name: COMPRESSION_RECIPES[f"han2016-{name}"] for name in LENETS}, model)
        if size != "full":
            dense, rounds, final, finetune = (1, 2, 1, 1) if size == "smoke" else (10, 5, 6, 2)
            recipe = recipe.replace(
                dense=recipe.dense.replace(epochs=dense),
                rounds=rounds,
                final_retrain=recipe.final_retrain.replace(epochs=final),
                finetune=recipe.finetune.replace(epochs=finetune),
            )
        recipe = recipe.replace(reserve_zero=False)
        return cls(recipe, model, examples=SMOKE_EXAMPLES if size == "smoke" else None)

    @property
    def dense(self) -> TrainedNetwork:
        """The network before pruning."""
        return TrainedNetwork(self.compression.dense, self.model, self.data, self.examples)

    def pruned_run(self) -> FunctionRun:
        """Return the run that prunes the dense network."""
        network = CompressedNetwork(self.compression, self.model, self.data, self.examples)
        return FunctionRun.of(prune_network, network, inputs=(self.dense.run(),))

    def load_pruned(self, directory: RunDirectory) -> tuple[nn.Module, MaskDict]:
        """Make the pruned network with the tensors and masks of a finished run."""
        return self.dense.load(directory), directory.load_masks("masks")


LENETS = ("lenet-300-100", "lenet-5")


def prune_network(settings: CompressedNetwork, replicate: int, dense: RunDirectory) -> Output:
    """Prune and retrain a network by a compression recipe, and keep its tensors and masks.

    Args:
        settings: The network and its compression recipe; only the pruning stage of the recipe is carried out.
        replicate: Number of the replicate, the seed of ties, batch order and dropout.
        dense: The finished run of the dense network.

    Returns:
        One row with the "test accuracy" in percent, all tensors of the pruned network, and the masks of the last round.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    network, data = settings.dense.load(dense), settings.dense.dataset()
    weights = prunable_weights(network)
    rounds = prune_with_recipe(settings.compression, network, weights, data, seed=replicate, backend="dense")
    row = {"test accuracy": evaluate_test(network, data).accuracy}
    return Output([row], network.state_dict(), rounds[-1].masks)
