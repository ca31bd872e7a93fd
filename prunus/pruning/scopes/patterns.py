"""Scopes with a pattern: N:M, and blocks.

A row of a pattern is an output and a column an input of the layer's matrix (`prunus.pruning.matrix`); in a convolution
neighboring columns are input channels at one position of the kernel.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import DensityError
from prunus.pruning.density import densities_by_name
from prunus.pruning.matrix import from_matrix, to_matrix
from prunus.pruning.scopes.scope import Counts, Scope, Shapes
from prunus.pruning.scopes.top_k import top_k_within
from prunus.types import Density

TOLERANCE = 1e-9
"""The largest difference between a density and N / M that counts as rounding of floats."""


@dataclass(frozen=True)
class NByM(Scope):
    """Of every M neighboring inputs of an output exactly N weights are kept, so that hardware can skip the others.

    The density is N / M in every group of M columns. A scope sees tensors, not layers: the weight of a transposed
    convolution has its inputs first, so that there the groups are of output channels.

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3 (2:4); Zhou, Ma et al. 2021,
    "Learning N:M fine-grained structured sparse neural networks from scratch", section 3 (any N and M).
    Also called: semi-structured or fine-grained structured sparsity.

    >>> NByM(2, 4).select({"fc": torch.tensor([[3.0, 1.0, 2.0, 4.0]])}, 0.5)
    {'fc': tensor([[ True, False, False,  True]])}
    """

    n: int
    m: int
    has_fixed_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.m >= 2 and 1 <= self.n < self.m):
            raise DensityError(
                f"Expected N:M with at least 1 and fewer than M weights kept, got {self.name}; use for example 2:4."
            )

    @property
    def name(self) -> str:
        """The name that `parse_scope` reads."""
        return f"{self.n}:{self.m}"

    @property
    def tile(self) -> tuple[int, int]:
        """One row, and the columns of a group."""
        return 1, self.m

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """N of every M weights of each tensor.

        Args:
            shapes: The shape of each tensor, by name.
            density: N / M, up to rounding of floats; one, or one per name.
            within_counts: The number of weights that earlier masks keep, by name; None: all.

        Returns:
            The number of weights to keep of each tensor, by name.

        Raises:
            DensityError: A density is not N / M, or is missing, or the number of inputs of a tensor is not a multiple
                of M.
        """
        exact = self.n / self.m
        for name, layer_density in densities_by_name(density, list(shapes)).items():
            if abs(layer_density - exact) > TOLERANCE:
                raise DensityError(
                    f"Expected density {exact:g} of {name!r}, which {self.name} keeps of every layer, got "
                    f"{layer_density:g}; set density {exact:g} in one round, and leave out layers with exclude."
                )
        return super().counts(shapes, exact, within_counts)

    def _select_one(
        self, scores: Tensor, count: int, within: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        groups = _to_tiles(scores, self.tile)
        if within is not None:
            groups = groups.masked_fill(~_to_tiles(within, self.tile), -torch.inf)
        ranked = groups.sort(dim=-1, descending=True).values
        threshold, next_best = ranked[..., self.n - 1], ranked[..., self.n]
        mask = groups >= threshold.unsqueeze(-1)
        tied = threshold == next_best
        if tied.any():
            mask[tied] = self._draw_ties(groups[tied], threshold[tied].unsqueeze(-1), generator)
        return _from_tiles(mask, scores)

    def _draw_ties(self, groups: Tensor, threshold: Tensor, generator: torch.Generator) -> Tensor:
        """The masks of groups [n, M] in which a pruned score is equal to the lowest one kept."""
        # Above the threshold comes first, then what is at it, in random order, and what is below it last.
        order = torch.rand(groups.shape, generator=generator).to(groups.device)
        order = order.masked_fill_(groups > threshold, 2.0).masked_fill_(groups < threshold, -1.0)
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(
            -1, order.topk(self.n, dim=-1).indices, True
        )

    def _check_earlier(self, name: str, mask: Tensor) -> None:
        num_short = int((_to_tiles(mask, self.tile).sum(-1) < self.n).sum())
        if num_short:
            raise DensityError(
                f"Expected {self.n} kept weights in every group of {self.m} inputs of {name!r}, got fewer in "
                f"{num_short} groups; a pruned weight cannot be restored, so choose another scope."
            )


@dataclass(frozen=True)
class Block(Scope):
    """Each tensor is ranked alone, and pruned in blocks of rows × columns of its matrix.

    The score of a block is the sum of the scores of its weights. A density is the fraction of the blocks to keep.

    Source: Narang, Undersander & Diamos 2017, "Block-sparse recurrent neural networks", section 3.1 (there the score of
    a block is its largest magnitude); Mao et al. 2017, "Exploring the granularity of sparsity", section 3 (the sum).
    Also called: block sparsity, vector sparsity (1xN).

    >>> Block(1, 2).select({"fc": torch.tensor([[3.0, 1.0, 2.0, 4.0]])}, 0.5)
    {'fc': tensor([[False, False,  True,  True]])}
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise DensityError(
                f"Expected blocks of at least one row and one column, got {self.name}; use for example 1x4."
            )

    @property
    def name(self) -> str:
        """The name that `parse_scope` reads."""
        return f"{self.rows}x{self.columns}"

    @property
    def tile(self) -> tuple[int, int]:
        """The rows and columns of a block."""
        return self.rows, self.columns

    def _select_one(
        self, scores: Tensor, count: int, within: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        tiles = _to_tiles(scores, self.tile)
        # In float64, in which sums neither overflow nor depend on the order of addition.
        sums = tiles.sum((1, 3), dtype=torch.float64)
        available = None if within is None else _to_tiles(within, self.tile).any(3).any(1)
        mask = top_k_within(sums, count // self.weights_per_unit, available, generator)
        return _from_tiles(mask[:, None, :, None].expand_as(tiles), scores)

    def _check_earlier(self, name: str, mask: Tensor) -> None:
        per_block = _to_tiles(mask, self.tile).sum((1, 3))
        num_partial = int(((per_block > 0) & (per_block < self.weights_per_unit)).sum())
        if num_partial:
            raise DensityError(
                f"Expected earlier masks to keep or prune blocks of {self.name} as a whole, got {num_partial} "
                f"partly pruned blocks of {name!r}; choose another scope."
            )


def _to_tiles(tensor: Tensor, tile: tuple[int, int]) -> Tensor:
    """[O, I, K, ...] -> [O / rows, rows, K · I / columns, columns], tile (a, b) at [a, :, b, :]."""
    matrix, (rows, columns) = to_matrix(tensor), tile
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)


def _from_tiles(tiles: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_to_tiles`, of the shape of `like`."""
    return from_matrix(tiles.flatten(2).flatten(0, 1), like).contiguous()
