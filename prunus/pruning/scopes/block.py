"""Block: each tensor is ranked alone, and its holes are blocks of rows × columns of its matrix.

    score of a block = the sum of its weights' scores

A row is an output and a column an input (`prunus.pruning.matrix`); in a convolution a block's columns are input
channels at one place of the kernel, so that 1x4 are four of them.

Source: Narang, Undersander & Diamos 2017, "Block-sparse recurrent neural networks", section 3.1 (there the largest
magnitude of a block stands for it); Mao et al. 2017, "Exploring the granularity of sparsity", section 3 (the sum).
Also called: block sparsity, vector sparsity (1xN).
"""

import torch
from torch import Tensor

from prunus.errors import DensityError
from prunus.pruning.masks import check_finite, densities_by_name, num_to_keep, top_k, warn_if_empty
from prunus.pruning.scopes.layer import Scope
from prunus.pruning.scopes.tiles import from_tiles, to_tiles
from prunus.seeds import make_generator
from prunus.types import Density, MaskDict, Scores


def block(rows: int, columns: int) -> Scope:
    """The scope that keeps count(density, n) of the n blocks of every tensor, those of the highest sums first.

    Arguments as for `layer`. Raises, when it selects, DensityError (a tensor that blocks do not fill, a block that
    `within` has left a part of, and as `layer`), NonFiniteError.

    >>> block(1, 2)({"fc": torch.tensor([[3.0, 1.0, 2.0, 4.0]])}, 0.5)
    {'fc': tensor([[False, False,  True,  True]])}
    """
    if rows < 1 or columns < 1:
        raise DensityError(
            f"Blocks of {rows}x{columns} were asked for; they have at least one row and column."
        )

    def scope(scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0) -> MaskDict:
        check_finite(scores, "The score of")
        masks = {}
        for name, share in densities_by_name(density, list(scores)).items():
            # In float64, where sums neither overflow nor depend on who is added first.
            cut = to_tiles(name, scores[name].detach(), rows, columns)
            sums = cut.sum((1, 3), dtype=torch.float64)
            places = (
                torch.ones_like(sums, dtype=torch.bool)
                if within is None
                else _left(name, within[name], rows, columns)
            )
            kept, left = num_to_keep(share, sums.numel()), int(places.sum())
            if kept > left:
                raise DensityError(
                    f"Density {share} of {name!r} means {kept} blocks of {rows}x{columns}, but only {left} of "
                    f"{sums.numel()} are left; a pruned block does not come back."
                )
            chosen = torch.zeros_like(places)
            chosen[places] = top_k(sums[places], kept, make_generator(seed, "ties", name))
            masks[name] = from_tiles(chosen[:, None, :, None].expand_as(cut), scores[name])
        warn_if_empty(masks)
        return masks

    return scope


def _left(name: str, mask: Tensor, rows: int, columns: int) -> Tensor:
    """Which blocks are there; DensityError where only a part of one is."""
    there = to_tiles(name, mask, rows, columns).sum((1, 3))
    parts = int(((there > 0) & (there < rows * columns)).sum())
    if parts:
        raise DensityError(
            f"{parts} blocks of {rows}x{columns} of {name!r} have lost some of their weights and not all; under this "
            "scope earlier masks must be of whole blocks."
        )
    return there > 0
