"""The empirical Fisher in blocks along the diagonal: gradients one example at a time, and their mean outer product.

    F = (1/N) Σ_n g_n g_nᵀ      g_n the gradient of example n's loss; kept only where both weights are in one block

A block is `block` consecutive weights of a tensor as it is flattened (of a row, then the next), and never of two
tensors; the last is filled up with weights that have no gradient.

Source: Singh & Alistarh 2020 (WoodFisher), sections 3 and 4; the block-wise form as Kurtic et al. 2022 use it.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from prunus.errors import ModelError, NonFiniteError
from prunus.pruning.second_order.objective import Objective
from prunus.types import Params, Progress

LARGEST = 2**34
"""Bytes of the largest Fisher: 43 million weights in blocks of 50."""
CHUNK = 2**18
"""Entries of a chunk of blocks that is worked on at once: 2 MiB in float64, what a cache holds."""


def per_example_gradients(asked: Objective, batch: int) -> Iterator[Params]:
    """[B, ...] a weight: the gradient of every example's own loss, `batch` examples at a time, in order."""

    def error(weights: Params, x: Tensor, target: Tensor) -> Tensor:
        return asked.loss.value(asked.answer(weights, x.unsqueeze(0)), target.unsqueeze(0)).sum()

    each = vmap(grad(error), in_dims=(None, 0, 0))
    for inputs, targets in zip(
        torch.split(asked.inputs, batch), torch.split(asked.targets, batch), strict=True
    ):
        yield {name: g.detach() for name, g in each(asked.weights, inputs, targets).items()}


def to_blocks(values: Tensor, block: int) -> Tensor:
    """[..., n] -> [..., blocks, block], the last filled up with zeros; a tensor shorter than that is one block.

    >>> to_blocks(torch.arange(1, 6), 3).tolist(), to_blocks(torch.arange(1, 3), 3).tolist()
    ([[1, 2, 3], [4, 5, 0]], [[1, 2]])
    """
    width = min(block, values.shape[-1])
    filled = F.pad(values, (0, -values.shape[-1] % width))
    return filled.reshape(*values.shape[:-1], -1, width)


def from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """[blocks, block] -> the shape of `like`, without the filling."""
    return blocks.flatten()[: like.numel()].reshape(like.shape)


def empirical_fisher(asked: Objective, block: int, batch: int, progress: Progress | None = None) -> Params:
    """F by tensor, [blocks, block, block] in float64, without damping.

    Raises ModelError (larger than LARGEST), NonFiniteError (a gradient, or a product of two).
    """
    _check_size(asked.weights, block)
    shapes = {name: to_blocks(w.flatten(), block).shape for name, w in asked.weights.items()}
    total = {
        name: w.new_zeros(*shapes[name], shapes[name][1], dtype=torch.float64)
        for name, w in asked.weights.items()
    }
    for done, batched in enumerate(per_example_gradients(asked, batch), start=1):
        for name, g in batched.items():
            _add_products(total[name], to_blocks(g.flatten(1), block))
        if progress:
            progress("batches of gradients", done, -(-len(asked.inputs) // batch))
    for name, blocks in total.items():
        blocks /= len(asked.inputs)
        # The largest products stand on the diagonal.
        if not torch.isfinite(blocks.diagonal(dim1=1, dim2=2).sum()):
            raise NonFiniteError(
                f"The gradients by {name!r} of {len(asked.inputs)} examples have squares that are not finite; "
                "bring the inputs or the targets to unit scale."
            )
    return total


def _add_products(total: Tensor, g: Tensor) -> None:
    """total += Σ_n g_n g_nᵀ, some blocks at a time, so that only a chunk is ever in float64."""
    step = max(1, CHUNK // (len(g) * g.shape[2]))
    for at in range(0, len(total), step):
        here = slice(at, at + step)
        one = g[:, here].double().transpose(0, 1)
        total[here].baddbmm_(one.transpose(1, 2), one)


def _check_size(weights: Params, block: int) -> None:
    entries = {name: w.numel() * min(block, w.numel()) for name, w in weights.items()}
    if sum(entries.values()) * 8 > LARGEST:
        raise ModelError(
            f"The Fisher of {sum(w.numel() for w in weights.values()):,} weights in blocks of {block:,} would "
            f"take {sum(entries.values()) * 8 / 2**30:,.0f} GiB; smaller blocks take at most "
            f"{LARGEST / 2**30:.0f} GiB."
        )


def damped_cholesky(fisher: Tensor, left: Tensor, damping: float, name: str) -> Tensor:
    """The Cholesky factor of λI + F over the weights that are left, λI elsewhere: [n, block, block].

    Raises NonFiniteError where λ is within the rounding of F, (block - 1) ε times its largest entry: a factor might
    exist and mean nothing.
    """
    here = fisher * left.unsqueeze(2) * left.unsqueeze(1)
    here.diagonal(dim1=1, dim2=2).add_(damping)
    largest = float(here.diagonal(dim1=1, dim2=2).max())
    rounding = (here.shape[1] - 1) * torch.finfo(here.dtype).eps * largest
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(here)
    if damping < rounding or failed.any():
        enough = 10.0 ** math.ceil(math.log10(max(rounding, 2 * damping)))
        raise NonFiniteError(
            f"A block of the Fisher of {name!r} with entries up to {largest:.3g} cannot be inverted with damping "
            f"{damping:g}; try a larger one, as {enough:g}."
        )
    return factor
