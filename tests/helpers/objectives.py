"""Objectives of small networks with everything drawn."""

from typing import Any

import tiny_networks
import torch
from torch import Tensor, nn

from prunus.pruning.obs.admm import Admm
from prunus.pruning.obs.objective import Objective, make_objective
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.prunable import prunable_weights
from prunus.seeds import make_generator
from prunus.types import Split


def draw(*shape: int, role: str = "x") -> Tensor:
    """Normal numbers in float64, of their role's own seed."""
    return torch.randn(shape, generator=make_generator(0, role), dtype=torch.float64)


def make_test_objective(
    model: nn.Module, shape: tuple[int, ...], loss: str = "squared_error", n: int = 9, biases: bool = True
) -> Objective:
    """An objective in float64 with drawn weights, statistics, inputs and targets."""
    model = tiny_networks.randomize_parameters(model, 3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(draw(len(module.running_mean), role="mean"))
            module.running_var.copy_(draw(len(module.running_var), role="var").exp())
    inputs = draw(n, *shape)
    classes = model.eval()(inputs).shape[1]
    targets = draw(n, classes, role="targets") if loss == "squared_error" else torch.arange(n) % classes
    weights = dict(model.named_parameters()) if biases else prunable_weights(model)
    return make_objective(model, weights, inputs, targets, loss=loss)


def sparse_gpt(model: nn.Module, inputs: Any, *, progress: Any = None, **settings: Any) -> Any:
    """SparseGPT as a function (weights, density, scope, within=None, seed=0) -> PruneResult."""
    return layer_method(SparseGpt(**settings), model, inputs, progress)


def admm(model: nn.Module, inputs: Any, *, progress: Any = None, **settings: Any) -> Any:
    """ADMM as such a function."""
    return layer_method(Admm(**settings), model, inputs, progress)


def layer_method(method: Any, model: nn.Module, inputs: Any, progress: Any) -> Any:
    """A method as such a function."""

    def prune(weights: Any, density: Any, scope: Any, within: Any = None, seed: int = 0) -> PruneResult:
        split = Split(inputs, inputs)
        return method.prune(
            model, weights, density, scope, split, within=within, seeds=(0, seed), progress=progress
        )

    return prune
