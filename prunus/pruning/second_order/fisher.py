"""WoodFisher: Optimal Brain Surgeon with the empirical Fisher for the Hessian, in blocks, for networks of any size.

    F = λI + (1/N) Σ_n g_n g_nᵀ     g_n the gradient of example n's loss; zero between weights of two blocks
    score of w_q                    w_q² / (2 [F⁻¹]_qq)
    S deleted, in each block        δw = -F⁻¹_:S ([F⁻¹]_SS)⁻¹ w_S = F_LL⁻¹ F_LS w_S on what is left, L
    predicted increase              ½ w_Sᵀ ([F⁻¹]_SS)⁻¹ w_S = ½ δwᵀ F δw

The inverse of what is left, [F_LL]⁻¹, is the downdated inverse of OBS; it is computed from F, which every surgeon of
one look shares, so that deleting in many steps adds up no rounding.

Source: Singh & Alistarh 2020 (WoodFisher; F and its blocks); Kurtic et al. 2022 (oBERT; blocks of 50, 1024
gradients, λ of 1e-7 or from a grid of 1e-4 to 1e-8, F looked at anew several times within one pruning step).
Also called: oBERT, oBS for BERT; block 1 is the diagonal Fisher, with which nothing is moved.
Where we depart: a gradient is of one example, where the papers' are of small batches, which makes F larger and asks
for more damping: ours is the upper end of oBERT's grid. F is summed in float64 and factorized, where they update F⁻¹
one gradient after the other in float32; what is deleted of a block is deleted jointly, where oBERT's program adds up
the moves as if each weight went alone. The cuts of `operate` are of equal size, where oBERT's are equal in ratio.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prunus.errors import DensityError, StatisticsError
from prunus.masks import apply_masks, are_nested
from prunus.pruning.calibration_checks import check_nonzero
from prunus.pruning.masks import check_finite
from prunus.pruning.second_order.empirical_fisher import (
    CHUNK,
    damped_cholesky,
    empirical_fisher,
    from_blocks,
    to_blocks,
)
from prunus.pruning.second_order.objective import Objective
from prunus.pruning.second_order.pruning_state import PruningMethod
from prunus.types import MaskDict, Params, Progress, Scores

BLOCK = 50
DAMPING = 1e-4
BATCH = 32
"""Examples whose gradients are in memory at once."""


@dataclass(frozen=True)
class FisherState:
    """Weights, what is left of them, and the Fisher where they were looked at."""

    weights: Params
    masks: MaskDict
    fisher: Params
    """[blocks, block, block] in float64, without damping; those of deleted weights are never used."""
    pivots: Params
    """[F_LL⁻¹]_qq in float64 over the weights that are left; 1 for the others."""
    damping: float
    predicted: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def scores(self) -> Scores:
        """w_q² / (2 [F⁻¹]_qq) of every weight that is left; 0 for the others."""
        return {
            name: torch.where(self.masks[name], w.double().square() / (2 * self.pivots[name]), 0.0)
            for name, w in self.weights.items()
        }

    def keep(self, masks: MaskDict) -> "FisherState":
        """Delete what `masks` do not keep, jointly in each block, and move the rest of the block.

        Raises DensityError where `masks` bring a weight back, NonFiniteError where a weight leaves its dtype.
        """
        if not are_nested(masks, self.masks):
            raise DensityError(
                "A mask keeps a weight that was deleted before; a deleted weight does not come back."
            )
        weights, pivots, cost = {}, {}, 0.0
        for name, w in self.weights.items():
            weights[name], pivots[name] = w, self.pivots[name]
            if not torch.equal(masks[name], self.masks[name]):
                moved = _cut(self, name, masks[name])
                weights[name], pivots[name] = moved.weights.to(w.dtype), moved.pivots
                cost += moved.cost
        check_finite(weights, "The updated weight")
        return replace(self, weights=weights, masks=masks, pivots=pivots, predicted=self.predicted + cost)


@dataclass(frozen=True)
class _Moved:
    weights: Tensor
    pivots: Tensor
    cost: float


def _cut(surgeon: FisherState, name: str, mask: Tensor) -> _Moved:
    """One tensor after deleting what `mask` does not keep; only blocks that lose a weight are worked on."""
    fisher, like, damping = surgeon.fisher[name], surgeon.weights[name], surgeon.damping
    width = fisher.shape[1]
    w, pivots, left = (
        to_blocks(part.flatten(), width) for part in (like.double(), surgeon.pivots[name], mask)
    )
    touched = (to_blocks(surgeon.masks[name].flatten(), width) & ~left).any(1).nonzero().squeeze(1)
    w, pivots, cost = w.clone(), pivots.clone(), 0.0
    for at in torch.split(touched, max(1, CHUNK // width**2)):
        here, stay, before = fisher[at], left[at].double(), w[at]
        factor = damped_cholesky(here, stay, damping, name)
        # F_LS w_S; damping stands on the diagonal alone and has no part in it.
        pull = torch.bmm(here, (before * (1 - stay)).unsqueeze(2)) * stay.unsqueeze(2)
        w[at] = torch.where(stay > 0, before + torch.cholesky_solve(pull, factor).squeeze(2), 0.0)
        move = w[at] - before
        cost += float((torch.bmm(here, move.unsqueeze(2)).squeeze(2) * move).sum() / 2)
        cost += damping * float(move.square().sum()) / 2
        pivots[at] = _pivots(factor, stay)
    return _Moved(from_blocks(w, like), from_blocks(pivots, like), cost)


def _pivots(factor: Tensor, left: Tensor) -> Tensor:
    """The diagonal of the inverse, 1 for weights that are not left: [n, block]."""
    return torch.where(left > 0, torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2), 1.0)


def fisher(
    asked: Objective,
    *,
    block: int = BLOCK,
    damping: float = DAMPING,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> PruningMethod:
    """The surgeon with the inverse of the blockwise empirical Fisher of `asked`.

    Args:
        asked: the network, the weights to choose from, the examples, of which each gives a gradient.
        block: how many consecutive weights of a tensor are seen together; at least 1.
        damping: λ, absolute; it is what a surgeon reports, and no other is ever added. The smaller it is, the further
            weights move where few examples look, and the more a second look is worth.
        batch: of how many examples the gradients are in memory at once.
        progress: called after each batch of gradients.

    Raises StatisticsError (block, damping or batch out of range); when it looks, what `empirical_fisher` raises,
    StatisticsError where all gradients by a layer are zero, and NonFiniteError where λ is too small for a block to be
    inverted.

    >>> from torch import nn
    >>> from prunus.pruning.scopes import global_
    >>> from prunus.pruning.second_order.objective import make_objective
    >>> from prunus.pruning.second_order.pruning_state import prune_weights
    >>> w = {"weight": torch.tensor([[1.0, 1.0]])}
    >>> x, d = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[3.0], [3.0]])
    >>> asked = make_objective(nn.Linear(2, 1, bias=False), w, x, d, loss="squared_error")
    >>> sorted(round(v, 3) for v in prune_weights(fisher(asked), w, 0.5, global_).weights["weight"].flatten().tolist())
    [0.0, 2.0]
    """
    if block < 1 or batch < 1 or not 0 < damping < float("inf"):
        raise StatisticsError(
            f"The Fisher was asked for in blocks of {block} with damping {damping} and {batch} examples at once; "
            "blocks and examples must be at least 1, damping above 0 and finite, as in 1e-4."
        )

    def examine(weights: Params, masks: MaskDict) -> FisherState:
        here = asked.at(apply_masks(weights, masks))
        found = empirical_fisher(here, block, batch, progress)
        check_nonzero(found, masks, "The gradient by")
        pivots = {}
        for name, blocks in found.items():
            left = to_blocks(masks[name].flatten(), blocks.shape[1]).double()
            step = max(1, CHUNK // blocks.shape[1] ** 2)
            parts = [
                _pivots(damped_cholesky(part, stay, damping, name), stay)
                for part, stay in zip(torch.split(blocks, step), torch.split(left, step), strict=True)
            ]
            pivots[name] = from_blocks(torch.cat(parts), here.weights[name])
        return FisherState(here.weights, masks, found, pivots, damping)

    return examine
