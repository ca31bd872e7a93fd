"""WoodFisher: Optimal Brain Surgeon with the empirical Fisher for the Hessian, in blocks, for networks of any size.

    F = λI + (1/N) Σ_n g_n g_nᵀ     g_n the gradient of example n's loss; zero between weights of two blocks
    score of w_q                    w_q² / (2 [F⁻¹]_qq)
    S pruned, in each block         δw = -F⁻¹_:S ([F⁻¹]_SS)⁻¹ w_S = F_LL⁻¹ F_LS w_S on the remaining weights L
    predicted increase              ½ w_Sᵀ ([F⁻¹]_SS)⁻¹ w_S = ½ δwᵀ F δw

A block is `block_size` consecutive weights of a tensor as it is flattened (of a row, then the next), and never of two
tensors; the last block is filled up with weights that have no gradient. The inverse for the remaining weights,
[F_LL]⁻¹, is the downdated inverse of OBS; it is computed from F, which all states of one examination share, so that
pruning in many steps adds up no rounding.

Source: Singh & Alistarh 2020 (WoodFisher), sections 3 and 4 (F and its blocks); Kurtic et al. 2022 (oBERT; blocks of
50, 1024 gradients, λ of 1e-7 or from a grid of 1e-4 to 1e-8, F recomputed several times within one pruning step).
Also called: oBERT, oBS for BERT; block size 1 is the diagonal Fisher, with which no weight is updated.
Differences from the papers: a gradient is of one example, where the papers' are of small batches, which makes F larger
and needs more damping: ours is the upper end of oBERT's grid. F is summed in float64 and factorized, where they update
F⁻¹ one gradient after the other in float32; weights of a block are pruned jointly, where oBERT's program adds up the
updates as if each weight were pruned alone. Steps are of equal size, where oBERT's are equal in ratio.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from prunus.data.examples import iter_tensors
from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.masks import apply_masks
from prunus.pruning.calibration_checks import check_nonzero, run_forward
from prunus.pruning.masks import check_finite
from prunus.pruning.obs.method import LossMethod, check_damping
from prunus.pruning.obs.objective import Objective
from prunus.pruning.obs.state import Examine, PruningState
from prunus.pruning.progress import tracked
from prunus.types import MaskDict, Params, Progress, Scores

MAX_FISHER_BYTES = 2**34
"""43 million weights in blocks of 50."""
CHUNK_ENTRIES = 2**18
"""Entries of the blocks that are processed at once: 2 MiB in float64, which fits a cache."""


@dataclass(frozen=True, kw_only=True)
class FisherState(PruningState):
    """Weights and masks, and the Fisher at the weights that were examined."""

    fisher: Params
    """[blocks, block, block] in float64, without damping; entries of pruned weights are never used."""
    pivots: Params
    """[F_LL⁻¹]_qq in float64 over the remaining weights; 1 for the others."""

    def scores(self) -> Scores:
        """w_q² / (2 [F⁻¹]_qq) of every remaining weight; 0 for the others."""
        return {
            name: torch.where(self.masks[name], w.double().square() / (2 * self.pivots[name]), 0.0)
            for name, w in self.weights.items()
        }

    def _prune_to(self, masks: MaskDict) -> "FisherState":
        weights, pivots, increase = dict(self.weights), dict(self.pivots), 0.0
        for name, w in self.weights.items():
            if not torch.equal(masks[name], self.masks[name]):
                updated, pivots[name], tensor_increase = _prune_tensor(self, name, masks[name])
                weights[name] = updated.to(w.dtype)
                increase += tensor_increase
        check_finite(weights, "The updated weight")
        increase += self.predicted_increase
        return replace(self, weights=weights, masks=masks, pivots=pivots, predicted_increase=increase)


def _prune_tensor(state: FisherState, name: str, mask: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights, pivots and predicted increase of a tensor after pruning; only blocks that lose a weight are updated."""
    fisher, old_weights, damping = state.fisher[name], state.weights[name], state.damping
    size = fisher.shape[1]
    w, pivots, remaining = (
        to_blocks(part.flatten(), size) for part in (old_weights.double(), state.pivots[name], mask)
    )
    changed = (to_blocks(state.masks[name].flatten(), size) & ~remaining).any(1).nonzero().squeeze(1)
    w, pivots, increase = w.clone(), pivots.clone(), 0.0
    for chunk in torch.split(changed, max(1, CHUNK_ENTRIES // size**2)):
        blocks, is_kept, before = fisher[chunk], remaining[chunk].double(), w[chunk]
        factor = damped_cholesky(blocks, is_kept, damping, name)
        # F_LS w_S; damping is on the diagonal alone and has no part in it.
        product = torch.bmm(blocks, (before * (1 - is_kept)).unsqueeze(2)) * is_kept.unsqueeze(2)
        w[chunk] = torch.where(is_kept > 0, before + torch.cholesky_solve(product, factor).squeeze(2), 0.0)
        change = w[chunk] - before
        increase += float((torch.bmm(blocks, change.unsqueeze(2)).squeeze(2) * change).sum() / 2)
        increase += damping * float(change.square().sum()) / 2
        pivots[chunk] = _pivots(factor, is_kept)
    return from_blocks(w, old_weights), from_blocks(pivots, old_weights), increase


def _pivots(factor: Tensor, remaining: Tensor) -> Tensor:
    """The diagonal of the inverse, 1 for weights that do not remain: [n, block]."""
    return torch.where(remaining > 0, torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2), 1.0)


@dataclass(frozen=True, kw_only=True)
class Fisher(LossMethod):
    """OBS with the inverse of the blockwise empirical Fisher.

    Args:
        block_size: Number of consecutive weights of a tensor whose covariance is used; at least 1.
        damping: λ, absolute; it is reported, and no other is ever added. The smaller it is, the further weights with
            few informative examples are moved, and the more a recomputation in several steps improves.
        batch_size: Number of examples whose gradients are in memory at once.
        num_examples: Calibration examples, each of which gives one gradient.
        num_steps: Steps of equal size; the Fisher is recomputed before each.

    Raises:
        StatisticsError: A number out of range.

    >>> from prunus.pruning.obs.state import prune_in_steps
    >>> from prunus.pruning.obs.objective import make_objective
    >>> from prunus.pruning.scopes import Global
    >>> w = {"weight": torch.tensor([[1.0, 1.0]])}
    >>> x, d = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[3.0], [3.0]])
    >>> objective = make_objective(torch.nn.Linear(2, 1, bias=False), w, x, d, loss="squared_error")
    >>> pruned = prune_in_steps(Fisher().examiner(objective), w, 0.5, Global()).weights["weight"]
    >>> sorted(round(v, 3) for v in pruned.flatten().tolist())
    [0.0, 2.0]
    """

    summary: ClassVar[str] = (
        "OBS with the blockwise empirical Fisher (WoodFisher, oBERT), with an update of the remaining weights."
    )
    block_size: int = 50
    damping: float = 1e-4
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping, self.summary)
        if self.block_size < 1 or self.batch_size < 1:
            raise StatisticsError(
                f"Expected a block size and a batch size of at least 1 for the Fisher, got {self.block_size} and "
                f"{self.batch_size}."
            )

    def examiner(self, objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Examine:
        """The function (weights, masks) -> FisherState for this objective.

        Args:
            objective: The network, the weights to choose from, and the examples.
            seed: Unused.
            progress: Called after each batch of gradients.

        Returns:
            The function; it raises what `empirical_fisher` raises, StatisticsError where all gradients by a layer are
            zero, and NonFiniteError where λ is too small for a block to be inverted.
        """

        def examine(weights: Params, masks: MaskDict) -> FisherState:
            current = objective.replace_weights(apply_masks(weights, masks))
            fisher = empirical_fisher(current, self.block_size, self.batch_size, progress)
            check_nonzero(fisher, masks, "The gradient by")
            pivots = {}
            for name, blocks in fisher.items():
                remaining = to_blocks(masks[name].flatten(), blocks.shape[1]).double()
                chunk = max(1, CHUNK_ENTRIES // blocks.shape[1] ** 2)
                parts = [
                    _pivots(damped_cholesky(part, is_kept, self.damping, name), is_kept)
                    for part, is_kept in zip(
                        torch.split(blocks, chunk), torch.split(remaining, chunk), strict=True
                    )
                ]
                pivots[name] = from_blocks(torch.cat(parts), current.weights[name])
            return FisherState(
                weights=current.weights, masks=masks, fisher=fisher, pivots=pivots, damping=self.damping
            )

        return examine


def per_example_gradients(objective: Objective, batch_size: int) -> Iterator[Params]:
    """Yield the gradient of every example's own loss by each weight, [B, ...], `batch_size` examples at a time.

    Args:
        objective: The network, its weights and the examples.
        batch_size: Examples whose gradients are in memory at once.

    Yields:
        {name: gradients}
    """

    def error(weights: Params, *tensors: Tensor) -> Tensor:
        return objective.error(weights, objective.batch_of_one(tensors))

    for batch in objective.examples.batches(batch_size):
        tensors = list(iter_tensors(batch))
        try:
            in_dims = (None, *(0 for _ in tensors))
            gradients = vmap(grad(error), in_dims=in_dims)(objective.weights, *tensors)
        except RuntimeError:  # a forward that depends on values, or has a function of its own, takes no vmap
            each = [_gradients_of_one(objective, example) for example in zip(*tensors, strict=True)]
            gradients = {name: torch.stack([g[name] for g in each]) for name in objective.weights}
        yield {name: g.detach() for name, g in gradients.items()}


@torch.enable_grad()
def _gradients_of_one(objective: Objective, tensors: Sequence[Tensor]) -> Params:
    """The gradients for one example, {name: [...]}, without functorch."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in objective.weights.items()}
    error = run_forward(objective.model, objective.batch_of_one(tensors), partial(objective.error, leaves))
    values = torch.autograd.grad(error, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, values, strict=True))


def to_blocks(values: Tensor, block_size: int) -> Tensor:
    """Cut the last dimension into blocks, the last filled up with zeros; a shorter dimension is one block.

    Args:
        values: [..., n]
        block_size: At least 1.

    Returns:
        [..., blocks, block]

    >>> to_blocks(torch.arange(1, 6), 3).tolist(), to_blocks(torch.arange(1, 3), 3).tolist()
    ([[1, 2, 3], [4, 5, 0]], [[1, 2]])
    """
    size = min(block_size, values.shape[-1])
    filled = F.pad(values, (0, -values.shape[-1] % size))
    return filled.reshape(*values.shape[:-1], -1, size)


def from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """[blocks, block] -> the shape of `like`, without the filling.

    Args:
        blocks: As `to_blocks` returns them.
        like: A tensor of the shape of the result.

    Returns:
        The values.
    """
    return blocks.flatten()[: like.numel()].reshape(like.shape)


def empirical_fisher(
    objective: Objective, block_size: int, batch_size: int, progress: Progress | None = None
) -> Params:
    """The mean outer product of the gradients of single examples, in blocks along the diagonal.

    Args:
        objective: The network, its weights and the examples.
        block_size: Consecutive weights per block.
        batch_size: Examples whose gradients are in memory at once.
        progress: Called after each batch.

    Returns:
        F by tensor, [blocks, block, block] in float64, without damping.

    Raises:
        ModelError: F would be larger than MAX_FISHER_BYTES.
        NonFiniteError: A gradient, or a product of two, is not finite.
    """
    sizes = [weight.numel() for weight in objective.weights.values()]
    num_bytes = 8 * sum(size * min(block_size, size) for size in sizes)
    if num_bytes > MAX_FISHER_BYTES:
        raise ModelError(
            f"Expected a Fisher of at most {MAX_FISHER_BYTES / 2**30:.0f} GiB, got {num_bytes / 2**30:,.0f} GiB for "
            f"{sum(sizes):,} weights in blocks of {block_size:,}; use smaller blocks."
        )
    fisher = {}
    for name, w in objective.weights.items():
        num_blocks, size = to_blocks(w.flatten(), block_size).shape
        fisher[name] = w.new_zeros(num_blocks, size, size, dtype=torch.float64)
    num_examples = len(objective.examples)
    batches, total = per_example_gradients(objective, batch_size), -(-num_examples // batch_size)
    for gradients in tracked(batches, "batches of gradients", progress, total):
        for name, g in gradients.items():
            _add_products(fisher[name], to_blocks(g.flatten(1), block_size))
    for name, blocks in fisher.items():
        blocks /= num_examples
        # The largest products are on the diagonal.
        if not torch.isfinite(blocks.diagonal(dim1=1, dim2=2).sum()):
            raise NonFiniteError(
                f"Expected finite squares of the gradients by {name!r} of {num_examples} examples, got others; scale "
                "the inputs or the targets to unit variance."
            )
    return fisher


def _add_products(total: Tensor, gradients: Tensor) -> None:
    """total += Σ_n g_n g_nᵀ, a chunk of blocks at a time, so that only a chunk is ever in float64."""
    step = max(1, CHUNK_ENTRIES // (len(gradients) * gradients.shape[2]))
    for first in range(0, len(total), step):
        chunk = slice(first, first + step)
        g = gradients[:, chunk].double().transpose(0, 1)
        total[chunk].baddbmm_(g.transpose(1, 2), g)


def damped_cholesky(fisher: Tensor, remaining: Tensor, damping: float, name: str) -> Tensor:
    """The Cholesky factor of λI + F over the remaining weights, and of λI elsewhere.

    Args:
        fisher: [n, block, block]
        remaining: [n, block], 1 where a weight remains, else 0.
        damping: λ.
        name: The name of the weight, for the error.

    Returns:
        [n, block, block], lower triangular.

    Raises:
        NonFiniteError: λ is within the rounding of F, (block - 1) ε times its largest entry: a factor might exist, but
            it would be rounding alone.
    """
    damped = fisher * remaining.unsqueeze(2) * remaining.unsqueeze(1)
    damped.diagonal(dim1=1, dim2=2).add_(damping)
    largest = float(damped.diagonal(dim1=1, dim2=2).max())
    rounding = (damped.shape[1] - 1) * torch.finfo(damped.dtype).eps * largest
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    if damping < rounding or failed.any():
        suggested = 10.0 ** math.ceil(math.log10(max(rounding, 2 * damping)))
        raise NonFiniteError(
            f"A block of the Fisher of {name!r} with entries up to {largest:.3g} cannot be inverted with damping "
            f"{damping:g}; try a larger one, such as {suggested:g}."
        )
    return factor
