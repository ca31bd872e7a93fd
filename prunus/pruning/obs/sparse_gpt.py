"""SparseGPT: one factorization per layer, and columns from first to last for all rows at once.

    H + λ I = (UᵀU)⁻¹,  U upper triangular          U[c:, c:] is the same for the columns from c on alone
    at column c:    score w_c² / (2 U_cc²)           e = w_c / U_cc where pruned, 0 where kept
                    W[:, c+1:] -= e U[c, c+1:]       the columns after it compensate for what a column lost

Masks are selected column by column, `mask_block_size` columns at a time, from weights that have compensated for the
columns before. How many weights of these columns are kept follows from the scope (`Scope.column_counts`).

Source: Frantar & Alistarh 2023, "SparseGPT", section 3 and Algorithm 1 (mask_block_size: its B_s = 128, M for N:M).
Differences from the paper: U comes from the Cholesky factor of H with its rows and columns reversed, without inverting
H; the lazy updates are made by halving the columns recursively, which are large products, instead of in blocks of one
width; the number kept of each mask block is rounded so that the layer keeps as many as under its scope; inputs are
those of the network before any layer is pruned, where theirs have passed through the layers that are already pruned; a
layer whose update loses more of its output than zeroing is solved for again with the same mask (`fallback.py`), with a
warning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import StatisticsError
from prunus.pruning.density import densities_by_name
from prunus.pruning.masks import check_finite, warn_if_empty
from prunus.pruning.matrix import from_matrix, to_matrix
from prunus.pruning.obs.exact_obs import cholesky
from prunus.pruning.obs.fallback import limit_layer_updates
from prunus.pruning.obs.hessian import STRIPE_ROWS, LayerHessian
from prunus.pruning.obs.layer_method import LayerMethod, LayerTask
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.scopes import Scope
from prunus.seeds import derive_seed
from prunus.types import MaskDict, Params

MAX_SOLVED_COLUMNS = 128
"""Columns of a triangle that are inverted at once."""

SelectColumns = Callable[[int, int, Tensor], Tensor]
"""(first column, end, scores [O, end - first]) -> True where a weight is kept."""


@dataclass(frozen=True, kw_only=True)
class SparseGpt(LayerMethod):
    """OBS layer by layer and column by column, for layers of some thousand inputs.

    Args:
        damping: λ as a fraction of the mean curvature of a layer; may be 0.
        mask_block_size: The number of columns whose masks are selected at a time, rounded down to whole patterns (N:M:
            always M). None: all masks are selected at once, before any weight is updated; a scope that ranks layers
            together always does that.
        batch_size: Examples per forward pass.
        num_examples: Calibration examples.

    Raises:
        StatisticsError: A number out of range, or more than one step.

    >>> from prunus.pruning.scopes import Layer
    >>> from prunus.types import Split
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> examples = Split(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.zeros(2, dtype=torch.int64))
    >>> weights = {"weight": torch.tensor([[0.5, 1.0]])}
    >>> SparseGpt(damping=1e-6).prune(model, weights, 0.5, Layer(), examples).weights
    {'weight': tensor([[0.0000, 1.5000]])}
    """

    summary: ClassVar[str] = (
        "OBS layer by layer, column by column (SparseGPT), with an update of the remaining weights."
    )
    mask_block_size: int | None = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_block_size is not None and self.mask_block_size < 1:
            raise StatisticsError(
                f"Expected a mask block size of at least 1 column, got {self.mask_block_size}."
            )

    def _prune_layers(self, task: LayerTask) -> PruneResult:
        hessians, weights = task.hessians, task.weights
        masks, updated, increases = self._run(task)  # the factors are released before the check
        updated, rejected = limit_layer_updates("SparseGPT", hessians, weights, masks, updated)
        increases |= {name: hessians[name].damped_error(updated[name] - weights[name]) for name in rejected}
        return PruneResult(updated, masks, sum(increases.values()))

    def _run(self, task: LayerTask) -> tuple[MaskDict, Params, dict[str, float]]:
        """The masks, the updated weights, and the predicted increase of the error of each layer."""
        scope, weights = task.scope, task.weights
        pruners = {
            name: ColumnPruner(name, weights[name], hessian) for name, hessian in task.hessians.items()
        }
        if self.mask_block_size is None or scope.ranks_layers_together:
            scores = {name: pruner.scores() for name, pruner in pruners.items()}
            masks = scope.select(scores, task.density, task.within, derive_seed(task.seed, "once"))
            for name, pruner in pruners.items():
                pruner.run(pruner.num_columns, partial(_columns_of, to_matrix(masks[name])))
        else:
            step = scope.column_step(self.mask_block_size)
            densities = densities_by_name(task.density, list(weights))
            for name, pruner in pruners.items():
                before = to_matrix(task.masks[name])
                counts = scope.column_counts(before, densities[name], step, name)
                within = None if task.within is None else before
                pruner.run(step, select_columns(name, scope, counts, step, within, task.seed))
            masks = {name: pruner.as_weight(pruner.mask) for name, pruner in pruners.items()}
            warn_if_empty(masks)
        updated = {name: pruner.as_weight(pruner.w) for name, pruner in pruners.items()}
        return masks, updated, {name: pruner.predicted_increase for name, pruner in pruners.items()}


def _columns_of(mask: Tensor, first: int, end: int, scores: Tensor) -> Tensor:
    """The selection of masks that are known already."""
    return mask[:, first:end]


def select_columns(
    name: str, scope: Scope, counts: list[int], step: int, within: Tensor | None, seed: int
) -> SelectColumns:
    """The selection of `scope` among `step` columns at a time.

    Args:
        name: Of the weight; ties depend on it.
        scope: The pattern of the columns.
        counts: The number of weights to keep of each `step` columns.
        step: Number of columns at a time.
        within: [O, D], the earlier mask of the layer's matrix, or None.
        seed: Seed of ties.

    Returns:
        The function (first column, end, scores) -> mask.
    """

    def select(first: int, end: int, scores: Tensor) -> Tensor:
        count = counts[first // step]
        if not count:
            return torch.zeros_like(scores, dtype=torch.bool)
        check_finite({name: scores}, "The score of")
        part = None if within is None else within[:, first:end]
        return scope.select_count(name, scores, count, part, derive_seed(seed, "columns", first))

    return select


class ColumnPruner:
    """One layer while it is pruned; columns are stored as rows, [G, D, R], so that each is contiguous."""

    def __init__(self, name: str, weight: Tensor, hessian: LayerHessian) -> None:
        self.original, self.num_columns = weight, hessian.hessian.shape[1]
        groups = range(len(hessian.hessian))
        self.upper = torch.stack([_upper_factor(name, hessian, group, weight.dtype) for group in groups])
        self.w = self._by_column(to_matrix(weight)).clone(memory_format=torch.contiguous_format)
        self.errors = torch.zeros_like(self.w)
        self.mask = torch.zeros_like(self.w, dtype=torch.bool)
        self.predicted_increase = 0.0

    def run(self, step: int, select: SelectColumns) -> None:
        """Select masks of `step` columns at a time and update, from the first column to the last.

        Args:
            step: Columns at a time.
            select: Selects the mask of these columns.
        """
        self._run_columns(0, self.num_columns, step, select)
        self.w.masked_fill_(~self.mask, 0.0)
        norms = torch.linalg.vector_norm(self.errors, dim=2).double()
        self.predicted_increase = float(norms.square().sum()) / 2

    def _run_columns(self, first: int, end: int, step: int, select: SelectColumns | None) -> None:
        """Prune columns that have compensated for those before `first`; None: masks are selected already."""
        width = end - first
        if select and width <= step:
            mask = self._by_column(select(first, end, self._matrix(self._scores(first, end))))
            self.mask[:, first:end], self.errors[:, first:end] = mask, ~mask
            select = None
        if width == 1:
            # Until now 1 where pruned, else 0. Pruned weights are set to zero at the end, for all columns at once.
            self.errors[:, first].mul_(self.w[:, first] / self.upper[:, first, first, None])
            return
        unit = step if select else 1
        middle = first + max(1, width // 2 // unit) * unit
        self._run_columns(first, middle, step, select)
        self.w[:, middle:end].baddbmm_(
            self.upper[:, first:middle, middle:end].mT, self.errors[:, first:middle], alpha=-1
        )
        self._run_columns(middle, end, step, select)

    def _scores(self, first: int, end: int) -> Tensor:
        pivots = self.upper.diagonal(dim1=1, dim2=2)[:, first:end, None]
        return (self.w[:, first:end] / pivots).square() / 2

    def scores(self) -> Tensor:
        """One score per weight as the weights are now, of the weight's shape."""
        return self.as_weight(self._scores(0, self.num_columns))

    def as_weight(self, columns: Tensor) -> Tensor:
        """[G, D, R] -> the shape of the weight."""
        return from_matrix(self._matrix(columns), self.original).contiguous()

    def _matrix(self, columns: Tensor) -> Tensor:
        """[G, D, R] -> [O, D]."""
        return columns.mT.flatten(0, 1)

    def _by_column(self, matrix: Tensor) -> Tensor:
        """[O, D] -> [G, D, R]."""
        return matrix.reshape(len(self.upper), -1, matrix.shape[1]).mT


def _upper_factor(name: str, hessian: LayerHessian, group: int, dtype: torch.dtype) -> Tensor:
    """U with UᵀU = (H + λ I)⁻¹: the inverse of the reversed factor, reversed again."""
    factor = cholesky(name, hessian, group, reverse=True)
    _invert_triangle(factor)
    factor = factor.to(dtype)  # releases the factor in float64
    return factor.flip(0, 1)


def _invert_triangle(lower: Tensor) -> None:
    """Invert a lower triangle in place, by halves: a third of the work of solving for the identity."""
    size = len(lower)
    if size <= MAX_SOLVED_COLUMNS:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    for part in torch.split(below, STRIPE_ROWS, dim=1):  # in parts, so that copies are small
        part.copy_(torch.linalg.solve_triangular(last, part, upper=False))
    for part in torch.split(below, STRIPE_ROWS):
        part.copy_(torch.linalg.solve_triangular(first, part, upper=False, left=False).neg_())
    _invert_triangle(first)
    _invert_triangle(last)
