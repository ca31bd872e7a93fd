"""Weights put into the places that a model has for them."""

import copy

import torch
from torch import nn

from prunus.errors import ModelError
from prunus.types import Params


@torch.no_grad()
def set_weights(model: nn.Module, weights: Params) -> None:
    """Set the parameters of these names, in place; the values are copied.

    Args:
        model: The module to change.
        weights: Tensors by parameter name.

    Raises:
        ModelError: The model has no parameter of this name and shape.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> set_weights(model, {"weight": torch.tensor([[3.0]])})
    >>> model.weight.tolist()
    [[3.0]]
    """
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        if name not in parameters:
            raise ModelError(
                f"Expected a parameter {name!r} to set, but {type(model).__name__} has none of that name; a weight "
                "that a parametrization computes cannot be set."
            )
        if parameters[name].shape != weight.shape:
            raise ModelError(
                f"Expected {name!r} to have the shape {tuple(parameters[name].shape)} that it has in "
                f"{type(model).__name__}, got {tuple(weight.shape)}; pass weights of this model."
            )
        parameters[name].copy_(weight)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model`. Raises ModelError where it holds tensors that cannot be copied.

    >>> copied(nn.Linear(1, 1)).in_features
    1
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a user's module may hold anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{type(model).__name__} cannot be copied with copy.deepcopy ({reason}); remove tensors that are results "
            "of a computation, and make a weight that weight_norm or torch.nn.utils.prune computes a parameter first."
        ) from error


def with_weights(model: nn.Module, weights: Params) -> nn.Module:
    """A copy of `model` with the parameters of these names replaced.

    Args:
        model: Any module; it is not changed.
        weights: Tensors by parameter name.

    Returns:
        The copy.
    """
    made = copied(model)
    set_weights(made, weights)
    return made
