"""N:M: of every M neighboring inputs of an output exactly N weights are kept, so that hardware can skip the rest.

    density = N / M in every group of M columns of the layer's matrix (`prunus.pruning.matrix`)

In a convolution the M are input channels at one place of the kernel.

Source: Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3 (2:4); Zhou, Ma et al. 2021, "Learning
N:M fine-grained structured sparse neural networks from scratch", section 3 (any N and M).
Also called: semi-structured or fine-grained structured sparsity.
Where we depart: a scope sees tensors, not layers; a transposed convolution's weight has its inputs first, so that
there the groups are of output channels.
"""

import torch
from torch import Tensor

from prunus.errors import DensityError
from prunus.pruning.masks import check_finite, densities_by_name
from prunus.pruning.scopes.layer import Scope
from prunus.pruning.scopes.tiles import from_tiles, to_tiles
from prunus.seeds import make_generator
from prunus.types import Density, MaskDict, Scores

TOLERANCE = 1e-9
"""How far from N / M a density may be: what powers and quotients of floats are off by."""


def n_m(n: int, m: int) -> Scope:
    """The scope that keeps `n` weights of every `m` neighboring inputs.

    Its `density` must be n / m, of every tensor; other arguments as for `layer`. Raises, when it selects, DensityError
    (another density, inputs that are no multiple of m, fewer than n of a group left in `within`), NonFiniteError.

    >>> n_m(2, 4)({"fc": torch.tensor([[3.0, 1.0, 2.0, 4.0]])}, 0.5)
    {'fc': tensor([[ True, False, False,  True]])}
    """
    if not (m >= 2 and 1 <= n < m):
        raise DensityError(
            f"{n}:{m} was asked for; N:M keeps at least 1 and fewer than M weights of M, as 2:4."
        )

    def scope(scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0) -> MaskDict:
        for name, share in densities_by_name(density, list(scores)).items():
            if abs(share - n / m) > TOLERANCE:
                raise DensityError(
                    f"Density {share:g} was asked for {name!r}, but {n}:{m} keeps exactly {n / m:g} of every layer it "
                    f"prunes; ask for {n / m:g}, in one round, and leave layers out with exclude."
                )
        check_finite(scores, "The score of")
        return {
            name: _kept(name, score, n, m, None if within is None else within[name], seed)
            for name, score in scores.items()
        }

    return scope


def _kept(name: str, score: Tensor, n: int, m: int, within: Tensor | None, seed: int) -> Tensor:
    groups = to_tiles(name, score.detach(), 1, m)
    if within is not None:
        left = to_tiles(name, within, 1, m)
        short = int((left.sum(-1) < n).sum())
        if short:
            raise DensityError(
                f"{n}:{m} keeps {n} weights of every {m} inputs, but {short} groups of {name!r} have fewer left; "
                "a pruned weight does not come back."
            )
        groups = groups.masked_fill(~left, -torch.inf)
    border = groups.topk(n, dim=-1).values[..., -1:]
    # What is above the border stands before what is at it, and that in an order drawn; what is below comes last.
    order = torch.rand(groups.shape, generator=make_generator(seed, "ties", name)).to(groups.device)
    order = order.masked_fill_(groups > border, 2.0).masked_fill_(groups < border, -1.0)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order.topk(n, dim=-1).indices, True)
    return from_tiles(mask, score)
