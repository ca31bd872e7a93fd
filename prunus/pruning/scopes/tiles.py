"""Tensors cut into the tiles that patterned scopes count in: rows × columns of the layer's matrix."""

from torch import Tensor

from prunus.errors import DensityError
from prunus.pruning.matrix import from_matrix, to_matrix


def to_tiles(name: str, tensor: Tensor, rows: int, columns: int) -> Tensor:
    """[O, I, K, ...] -> [O / rows, rows, K · I / columns, columns], tile (a, b) at [a, :, b, :].

    No tile spans two places of a convolution's kernel. Raises DensityError where the tensor cannot be cut so.

    >>> import torch
    >>> to_tiles("fc", torch.arange(8).reshape(2, 4), 1, 2)[1, 0].tolist()
    [[4, 5], [6, 7]]
    """
    outputs, inputs = (1, tensor.numel()) if tensor.dim() < 2 else tensor.shape[:2]
    for what, there, asked in (("output", outputs, rows), ("input", inputs, columns)):
        if there % asked:
            raise DensityError(
                f"{asked} {what}s at a time were to be pruned together, but {name!r}, {list(tensor.shape)}, has "
                f"{there}, which is no multiple; exclude {name!r} to leave it out."
            )
    matrix = to_matrix(tensor)
    return matrix.reshape(outputs // rows, rows, matrix.shape[1] // columns, columns)


def from_tiles(cut: Tensor, like: Tensor) -> Tensor:
    """The inverse of `tiles`, of the shape of `like`."""
    outputs, rows, places, columns = cut.shape
    return from_matrix(cut.reshape(outputs * rows, places * columns), like).contiguous()
