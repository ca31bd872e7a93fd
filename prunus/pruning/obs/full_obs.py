"""Optimal Brain Surgeon: prune the weight whose removal costs least, and update all others to compensate for it.

    L_q = w_q² / (2 [H⁻¹]_qq)              δw = -w_q / [H⁻¹]_qq · H⁻¹ e_q
    several, S, at once:                   L = ½ w_Sᵀ ([H⁻¹]_SS)⁻¹ w_S,   δw = -H⁻¹_:S ([H⁻¹]_SS)⁻¹ w_S

The inverse for the remaining weights follows without inverting again: H⁻¹ - H⁻¹_:S ([H⁻¹]_SS)⁻¹ H⁻¹_S:.
The Hessian at a minimum is a sum of outer products, and its inverse follows from a recursion:

    H = (1/N) Σ_n Σ_c X_nc X_ncᵀ          X_n = (do_n/dw)ᵀ R_n,  R_n R_nᵀ = the loss's Hessian by the outputs
    H_0⁻¹ = α⁻¹ I                         H_m+1⁻¹ = H_m⁻¹ - H_m⁻¹ X (N I + Xᵀ H_m⁻¹ X)⁻¹ Xᵀ H_m⁻¹

For squared error X is a column of the Jacobian per output; for cross-entropy the columns are weighted by R. The part
that is left out, Σ (dE/do) d²o/dw², vanishes where the network fits (Gauss-Newton).

Source: Hassibi & Stork 1993 (L_q, δw; section 3: H⁻¹ by outer products, α as damping from 1e-8 to 1e-4), one vector at
a time (Sherman-Morrison); several at a time (Woodbury) give the same matrix up to rounding. The downdated inverse as
Frantar & Alistarh 2022 use it.
Also called: OBS. With α far below the curvature, weights whose derivatives depend on those of others cost nothing.
Differences from the paper: the inverse is downdated between examinations, where the paper computes it again after every
removal; `prune_in_steps(..., num_steps=None, num_recomputations=the number of weights to prune)` does that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from prunus.data.examples import iter_tensors
from prunus.errors import ModelError, NonFiniteError, StatisticsError, reason_of
from prunus.pruning.calibration_checks import check_nonzero
from prunus.pruning.masks import check_finite
from prunus.pruning.obs.method import LossMethod, check_damping
from prunus.pruning.obs.objective import Objective, flatten_weights, unflatten_weights
from prunus.pruning.obs.state import Examine, PruningState
from prunus.pruning.progress import tracked
from prunus.pruning.scopes import Scope
from prunus.types import Density, MaskDict, Params, Progress, Scores

BATCH_SIZE = 32
"""Examples whose Jacobians are in memory at once."""
BLOCK_SIZE = 32
"""Vectors by which the inverse is updated at once."""
MAX_WEIGHTS = 16_384
"""A full inverse of this many weights takes 2 GiB in float64."""


@dataclass(frozen=True, kw_only=True)
class FullObsState(PruningState):
    """Weights and masks, and the inverse Hessian of the remaining weights."""

    inverse: Tensor
    """[P, P] in float64 over all weights in their order; zero in the rows and columns of pruned weights."""

    def scores(self) -> Scores:
        """L_q of every remaining weight; 0 for the others."""
        w, remaining = flatten_weights(self.weights).double(), flatten_weights(self.masks)
        pivots = torch.where(remaining, self.inverse.diagonal(), 1.0)
        return unflatten_weights(torch.where(remaining, w.square() / (2 * pivots), 0.0), self.weights)

    def _prune_to(self, masks: MaskDict) -> "FullObsState":
        """Prune jointly, and move the remaining weights to the minimum of the quadratic model."""
        pruned = (flatten_weights(self.masks) & ~flatten_weights(masks)).nonzero().squeeze(1)
        if not len(pruned):
            return self
        w, columns = flatten_weights(self.weights).double(), self.inverse[:, pruned]
        factor, failed = torch.linalg.cholesky_ex(columns[pruned])
        if failed:
            raise NonFiniteError(
                f"The inverse Hessian of {len(pruned)} weights to prune is not positive with damping {self.damping}; "
                "use a larger damping, or more steps."
            )
        solved = torch.cholesky_solve(w[pruned].unsqueeze(1), factor).squeeze(1)
        updated = w - columns @ solved
        inverse = self.inverse - columns @ torch.cholesky_solve(columns.T, factor)
        updated[~flatten_weights(masks)] = 0.0
        inverse[pruned], inverse[:, pruned] = 0.0, 0.0
        weights = {
            name: tensor.to(self.weights[name].dtype)
            for name, tensor in unflatten_weights(updated, self.weights).items()
        }
        check_finite(weights, "The updated weight")
        increase = self.predicted_increase + float(w[pruned] @ solved) / 2
        return replace(self, weights=weights, masks=masks, inverse=inverse, predicted_increase=increase)


@dataclass(frozen=True, kw_only=True)
class FullObs(LossMethod):
    """OBS with the inverse Hessian of the whole network, for networks of up to 16,384 weights.

    Args:
        damping: α, absolute; it is reported, and no other is ever added.
        num_examples: Calibration examples.
        num_steps: Steps of equal size; the inverse is recomputed before each.

    Raises:
        StatisticsError: A number out of range.

    >>> from prunus.pruning.obs.state import prune_in_steps
    >>> from prunus.pruning.obs.objective import make_objective
    >>> from prunus.pruning.scopes import Global
    >>> w = {"weight": torch.tensor([[1.0, 1.0]])}
    >>> x, d = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[2.0], [4.0]])
    >>> objective = make_objective(torch.nn.Linear(2, 1, bias=False), w, x, d, loss="squared_error")
    >>> pruned = prune_in_steps(FullObs().examiner(objective), w, 0.5, Global()).weights["weight"]
    >>> sorted(round(v, 3) for v in pruned.flatten().tolist())
    [0.0, 2.0]
    """

    summary: ClassVar[str] = (
        "OBS with the inverse Hessian of the whole network, up to 16,384 weights, with an update of the remaining "
        "weights."
    )
    damping: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping, self.summary)

    def check(self, weights: Params, density: Density, scope: Scope) -> None:
        """As `PruningMethod.check`, and the number of weights.

        Args:
            weights: The weights to prune, all layers together.
            density: The density to reach.
            scope: Which weights are ranked together.

        Raises:
            ModelError: There are more weights than a full inverse can hold.
            DensityError: The scope cannot reach the density, or one of those that the steps pass through.
        """
        check_num_weights(sum(weight.numel() for weight in weights.values()))
        super().check(weights, density, scope)

    def examiner(self, objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Examine:
        """The function (weights, masks) -> FullObsState for this objective.

        Args:
            objective: The network, the weights to choose from (biases too where they are named), and the examples.
            seed: Unused.
            progress: Called after each batch of examples.

        Returns:
            The function; it raises what `inverse_hessian` raises, and StatisticsError where all curvature by a layer is
            zero.

        Raises:
            ModelError: More weights than a full inverse can hold.
        """
        check_num_weights(len(flatten_weights(objective.weights)))

        def examine(weights: Params, masks: MaskDict) -> FullObsState:
            masks = {name: masks[name] for name in objective.weights}  # flattened in one order
            remaining, current = flatten_weights(masks), objective.replace_weights(weights)
            has_curvature, num_examples = torch.zeros_like(remaining), len(current.examples)

            def vectors() -> Iterator[Tensor]:
                total = -(-num_examples // BATCH_SIZE)
                factors = gauss_newton_factors(current)
                for x in tracked(factors, "batches of the inverse Hessian", progress, total):
                    has_curvature.logical_or_(x.any(0))
                    # Without a derivative, the row and column of a pruned weight are those of the damping alone.
                    yield x * remaining

            inverse = inverse_hessian(vectors(), num_examples, self.damping)
            check_nonzero(unflatten_weights(has_curvature, current.weights), masks, "The curvature by")
            inverse[~remaining], inverse[:, ~remaining] = 0.0, 0.0
            return FullObsState(weights=current.weights, masks=masks, inverse=inverse, damping=self.damping)

        return examine


def gauss_newton_factors(objective: Objective) -> Iterator[Tensor]:
    """Yield the vectors X of the examples, in float64, [B · C, P] per batch."""

    def outputs(w: Tensor, *tensors: Tensor) -> Tensor:
        weights = unflatten_weights(w, objective.weights)
        return objective.outputs(weights, objective.batch_of_one(tensors)).squeeze(0)

    w = flatten_weights(objective.weights)
    loss = objective.differentiable_loss
    for batch, targets in objective.labeled_batches(BATCH_SIZE):
        tensors = list(iter_tensors(batch))
        in_dims = (None, *(0 for _ in tensors))
        try:
            jacobian = vmap(jacrev(outputs), in_dims=in_dims)(w, *tensors).detach()
        except RuntimeError as error:
            raise ModelError(
                f"The outputs of {type(objective.model).__name__} cannot be differentiated for several examples at "
                f"once ({reason_of(error)[:80]}); choose another method, such as fisher."
            ) from error
        with torch.no_grad():
            root = loss.hessian_root(objective.outputs(objective.weights, batch), targets)
        yield torch.einsum("bcp,bcd->bdp", jacobian, root.to(jacobian.dtype)).reshape(-1, len(w)).double()


def inverse_hessian(
    vectors: Iterable[Tensor], num_examples: int, damping: float, block_size: int = BLOCK_SIZE
) -> Tensor:
    """(α I + (1/N) Σ X Xᵀ)⁻¹ by the recursion.

    Args:
        vectors: Any number of batches [M, P] of vectors X.
        num_examples: N.
        damping: α > 0; it keeps the inverse finite where the vectors span less than all weights.
        block_size: Vectors by which the inverse is updated at once.

    Returns:
        [P, P] in float64.

    Raises:
        StatisticsError: α out of range, or no vectors.
        ModelError: More weights than a full inverse can hold.
        NonFiniteError: The vectors are not finite, or α is so small that the inverse is rounding.

    >>> inverse_hessian([torch.tensor([[1.0, 0.0]])], num_examples=1, damping=0.5)
    tensor([[0.6667, 0.0000],
            [0.0000, 2.0000]], dtype=torch.float64)
    """
    if not 0 < damping < float("inf"):
        raise StatisticsError(
            f"Expected a damping of the inverse Hessian above 0, such as 1e-6, got {damping}."
        )
    inverse: Tensor | None = None
    for batch in vectors:
        if inverse is None:
            check_num_weights(batch.shape[1])
            inverse = torch.eye(batch.shape[1], dtype=torch.float64, device=batch.device) / damping
        for x in torch.split(batch.double(), block_size):
            rows = x @ inverse
            inner = rows @ x.T
            inner.diagonal().add_(num_examples)
            inverse -= rows.T @ torch.linalg.solve(inner, rows)
        # Rounding breaks the symmetry little by little.
        inverse = (inverse + inverse.T) / 2
    if inverse is None:
        raise StatisticsError("Expected at least one example for the inverse Hessian, got none.")
    if not torch.isfinite(inverse).all() or not (inverse.diagonal() > 0).all():
        raise NonFiniteError(
            f"The inverse Hessian of {len(inverse)} weights is not positive after {num_examples} examples with damping "
            f"{damping}; use a larger damping."
        )
    return inverse


def check_num_weights(num_weights: int) -> None:
    """Raise ModelError for more weights than a full inverse can hold."""
    if num_weights > MAX_WEIGHTS:
        raise ModelError(
            f"Expected at most {MAX_WEIGHTS:,} weights for a full inverse Hessian, got {num_weights:,}, which would "
            f"take {num_weights**2 * 8 / 2**30:,.0f} GiB; exclude some by name."
        )
