"""The scale of a layer's initialization. Helpers of the actions."""

import torch
from torch import Tensor


def population_std(layer: Tensor) -> Tensor:
    """The standard deviation of all weights of a layer as a population, rounded once to the layer's precision.

    >>> population_std(torch.tensor([1.0, 3.0]))
    tensor(1.)
    """
    return layer.detach().double().std(correction=0).to(layer.dtype)


def is_deviation(value: Tensor, layer: Tensor) -> bool:
    """Whether `value` is the root mean square distance from the mean of `layer`, to two roundings of its weights."""
    exact = layer.detach().double()
    distance = (exact - exact.mean()).square().mean().sqrt()
    rounding = torch.finfo(layer.dtype).eps * float(exact.square().mean().sqrt())
    return abs(float(value) - float(distance)) <= 2 * rounding
