"""A weight as the matrix that its layer multiplies with: a row an output, a column an input.

    Linear          [O, I]              as it is
    ConvNd          [O, I, K, ...]      -> [O, K · I]: input channels at one place of the kernel stand together

N:M patterns and blocks run along these columns, as the hardware that gains from them reads them.
"""

from torch import Tensor


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
