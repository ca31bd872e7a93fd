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
    padded = _padded(module, inputs)
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
    windows = inputs.unfold(2, dilation * (kernel - 1) + 1, stride)  # [B, C, D', H, W, span of the kernel]
    windows = windows[..., ::dilation]
    return windows.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)


def conv2d_input_products(module: nn.Conv2d, inputs: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The sum of x xᵀ over the vectors x of `im2col_batches`, without most of their memory and work.

    Only the width is unfolded. The products of two rows of the image serve all pairs of kernel rows at that distance:
    K of K² blocks, each summed over the rows of the image that its kernel rows meet.

    Args:
        module: The layer; products contain its padding.
        inputs: A batch of its inputs, float32 or float64, in which the products of one row of all images are summed.

    Yields:
        The sum in float64, [G, D, D], and its number of vectors, of a part of the batch at a time.

    >>> layer, inputs = nn.Conv2d(1, 1, (2, 1)), torch.tensor([[[[1.0], [2.0], [3.0]]]])
    >>> [(products.tolist(), n) for products, n in conv2d_input_products(layer, inputs)]
    [([[[5.0, 8.0], [8.0, 13.0]]], 2)]
    """
    (height, width), (step_y, step_x), (gap_y, gap_x) = module.kernel_size, module.stride, module.dilation
    groups, channels = module.groups, module.in_channels // module.groups
    padded = _padded(module, inputs if inputs.dim() == 4 else inputs.unsqueeze(0))
    out_y = (padded.shape[2] - gap_y * (height - 1) - 1) // step_y + 1
    out_x = (padded.shape[3] - gap_x * (width - 1) - 1) // step_x + 1
    if out_y < 1 or out_x < 1:
        return  # the layer's own error says more
    last_x, last_y, size = step_x * (out_x - 1) + 1, step_y * (out_y - 1) + 1, width * channels
    for part in torch.split(padded, max(1, MAX_UNFOLDED // (padded[0].numel() * width))):
        images = part.reshape(len(part), groups, channels, *part.shape[2:])
        images = images.permute(1, 3, 0, 4, 2).contiguous()  # [G, H, B, W, C]
        shifted = [images[:, :, :, x * gap_x : x * gap_x + last_x : step_x] for x in range(width)]
        rows = torch.cat(shifted, -1).flatten(2, 3)  # [G, H, B · W', K · C]
        total = part.new_zeros(groups, height, size, height, size, dtype=torch.float64)
        for distance in range(height):
            products = rows[:, : rows.shape[1] - distance * gap_y].mT @ rows[:, distance * gap_y :]
            for y in range(height - distance):
                block = products[:, y * gap_y : y * gap_y + last_y : step_y].sum(1, dtype=torch.float64)
                total[:, y, :, y + distance] = block
                total[:, y + distance, :, y] = block.mT
        yield total.flatten(3).flatten(1, 2), len(part) * out_y * out_x


def _padded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
