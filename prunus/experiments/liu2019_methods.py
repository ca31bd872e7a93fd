"""How a structure is chosen: the pruning methods of Liu et al. 2019, and trainings with a penalty that choose one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.experiments.function_run import FunctionRun, Output
from prunus.experiments.trained_networks import TrainedNetwork, evaluate_test
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.structured.block_factors import BlockFactors
from prunus.pruning.structured.criteria import FILTER_CRITERIA, batch_norm_scales, filter_criterion
from prunus.registry import lookup
from prunus.runs.content import Row
from prunus.seeds import derive_seed
from prunus.training import train


@dataclass(frozen=True)
class Method:
    """How the structure that is kept is found."""

    criterion: str = ""
    """The name of a filter criterion; empty where residual blocks are removed."""
    scope: str = "layer"
    is_calibrated: bool = False
    """Whether the criterion needs training images."""
    refits: bool = False
    """Whether the weights of the next layers are refitted to the outputs of the dense layers."""
    penalized: str = ""
    """What the training of the large network penalizes: "scales" of BatchNorm, "blocks", or nothing."""


METHODS: Mapping[str, Method] = {
    "l1": Method("l1"),
    "thinet": Method("thinet", is_calibrated=True),
    "regression": Method("lasso", is_calibrated=True, refits=True),
    "slimming": Method("bn_scale", "global", penalized="scales"),
    "sss": Method(penalized="blocks"),
}


def find_method(name: str) -> Method:
    """The method of a name.

    Args:
        name: A key of METHODS, of FILTER_CRITERIA or of CRITERIA, or "package.module:function" of a criterion.

    Returns:
        The method; a criterion that METHODS lacks keeps the same fraction of the channels of each layer.

    Raises:
        UnknownNameError: There is no such name.

    >>> find_method("taylor")
    Method(criterion='taylor', scope='layer', is_calibrated=True, refits=False, penalized='')
    """
    if ":" not in name:
        lookup("method", {**CRITERIA, **FILTER_CRITERIA, **METHODS}, name)
    return METHODS.get(name) or Method(name, is_calibrated=filter_criterion(name).needs_examples)


@dataclass(frozen=True)
class PenalizedNetwork(TrainedNetwork):
    """The settings of a training with an L1 penalty that chooses a structure."""

    kind: ClassVar[str] = "penalized-network"

    penalized: str = "scales"
    """"scales": the BatchNorm scales; "blocks": a factor on each residual block."""
    penalty: float = 1e-4
    """Strength of the penalty, added to the loss."""

    def run(self) -> FunctionRun:
        """Return the run that trains it."""
        return FunctionRun.of(train_penalized_network, self)


def train_penalized_network(settings: PenalizedNetwork, replicate: int) -> Output:
    """Train a network with the penalty of Network Slimming or of sparse structure selection, and keep its tensors.

    Source: Liu et al. 2017, "Network slimming", eq. 1; Huang & Wang 2018, "Data-driven sparse structure selection".

    Args:
        settings: The network, the recipe, and the penalty.
        replicate: Number of the replicate, from which the seeds are derived.

    Returns:
        One row with the "test accuracy" in percent and the "factors" of residual blocks by name; and all tensors of the
        trained network, the last layer of each block multiplied by its factor.

    Raises:
        StatisticsError: The network has no BatchNorm layer with a scale.
        ModelError: The network has no residual block with an identity shortcut.
        SpecError: The penalty is not above 0.
    """
    data, network = settings.dataset(), settings.network(derive_seed(replicate, "model"))
    recipe, factors = settings.recipe, None
    if settings.penalized == "blocks":
        images = data.train.inputs[:2]
        factors = BlockFactors(network, images, settings.penalty, recipe.learning_rate, recipe.momentum)
    else:
        recipe = recipe.replace(label_smoothing=0.0)  # it is part of the loss

    def penalized_loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        smoothing = settings.recipe.label_smoothing if network.training else 0.0
        loss = F.cross_entropy(outputs, batch[1], label_smoothing=smoothing)
        return loss + settings.penalty * batch_norm_scales(network)

    train(
        network, data, recipe, constraint=factors, loss=None if factors else penalized_loss,
        seed=derive_seed(replicate, "dense"), backend="dense",
    )  # fmt: skip
    row: Row = {"test accuracy": evaluate_test(network, data).accuracy}
    if factors is not None:
        row["factors"] = factors.values()
        with torch.no_grad():
            for name, value in factors.values().items():
                for parameter in network.get_submodule(name).parameters():
                    parameter.mul_(value)
    return Output([row], network.state_dict())
