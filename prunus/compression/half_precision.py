"""Round the parameters that are neither pruned nor quantized, such as biases, to half precision."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from prunus.pruning.prunable import layer_kinds
from prunus.types import Params


def round_to_half(model: nn.Module, weights: Params, exclude: Sequence[str] = ()) -> Params:
    """Return the rounded values of the parameters of `model` that a recipe stores in half precision.

    Args:
        model: Any module; it is not modified.
        weights: The weights that are quantized and therefore not rounded.
        exclude: Shell patterns over the names of parameters that remain exact. A tied parameter remains exact if a
            pattern matches any of its names, and so do prunable weights that are not in `weights`.

    Returns:
        float32 tensors by name, of the trainable float32 parameters whose entries are in the range of float16.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.bias.data.fill_(1 / 3)
        tensor([0.3333])
        >>> round_to_half(layer, {"weight": layer.weight})
        {'bias': tensor([0.3333])}
    """
    left_out = layer_kinds(model).keys() - weights.keys()
    exact = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in left_out or any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    limit = torch.finfo(torch.float16).max
    return {
        name: p.detach().half().float()
        + 0.0  # -0.0, to which small negative numbers are rounded, becomes 0.0
        for name, p in model.named_parameters()
        if p.requires_grad and name not in weights and id(p) not in exact
        if p.dtype == torch.float32 and p.numel() and float(p.detach().abs().max()) <= limit
    }
