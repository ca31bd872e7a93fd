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
        module: Linear, Conv1d or Conv2d; the vectors contain its padding.
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
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    kernel, stride, dilation = (
        (1, *pair) if isinstance(module, nn.Conv1d) else pair
        for pair in (module.kernel_size, module.stride, module.dilation)
    )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    if isinstance(module, nn.Conv1d):
        padded = padded.unsqueeze(-2)
    padded = padded if padded.dim() == 4 else padded.unsqueeze(0)
    channels = module.in_channels // module.groups
    size = padded.shape[1] * kernel[0] * kernel[1] * padded.shape[2] * padded.shape[3]
    for part in torch.split(padded, max(1, MAX_UNFOLDED // size)):
        columns = F.unfold(part, kernel, dilation=dilation, stride=stride)  # [B, G · I · K, L]
        columns = columns.reshape(len(part), module.groups, channels, -1, columns.shape[2])
        yield columns.permute(1, 0, 4, 3, 2).reshape(module.groups, -1, channels * kernel[0] * kernel[1])
