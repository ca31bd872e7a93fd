"""Layers with given tensors."""

from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T", bound=nn.Module)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The Linear layer with these tensors, which are shared.

    Args:
        weight: [O, I].
        bias: [O]; None: the layer has none.

    Returns:
        The layer.
    """
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return with_tensors(layer, weight, bias)


def with_tensors(layer: T, weight: Tensor, bias: Tensor | None) -> T:
    """The same layer, whose weight and bias are these tensors now; they are shared.

    Args:
        layer: A layer that was made on the meta device.
        weight: Of the shape of its weight.
        bias: Of the shape of its bias; None: it has none.

    Returns:
        The layer.
    """
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer
