"""A weight as the matrix that its layer multiplies with: a row an output, a column an input.

    Linear          [O, I]              as it is
    ConvNd          [O, I, K, ...]      -> [O, K · I]: the input channels at one position of the kernel are neighbors

N:M patterns and blocks run along these columns, in the order in which hardware for them reads the weights.
`im2col_batches` gives the vectors that they are multiplied with.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_UNFOLDED = 1 << 23
"""Entries of a convolution's unfolded inputs in memory at once: 32 MiB in float32."""


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

    Args:
        matrix: [O, D]
        like: A tensor of the shape of the weight.

    Returns:
        The weight.

    >>> import torch
    >>> weight = torch.rand(3, 4, 2, 2)
    >>> torch.equal(from_matrix(to_matrix(weight), weight), weight)
    True
    """
    if like.dim() < 2:
        return matrix.reshape(like.shape)
    outputs, inputs, *kernel = like.shape
    return matrix.reshape(outputs, *kernel, inputs).movedim(-1, 1)


def im2col_batches(module: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """The vectors that the rows of the layer's matrix are multiplied with, [G, n, D] at a time.

    Args:
        module: Linear, Conv1d, Conv2d or Conv3d; the vectors contain its padding.
        inputs: A batch of its inputs.

    Yields:
        A vector per position of the output.

    >>> inputs = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> [part.tolist() for part in im2col_batches(nn.Conv1d(1, 1, 2), inputs)]
    [[[[1.0, 2.0], [2.0, 3.0]]]]
    """
    if isinstance(module, nn.Linear):
        yield inputs.reshape(1, -1, module.in_features)
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    padded = padded if padded.dim() == len(module.kernel_size) + 2 else padded.unsqueeze(0)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    channels, depth = module.in_channels // module.groups, 1
    if isinstance(module, nn.Conv1d):
        padded, kernel, stride, dilation = (padded.unsqueeze(-2), (1, *kernel), (1, *stride), (1, *dilation))
    elif isinstance(module, nn.Conv3d):
        padded = _unfold_depth(padded, kernel[0], stride[0], dilation[0])
        kernel, stride, dilation, depth = kernel[1:], stride[1:], dilation[1:], kernel[0]
    size = padded.shape[1] * kernel[0] * kernel[1] * padded.shape[2] * padded.shape[3]
    for part in torch.split(padded, max(1, MAX_UNFOLDED // size)):
        columns = F.unfold(part, kernel, dilation=dilation, stride=stride)  # [B, G · I · depth · K, L]
        columns = columns.reshape(len(part), module.groups, channels, depth, -1, columns.shape[2])
        columns = columns.permute(1, 0, 5, 3, 4, 2)
        yield columns.reshape(module.groups, -1, depth * kernel[0] * kernel[1] * channels)


def _unfold_depth(inputs: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """[B, C, D, H, W] -> [B · D', C · kernel, H, W], the planes that one position of the output sees as channels."""
    windows = inputs.unfold(2, dilation * (kernel - 1) + 1, stride)[
        ..., ::dilation
    ]  # [B, C, D', H, W, kernel]
    return windows.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)
