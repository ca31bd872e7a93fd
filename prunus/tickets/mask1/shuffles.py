"""Permutations within a layer, and magnitudes that take the signs of others. Helpers of the actions."""

import torch
from torch import Tensor


def permute_at(values: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of `values` whose entries at `places` stand in another order, drawn by `generator`.

    >>> permute_at(torch.tensor([1.0, 2.0]), torch.tensor([False, True]), torch.Generator())
    tensor([1., 2.])
    """
    flat = values.detach().flatten().clone()
    where = places.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(where), generator=generator).to(where.device)
    flat[where] = flat[where[order]]
    return flat.reshape(values.shape)


def with_signs_of(signed: Tensor, magnitudes: Tensor) -> Tensor:
    """`magnitudes` with the signs of `signed`; zero, which has no sign, stays zero.

    >>> with_signs_of(torch.tensor([-3.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 2.0]))
    tensor([-1.,  0.,  2.])
    """
    return signed.detach().sign() * magnitudes.detach().abs()
