"""The schedule of SparseGPT: one factorization a layer, and columns from first to last for all rows at once.

    H + λ I = (UᵀU)⁻¹,  U upper triangular          U[c:, c:] is the same for the columns from c on alone
    at column c:    score w_c² / (2 U_cc²)           e = w_c / U_cc where deleted, 0 where kept
                    W[:, c+1:] -= e U[c, c+1:]       what a column lost, the columns after it make up for

Masks are chosen as the columns come, `select` of them at a time, from weights that have made up for those before.
How many is the scope's to say: of N:M they are M, of blocks some blocks' columns.

Source: Frantar & Alistarh 2023, "SparseGPT", section 3 and Algorithm 1 (select: its B_s = 128, M for N:M).
Where we depart: U comes from the Cholesky factor of H with its rows and columns reversed, without inverting H; the
lazy updates are made by halves of halves, which are large products, instead of in blocks of one width; what is kept
of `select` columns is rounded so that the layer keeps what its scope keeps of it; inputs are those of the network
before any layer is pruned, where theirs have passed through the layers that are pruned by then; a layer whose update
loses more of its output than zeroing is solved for again with the same mask (`layerwise.fallback`), with a warning.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.errors import DensityError, EmptyLayerWarning
from prunus.masks import all_kept, apply_masks
from prunus.pruning.layerwise.exact_obs import cholesky, layer_hessians_at
from prunus.pruning.layerwise.fallback import no_worse_than_zeroing, warn_of_rejected
from prunus.pruning.layerwise.hessian import DAMPING, LayerHessian
from prunus.pruning.masks import check_finite, densities_by_name, num_to_keep
from prunus.pruning.matrix import from_matrix, to_matrix
from prunus.pruning.scopes import Scope, check_densities_reachable, global_
from prunus.pruning.second_order.pruning_state import PruneFn, PruneResult
from prunus.seeds import derive_seed
from prunus.types import Density, MaskDict, Params, Progress

SELECT = 128
SOLVED = 128
"""Columns of a triangle that are inverted at once."""

Choose = Callable[[int, int, Tensor], Tensor]
"""(first column, end, scores [O, end - first]) -> which of them to keep."""


def sparse_gpt(
    model: nn.Module,
    inputs: Tensor,
    *,
    damping: float = DAMPING,
    select: int | None = SELECT,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> PruneFn:
    """What prunes and updates every layer alone, with calibration `inputs` [N, ...].

    Args:
        model: where the layers are; left as it is.
        inputs, damping, batch_size: as for `layer_inputs`.
        select: columns whose masks are chosen at a time: as many of them as holes fill, and at least one hole's;
            under N:M always M. None: all masks are chosen at once and before anything moves, as a scope that ranks
            layers together needs.
        progress: called after each batch of inputs and each layer.

    The result raises what `layer_inputs` and the scope raise, NonFiniteError where H is singular with this damping,
    DensityError where a scope that ranks layers together is asked to choose column by column.

    >>> from prunus.pruning.scopes import layer
    >>> model = nn.Linear(2, 1, bias=False)
    >>> prune = sparse_gpt(model, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), damping=1e-6)
    >>> prune({"weight": torch.tensor([[0.5, 1.0]])}, 0.5, layer).weights
    {'weight': tensor([[0.0000, 1.5000]])}
    """

    def prune(
        weights: Params, density: Density, scope: Scope, *, within: MaskDict | None = None, seed: int = 0
    ) -> PruneResult:
        here = weights if within is None else apply_masks(weights, within)
        found = layer_hessians_at(model, here, inputs, damping, batch_size, progress)
        return sparse_gpt_from_hessians(found, select=select, progress=progress)(
            weights, density, scope, within=within, seed=seed
        )

    return prune


def sparse_gpt_from_hessians(
    found: Mapping[str, LayerHessian], *, select: int | None = SELECT, progress: Progress | None = None
) -> PruneFn:
    """`sparse_gpt` where what the layers are given is known: from `layer_inputs`, once for many densities."""

    def prune(
        weights: Params, density: Density, scope: Scope, *, within: MaskDict | None = None, seed: int = 0
    ) -> PruneResult:
        if select is not None and scope is global_:
            raise DensityError(
                f"The global scope ranks all layers together and cannot choose {select} columns of one at a time; "
                "pass select=None, or the layer scope."
            )
        masks = within or all_kept(weights)
        weights = apply_masks({n: w.detach() for n, w in weights.items()}, masks)
        if select is None:
            done = _chosen_once(weights, found, density, scope, within, seed, progress)
        else:
            # What the scope has to say of shapes and densities comes before the work.
            check_densities_reachable(scope, weights, [density], within)
            shares, done = densities_by_name(density, list(weights)), {}
            for number, (name, weight) in enumerate(weights.items(), start=1):
                sweep = _ColumnPruner(name, weight, found[name])
                left = to_matrix(masks[name])
                step = _step(name, scope, shares[name], left, select)
                sweep.run(step, _as_they_come(name, scope, shares[name], left, within, seed))
                done[name] = sweep.finished()
                if progress:
                    progress("layers updated", number, len(weights))
        warn_of_rejected("SparseGPT", [name for name, one in done.items() if one.rejected])
        moved = {name: one.weight for name, one in done.items()}
        check_finite(moved, "The updated weight")
        return PruneResult(
            moved,
            {name: one.mask for name, one in done.items()},
            predicted=sum(one.cost for one in done.values()),
            damping=max(found[name].damping for name in weights),
            cuts=1,
            looks=1,
            seconds={name: one.seconds for name, one in done.items()},
        )

    return prune


@dataclass(frozen=True)
class _Done:
    weight: Tensor
    mask: Tensor
    cost: float
    seconds: float
    rejected: bool


def _chosen_once(
    weights: Params,
    found: Mapping[str, LayerHessian],
    density: Density,
    scope: Scope,
    within: MaskDict | None,
    seed: int,
    progress: Progress | None,
) -> dict[str, _Done]:
    """All masks at once, from the weights as they are."""
    sweeps = {name: _ColumnPruner(name, weight, found[name]) for name, weight in weights.items()}
    scores = {name: sweep.all_scores() for name, sweep in sweeps.items()}
    chosen = scope(scores, density, within, derive_seed(seed, "once"))
    done = {}
    for number, (name, sweep) in enumerate(sweeps.items(), start=1):
        sweep.run(sweep.columns, _given(to_matrix(chosen[name])))
        done[name] = sweep.finished()
        if progress:
            progress("layers updated", number, len(sweeps))
    return done


class _ColumnPruner:
    """One layer on its way: columns as rows, [G, D, R], so that each stands in one piece."""

    def __init__(self, name: str, weight: Tensor, inputs: LayerHessian) -> None:
        began = time.perf_counter()
        self.like, self.inputs = weight, inputs
        self.columns = inputs.hessian.shape[1]
        self.upper = torch.stack(
            [_upper(name, inputs, g).to(weight.dtype) for g in range(len(inputs.hessian))]
        )
        self.w = self._grouped(to_matrix(weight)).clone(memory_format=torch.contiguous_format)
        self.lost = torch.zeros_like(self.w)
        self.kept = torch.zeros_like(self.w, dtype=torch.bool)
        self.cost = 0.0
        self.seconds = time.perf_counter() - began

    def run(self, select: int, choose: Choose) -> None:
        """From the first column to the last."""
        began = time.perf_counter()
        self._span(0, self.columns, select, choose)
        self.w.masked_fill_(~self.kept, 0.0)
        self.cost = float(torch.linalg.vector_norm(self.lost, dim=2).double().square().sum()) / 2
        self.seconds += time.perf_counter() - began

    def _span(self, first: int, end: int, select: int, choose: Choose | None) -> None:
        """The columns from `first` to `end`, which have made up for those before; masks are chosen on the way."""
        width = end - first
        if choose and width <= select:
            kept = self._grouped(choose(first, end, self._matrix(self._scores(first, end))))
            self.kept[:, first:end], self.lost[:, first:end] = kept, ~kept
            choose = None
        if width == 1:
            # Until now 1 for what goes, 0 for what stays. What goes becomes zero at the end, for all columns at once.
            self.lost[:, first].mul_(self.w[:, first] / self.upper[:, first, first, None])
            return
        unit = select if choose else 1
        middle = first + max(1, width // 2 // unit) * unit
        self._span(first, middle, select, choose)
        self.w[:, middle:end].baddbmm_(
            self.upper[:, first:middle, middle:end].mT, self.lost[:, first:middle], alpha=-1
        )
        self._span(middle, end, select, choose)

    def _scores(self, first: int, end: int) -> Tensor:
        pivots = self.upper.diagonal(dim1=1, dim2=2)[:, first:end, None]
        return (self.w[:, first:end] / pivots).square() / 2

    def all_scores(self) -> Tensor:
        """A score a weight as they are now, of the weight's shape."""
        return from_matrix(self._matrix(self._scores(0, self.columns)), self.like)

    def _matrix(self, columns: Tensor) -> Tensor:
        """[G, D, R] -> [O, D]."""
        return columns.mT.flatten(0, 1)

    def _grouped(self, matrix: Tensor) -> Tensor:
        """[O, D] -> [G, D, R]."""
        return matrix.reshape(len(self.upper), -1, matrix.shape[1]).mT

    def finished(self) -> _Done:
        """What the sweep came to, without its factors."""
        began = time.perf_counter()
        mask = self.mask()
        weight, rejected = no_worse_than_zeroing(self.inputs, self.like, mask, self.weight())
        if rejected:
            damped = replace(self.inputs, hessian=self.inputs.damped())
            self.cost = damped.error(weight - self.like)
        return _Done(weight, mask, self.cost, self.seconds + time.perf_counter() - began, rejected)

    def weight(self) -> Tensor:
        """As it is now."""
        return from_matrix(self._matrix(self.w), self.like).contiguous()

    def mask(self) -> Tensor:
        """Which weights are kept."""
        return from_matrix(self._matrix(self.kept), self.like).contiguous()


def _upper(name: str, inputs: LayerHessian, group: int) -> Tensor:
    """U with UᵀU = (H + λ I)⁻¹: the inverse of the reversed factor, reversed back."""
    factor = cholesky(name, inputs, group, reverse=True)
    _invert(factor)
    return factor.flip(0, 1)


def _invert(lower: Tensor) -> None:
    """Invert a lower triangle in place, by halves: a third of the work of solving for the identity."""
    size = len(lower)
    if size <= SOLVED:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    half = size // 2
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    right = torch.linalg.solve_triangular(last, below, upper=False)
    below.copy_(torch.linalg.solve_triangular(first, right, upper=False, left=False).neg_())
    _invert(first)
    _invert(last)


def _given(mask: Tensor) -> Choose:
    return lambda first, end, scores: mask[:, first:end]


def _step(name: str, scope: Scope, density: float, left: Tensor, select: int) -> int:
    """`select`, in whole holes; the fewest columns that the scope takes where every hole has the same density."""
    columns = left.shape[1]
    fewest = next(
        (c for c in range(1, columns) if columns % c == 0 and _takes(name, scope, density, left[:, :c])),
        columns,
    )
    return max(fewest, select // fewest * fewest) if _takes(name, scope, 1.0, left) else fewest


def _takes(name: str, scope: Scope, density: float, columns: Tensor) -> bool:
    """Whether the scope gives this density of columns that are whole. N:M has no density but its own."""
    try:
        check_densities_reachable(scope, {name: columns}, [density])
    except DensityError:
        return False
    return True


def _as_they_come(
    name: str, scope: Scope, density: float, left: Tensor, within: MaskDict | None, seed: int
) -> Choose:
    """The scope's choice of some columns: in all as many weights as it keeps of the layer, evenly of what is left.

    Under a scope of one density, N:M, evenly of all, whatever is left.
    """
    # How many it keeps does not depend on the scores: any will do.
    any_scores = torch.arange(left.numel(), dtype=torch.float32, device=left.device).reshape(left.shape)
    masks = None if within is None else {name: left}
    whole = int(torch.count_nonzero(scope({name: any_scores}, density, masks)[name]))
    counted = left if _takes(name, scope, 1.0, left) else torch.ones_like(left)
    # An emptied layer has nothing to share out.
    share = whole / max(1, int(torch.count_nonzero(counted)))
    seen, kept = 0, 0

    def choose(first: int, end: int, scores: Tensor) -> Tensor:
        nonlocal seen, kept
        here = int(torch.count_nonzero(counted[:, first:end]))
        seen += here
        keep = min(num_to_keep(share, seen) - kept, here)
        if keep <= 0:
            return torch.zeros_like(left[:, first:end])
        masks = None if within is None else {name: left[:, first:end]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyLayerWarning)  # these columns are not the layer
            chosen = scope({name: scores}, keep / scores.numel(), masks, derive_seed(seed, "columns", first))[
                name
            ]
        # Of blocks it keeps whole ones: what it rounds here it makes up for in the columns that follow.
        kept += int(torch.count_nonzero(chosen))
        return chosen

    return choose
