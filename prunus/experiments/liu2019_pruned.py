"""Networks from which channels are removed, fine-tuned, rewound or trained from scratch, for Liu et al. 2019."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import SpecError
from prunus.experiments.function_run import FunctionRun, Output
from prunus.experiments.trained_networks import TrainedNetwork
from prunus.models.initialization import kaiming_normal
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.criteria import batch_norm_scales
from prunus.pruning.structured.macs import count_macs
from prunus.pruning.structured.plan import SlimPlan
from prunus.pruning.structured.slim import slim
from prunus.registry import lookup
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import Recipe, evaluate, train
from prunus.types import Dataset

UNPRUNED, FINE_TUNED, SCRATCH_E, SCRATCH_B = "unpruned", "fine-tuned", "Scratch-E", "Scratch-B"
TICKET = "winning ticket"


@dataclass(frozen=True)
class Method:
    """How the channels that are kept are found."""

    criterion: str
    """A key of FILTER_CRITERIA."""
    scope: str = "layer"
    is_calibrated: bool = False
    """Whether the criterion needs training images."""
    is_penalized: bool = False
    """Whether the large network is trained with a penalty on its BatchNorm scales."""


METHODS: Mapping[str, Method] = {
    "l1": Method("l1"),
    "thinet": Method("thinet", is_calibrated=True),
    "regression": Method("lasso", is_calibrated=True),
    "slimming": Method("bn_scale", "global", is_penalized=True),
}


@dataclass(frozen=True)
class PenalizedNetwork(TrainedNetwork):
    """The settings of a training with a penalty on BatchNorm scales."""

    kind: ClassVar[str] = "penalized-network"

    scale_penalty: float = 0.0
    """λ of λ Σ |γ|, which is added to the loss."""

    def run(self) -> FunctionRun:
        """Return the run that trains it."""
        return FunctionRun.of(train_penalized_network, self)


def train_penalized_network(settings: PenalizedNetwork, replicate: int) -> Output:
    """Train a network with the penalty of Network Slimming (Liu et al. 2017, eq. 1), and keep its tensors.

    Args:
        settings: The network, the recipe and the strength of the penalty.
        replicate: Number of the replicate, from which the seeds are derived.

    Returns:
        One row with the "test accuracy" in percent, and all tensors of the trained network.

    Raises:
        StatisticsError: The network has no BatchNorm layer with a scale.
    """
    data, network = settings.dataset(), settings.network(derive_seed(replicate, "model"))

    def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch[1]) + settings.scale_penalty * batch_norm_scales(network)

    train(network, data, settings.recipe, loss=loss, seed=derive_seed(replicate, "dense"), backend="dense")
    accuracy = evaluate(network, data.test, backend="dense").accuracy
    return Output([{"test accuracy": accuracy}], network.state_dict())


@dataclass(frozen=True)
class PrunedNetwork(TrainedNetwork):
    """The settings of one pruned network: the large network, how channels are removed, how it is trained afterwards."""

    kind: ClassVar[str] = "pruned-network"

    methods: tuple[str, ...] = ()
    """The methods of a table, each with runs of its own; empty in a run."""
    method: str = "l1"
    """A key of METHODS."""
    macs: float = 0.5
    """The fraction of the multiply-accumulates to keep."""
    arm: str = FINE_TUNED
    """FINE_TUNED, SCRATCH_E, SCRATCH_B or TICKET."""
    finetune: Recipe = field(default_factory=lambda: Recipe(40, 1e-3, 64))
    """How the arm FINE_TUNED is trained; the others are trained by `recipe`."""
    scale_penalty: float = 1e-4
    """Strength of the penalty on BatchNorm scales, where the method has one."""
    calibration_examples: int = 256
    """Training images for the methods that measure the inputs of layers."""

    @property
    def large(self) -> TrainedNetwork:
        """The network before pruning."""
        training = self.recipe, self.model, self.data, self.examples
        is_penalized = lookup("method", METHODS, self.method).is_penalized
        return PenalizedNetwork(*training, self.scale_penalty) if is_penalized else TrainedNetwork(*training)

    def run(self) -> FunctionRun:
        """Return the run that trains it, which reads that of the large network.

        Raises:
            UnknownNameError: METHODS has no such method.
            SpecError: The arm is none of the four, or the fraction of multiply-accumulates is not in (0, 1].
        """
        if self.arm not in (FINE_TUNED, SCRATCH_E, SCRATCH_B, TICKET):
            arms = f"{FINE_TUNED}, {SCRATCH_E}, {SCRATCH_B} or {TICKET}"
            raise SpecError(f"Expected {arms} as arm, got {self.arm!r}.")
        if not 0 < self.macs <= 1:
            raise SpecError(f"Expected macs above 0 and at most 1, a fraction to keep, got {self.macs}.")
        return FunctionRun.of(train_pruned_network, self, inputs=(self.large.run(),))


def train_pruned_network(settings: PrunedNetwork, replicate: int, large: RunDirectory) -> list[Row]:
    """Remove channels from a trained network, and train the smaller network from the weights that the arm says.

    Args:
        settings: The networks, the method and the arm.
        replicate: Number of the replicate, from which the seeds are derived.
        large: The finished run of the large network.

    Returns:
        One row: "test accuracy" in percent, its "change" from that of the large network in percentage points, the
        "MACs %" and "parameters %" that are kept, and the "epochs" of the training.

    Raises:
        SpecError: The arm is none of the four.
        UnknownNameError: METHODS has no such method.
        DensityError: The fraction of multiply-accumulates cannot be reached.
    """
    data, trained = settings.dataset(), settings.load(large)
    sizes = _sizes(trained, data)
    plan = plan_of(settings, trained, data, replicate)
    small = starting_network(settings, plan, data, replicate)
    fractions = [part / size for part, size in zip(_sizes(small, data), sizes, strict=True)]
    recipe = recipe_of(settings, fractions[0])
    train(small, data, recipe, seed=derive_seed(replicate, "small"), backend="dense")
    accuracy = evaluate(small, data.test, backend="dense").accuracy
    change = accuracy - large.rows()[0]["test accuracy"]
    percent = {name: 100 * part for name, part in zip(("MACs %", "parameters %"), fractions, strict=True)}
    return [{"test accuracy": accuracy, "change": change, **percent, "epochs": recipe.epochs}]


def plan_of(settings: PrunedNetwork, trained: nn.Module, data: Dataset, replicate: int) -> SlimPlan:
    """Choose the channels that the method of the settings removes.

    Args:
        settings: The method and the fraction of multiply-accumulates.
        trained: The large network after its training; not changed.
        data: The data set, of whose training split the calibration examples are taken.
        replicate: Number of the replicate, the seed of ties.

    Returns:
        The plan.

    Raises:
        UnknownNameError: METHODS has no such method.
        DensityError: The fraction cannot be reached.
    """
    method = lookup("method", METHODS, settings.method)
    examples = data.train.take(settings.calibration_examples) if method.is_calibrated else None
    return slim(
        trained, data.train.inputs[:2], macs=settings.macs, criterion=method.criterion, scope=method.scope,
        calibration=examples, seed=replicate, verify=False,
    )  # fmt: skip


def starting_network(settings: PrunedNetwork, plan: SlimPlan, data: Dataset, replicate: int) -> nn.Module:
    """Return the small network with the weights that its training starts from.

    Args:
        settings: The arm: FINE_TUNED keeps trained weights, TICKET the weights that these were trained from, and the
            others draw all weights for the small network.
        plan: The channels to remove from the trained network; it is applied.
        data: The data set, whose first images determine shapes.
        replicate: Number of the replicate.

    Returns:
        The small network.
    """
    if settings.arm == TICKET:
        initial = settings.network(derive_seed(replicate, "model"))
        return SlimPlan(initial, analyze(initial, data.train.inputs[:2]), plan.removed, verify=False).apply()
    small = plan.apply()
    if settings.arm != FINE_TUNED:
        with torch.no_grad():
            kaiming_normal(small, derive_seed(replicate, "scratch"))
        for module in small.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
    return small


def recipe_of(settings: PrunedNetwork, kept_macs: float) -> Recipe:
    """Return the recipe of an arm: SCRATCH_B has as many multiply-accumulates as the training of the large network.

    Args:
        settings: The recipes and the arm.
        kept_macs: The multiply-accumulates of the small network as a fraction of those of the large one.

    Returns:
        The recipe, whose schedule covers all of its epochs.

    >>> settings = PrunedNetwork(Recipe(160, 0.1, 64), arm=SCRATCH_B)
    >>> recipe_of(settings, 0.4).epochs
    400
    """
    if settings.arm == FINE_TUNED:
        return settings.finetune
    budget = 1 / kept_macs if settings.arm == SCRATCH_B else 1
    return settings.recipe.replace(epochs=round(settings.recipe.epochs * budget))


def _sizes(network: nn.Module, data: Dataset) -> tuple[int, int]:
    """Multiply-accumulates for one image, and parameters."""
    return count_macs(network, data.train.inputs[:1]), sum(p.numel() for p in network.parameters())
