"""Weights put into the places that a model has for them."""

import copy

import torch
from torch import nn

from prunus.nouns import Params


@torch.no_grad()
def put(model: nn.Module, weights: Params) -> None:
    """Set the parameters of these names, in place; the values are copied.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> put(model, {"weight": torch.tensor([[3.0]])})
    >>> model.weight.tolist()
    [[3.0]]
    """
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameters[name].copy_(weight)


def replaced(model: nn.Module, weights: Params) -> nn.Module:
    """A copy of `model` with the parameters of these names replaced."""
    made = copy.deepcopy(model)
    put(made, weights)
    return made
