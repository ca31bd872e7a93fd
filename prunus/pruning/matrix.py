"""A weight as the matrix that its layer multiplies with: a row an output, a column an input.

    Linear          [O, I]              as it is
    ConvNd          [O, I, K, ...]      -> [O, K · I]: input channels at one place of the kernel stand together

N:M patterns and blocks run along these columns, as the hardware that gains from them reads them; `unfolded` lays out
what they are multiplied with.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNFOLDED = 1 << 23
"""Entries of a convolution's inputs that are laid out at once: 32 MiB in float32."""


def to_matrix(weight: Tensor) -> Tensor:
    """[O, I, K, ...] -> [O, K ... · I]; a Linear's weight as it is. A vector is one row.

    >>> import torch
    >>> to_matrix(torch.arange(4).reshape(1, 2, 1, 2)).tolist()
    [[0, 2, 1, 3]]
    """
    if weight.dim() < 2:
        return weight.reshape(1, -1)
    return weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_matrix`, of the shape of `like`.

    >>> import torch
    >>> weight = torch.rand(3, 4, 2, 2)
    >>> torch.equal(from_matrix(to_matrix(weight), weight), weight)
    True
    """
    if like.dim() < 2:
        return matrix.reshape(like.shape)
    outputs, inputs, *kernel = like.shape
    return matrix.reshape(outputs, *kernel, inputs).movedim(-1, 1)


def im2col_batches(module: nn.Module, given: Tensor) -> Iterator[Tensor]:
    """The vectors that the rows of the layer's matrix are multiplied with, [G, n, D] at a time.

    Args:
        module: Linear, Conv1d or Conv2d; its padding is laid out with the rest.
        given: a batch of its inputs; a place of a convolution's output is a vector.

    >>> given = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> [part.tolist() for part in im2col_batches(nn.Conv1d(1, 1, 2), given)]
    [[[[1.0, 2.0], [2.0, 3.0]]]]
    """
    if isinstance(module, nn.Linear):
        yield given.reshape(1, -1, module.in_features)
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    kernel, stride, dilation = (
        (1, *pair) if isinstance(module, nn.Conv1d) else pair
        for pair in (module.kernel_size, module.stride, module.dilation)
    )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    if isinstance(module, nn.Conv1d):
        padded = padded.unsqueeze(-2)
    padded = padded if padded.dim() == 4 else padded.unsqueeze(0)
    inputs = module.in_channels // module.groups
    size = padded.shape[1] * kernel[0] * kernel[1] * padded.shape[2] * padded.shape[3]
    for part in torch.split(padded, max(1, UNFOLDED // size)):
        columns = F.unfold(part, kernel, dilation=dilation, stride=stride)  # [B, G · I · K, L]
        columns = columns.reshape(len(part), module.groups, inputs, -1, columns.shape[2])
        yield columns.permute(1, 0, 4, 3, 2).reshape(module.groups, -1, inputs * kernel[0] * kernel[1])
