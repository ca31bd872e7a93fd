"""Transposed convolutions as convolutions of their inputs with zeros between them.

    y[p] = Σ_q Σ_k W[i, o, k] x[i, q],  p = q · stride - padding + k · dilation

is a convolution of stride 1 with the flipped kernel, of the inputs at every `stride`-th position with zeros elsewhere.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from prunus.pruning.views.linear import with_tensors

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS_BY_DIMENSION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def flip(weight: Tensor, groups: int) -> Tensor:
    """[I, O / G, K, ...] of a transposed convolution -> [O, I / G, K, ...] of the convolution, and back again.

    Args:
        weight: The weight of one of them, or a mask of it.
        groups: G.

    Returns:
        The entries in the order of the other: outputs and inputs of each group are swapped, and the kernel is flipped.
    """
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    swapped = by_group.transpose(1, 2).flatten(0, 1)
    return swapped.flip(tuple(range(2, weight.dim())))


def convolution_of_transposed(layer: Transposed) -> nn.Module:
    """The convolution that computes what `layer` computes; a hook puts zeros between its inputs."""
    dimensions = len(layer.kernel_size)
    kind = CONVOLUTIONS_BY_DIMENSION[dimensions - 1]
    convolution = kind(
        layer.in_channels, layer.out_channels, layer.kernel_size, dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups, bias=layer.bias is not None, device="meta",
    )  # fmt: skip
    with_tensors(convolution, flip(layer.weight, layer.groups).contiguous(), layer.bias)
    convolution.register_forward_pre_hook(partial(_spread_inputs, layer), with_kwargs=True)
    return convolution


def _spread_inputs(
    layer: Transposed, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, object]
) -> tuple[tuple[Tensor], dict[str, object]]:
    """The inputs with zeros between and around them, as the convolution needs them."""
    forward_arguments: list[Any] = [*arguments, *named.values(), None]
    inputs, size = forward_arguments[:2]
    dimensions = len(layer.kernel_size)
    extra = layer._output_padding(
        inputs, size, list(layer.stride), list(layer.padding), list(layer.kernel_size),  # type: ignore[arg-type]
        dimensions, list(layer.dilation),
    )  # fmt: skip
    lengths = [(n - 1) * s + 1 for n, s in zip(inputs.shape[-dimensions:], layer.stride, strict=True)]
    spread = inputs.new_zeros(*inputs.shape[:-dimensions], *lengths)
    spread[(Ellipsis, *(slice(None, None, s) for s in layer.stride))] = inputs
    padding: list[int] = []
    for axis in reversed(range(dimensions)):
        around = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        padding += [around, around + extra[axis]]
    return (F.pad(spread, padding),), {}
