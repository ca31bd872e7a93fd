"""All weights as one vector, in their order, and back."""

import torch
from torch import Tensor

from prunus.types import Params


def flatten_weights(weights: Params) -> Tensor:
    """One vector of all entries."""
    return torch.cat([weight.reshape(-1) for weight in weights.values()])


def unflatten_weights(vector: Tensor, like: Params) -> Params:
    """The inverse of `flat`, of the names and shapes of `like`.

    >>> weights = {"a": torch.ones(1, 2), "b": torch.zeros(1)}
    >>> unflatten_weights(flatten_weights(weights), weights)
    {'a': tensor([[1., 1.]]), 'b': tensor([0.])}
    """
    parts = torch.split(vector, [weight.numel() for weight in like.values()])
    return {name: part.reshape(w.shape) for part, (name, w) in zip(parts, like.items(), strict=True)}
