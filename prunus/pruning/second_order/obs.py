"""Optimal Brain Surgeon: delete the weight that costs least, and move all others to where it costs so little.

    L_q = w_q² / (2 [H⁻¹]_qq)              δw = -w_q / [H⁻¹]_qq · H⁻¹ e_q
    several, S, at once:                   L = ½ w_Sᵀ ([H⁻¹]_SS)⁻¹ w_S,   δw = -H⁻¹_:S ([H⁻¹]_SS)⁻¹ w_S

The inverse of what is left follows without inverting again: H⁻¹ - H⁻¹_:S ([H⁻¹]_SS)⁻¹ H⁻¹_S:.

Source: Hassibi & Stork 1993 (L_q, δw, H⁻¹ by outer products, α as damping from 1e-8 to 1e-4); the downdated inverse
as Frantar & Alistarh 2022 use it.
Also called: OBS. With α far below the curvature, weights whose derivatives the others can stand in for cost nothing.
Where we depart: the inverse is downdated within a look, where the paper computes it anew after every deletion; ask
for `operate(..., cuts=None, looks=the number of deletions)` for that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.errors import DensityError, NonFiniteError
from prunus.masks import are_nested
from prunus.pruning.calibration_checks import check_nonzero
from prunus.pruning.masks import check_finite
from prunus.pruning.second_order.flattening import flatten_weights, unflatten_weights
from prunus.pruning.second_order.inverse_hessian import (
    BATCH,
    check_size,
    gauss_newton_factors,
    inverse_hessian,
)
from prunus.pruning.second_order.objective import Objective
from prunus.pruning.second_order.pruning_state import PruningMethod
from prunus.types import MaskDict, Params, Progress, Scores

DAMPING = 1e-6


@dataclass(frozen=True)
class ObsState:
    """Weights, what is left of them, and the inverse Hessian of what is left."""

    weights: Params
    masks: MaskDict
    inverse: Tensor
    """[P, P] in float64 over all weights in their order; zero in the rows and columns of deleted ones."""
    damping: float
    predicted: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def scores(self) -> Scores:
        """L_q of every weight that is left; 0 for the others."""
        w, pivots, left = (
            flatten_weights(self.weights).double(),
            self.inverse.diagonal(),
            flatten_weights(self.masks),
        )
        return unflatten_weights(
            torch.where(left, w.square() / (2 * torch.where(left, pivots, 1.0)), 0.0), self.weights
        )

    def keep(self, masks: MaskDict) -> "ObsState":
        """Delete what `masks` do not keep, jointly, and move the rest to the minimum of the quadratic model.

        Raises DensityError where `masks` bring a weight back, NonFiniteError where rounding has spoilt the inverse.
        """
        if not are_nested(masks, self.masks):
            raise DensityError(
                "A mask keeps a weight that was deleted before; a deleted weight does not come back."
            )
        masks = {name: masks[name] for name in self.weights}  # flat in one order
        gone = (flatten_weights(self.masks) & ~flatten_weights(masks)).nonzero().squeeze(1)
        if not len(gone):
            return self
        w, columns = flatten_weights(self.weights).double(), self.inverse[:, gone]
        factor, failed = torch.linalg.cholesky_ex(columns[gone])
        if failed:
            raise NonFiniteError(
                f"The inverse Hessian of {len(gone)} weights to delete is not positive with damping "
                f"{self.damping}; a larger damping, or more looks, keep it so."
            )
        pull = torch.cholesky_solve(w[gone].unsqueeze(1), factor).squeeze(1)
        moved, inverse = w - columns @ pull, self.inverse - columns @ torch.cholesky_solve(columns.T, factor)
        moved[~flatten_weights(masks)] = 0.0
        inverse[gone], inverse[:, gone] = 0.0, 0.0
        weights = {n: t.to(self.weights[n].dtype) for n, t in unflatten_weights(moved, self.weights).items()}
        check_finite(weights, "The updated weight")
        cost = float(w[gone] @ pull) / 2
        return ObsState(weights, masks, inverse, self.damping, self.predicted + cost)


def obs(asked: Objective, *, damping: float = DAMPING, progress: Progress | None = None) -> PruningMethod:
    """The surgeon with the full inverse Hessian of `asked`; for networks of some thousand weights.

    Args:
        asked: the network, the weights to choose from (biases too where they are named), the examples.
        damping: α, absolute; it is what a surgeon reports, and no other is ever added.
        progress: called after each batch of examples.

    Raises, when it looks, what `inverse_hessian` raises, and StatisticsError where all curvature by a layer is zero.

    >>> from torch import nn
    >>> from prunus.pruning.scopes import global_
    >>> from prunus.pruning.second_order.objective import make_objective
    >>> from prunus.pruning.second_order.pruning_state import prune_weights
    >>> model = nn.Linear(2, 1, bias=False)
    >>> w = {"weight": torch.tensor([[1.0, 1.0]])}
    >>> x, d = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[2.0], [4.0]])
    >>> done = prune_weights(obs(make_objective(model, w, x, d, loss="squared_error")), w, 0.5, global_)
    >>> sorted(round(v, 3) for v in done.weights["weight"].flatten().tolist())
    [0.0, 2.0]
    """
    check_size(len(flatten_weights(asked.weights)))

    def examine(weights: Params, masks: MaskDict) -> ObsState:
        masks = {name: masks[name] for name in asked.weights}  # flat in one order
        left, here = flatten_weights(masks), asked.at(weights)
        felt, batches = torch.zeros_like(left), -(-len(here.inputs) // BATCH)

        def vectors() -> Iterator[Tensor]:
            for batch, x in enumerate(gauss_newton_factors(here)):
                if progress and batch:
                    progress("batches of the inverse Hessian", batch, batches)
                felt.logical_or_(x.any(0))
                # A deleted weight has no derivative: its row and column are those of the damping alone, and leave.
                yield x * left

        inverse = inverse_hessian(vectors(), len(here.inputs), damping)
        if progress:
            progress("batches of the inverse Hessian", batches, batches)
        check_nonzero(unflatten_weights(felt, here.weights), masks, "The curvature by")
        inverse[~left], inverse[:, ~left] = 0.0, 0.0
        return ObsState(here.weights, masks, inverse, damping)

    return examine
