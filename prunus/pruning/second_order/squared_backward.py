"""A layer with its connections squared: Σ_l w_li² h_l for every input i, through the layer's own backward pass.

w_li is the derivative of output l by input i. Where padding repeats an input within a window (replicate, reflect, or
circular around a small picture), the places of the kernel that stand on it are one connection, and w_li is their sum:

    (Σ_k w_k)² = Σ_k w_k (Σ_k' w_k')        k, k' the places that stand on input i

so that the kernel of such a window is w_k Σ_k' w_k', and windows that padding makes alike go back together.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from prunus.pruning.matrix import im2col_batches


def squared_weight_vjp(layer: nn.Module, x: Tensor, curve: Tensor) -> Tensor:
    """Σ_l w_li² h_l, of the shape of the layer's input `x`, from `curve`, h of the shape of its output.

    >>> layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 2.0, 3.0]]]))
    >>> squared_weight_vjp(layer, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))  # (1 + 2)² + 1², 3² + (2 + 3)²
    tensor([[[10., 34.]]])
    """
    weight = layer.get_parameter("weight").detach()
    if not isinstance(layer, nn.Conv1d | nn.Conv2d) or layer.padding_mode == "zeros":
        return _back(layer, weight.square(), x, curve)
    flat, total = weight.flatten(2), torch.zeros_like(x)
    for same, where in _kinds_of_windows(layer, x):
        merged = (flat * (flat @ same.to(flat.dtype))).reshape(weight.shape)
        total += _back(layer, merged, x, curve * where.reshape(curve.shape[2:]))
    return total


def _back(layer: nn.Module, weight: Tensor, x: Tensor, curve: Tensor) -> Tensor:
    given: Tensor = vjp(lambda z: functional_call(layer, {"weight": weight}, (z,)), x)[1](curve)[0]
    return given


def _kinds_of_windows(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every kind there is: which places of its kernel stand on the same input, [K, K], and which are so, [L]."""
    size = x.shape[2:]
    # Float64 tells all inputs of a channel apart, and channels are padded alike: the first tells all.
    inputs = torch.arange(size.numel(), dtype=torch.float64, device=x.device).reshape(1, 1, *size)
    windows = torch.cat(list(im2col_batches(layer, inputs.expand(1, layer.in_channels, *size))), 1)
    windows = windows[0, :, :: layer.in_channels // layer.groups]
    first = (windows.unsqueeze(2) == windows.unsqueeze(1)).byte().argmax(2)
    kinds, kind = torch.unique(first, dim=0, return_inverse=True)
    for number, places in enumerate(kinds):
        yield places.unsqueeze(1) == places, kind == number
