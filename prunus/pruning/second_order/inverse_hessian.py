"""The Hessian at a minimum as a sum of outer products, and its inverse by a recursion.

    H = (1/N) Σ_n Σ_c X_nc X_ncᵀ          X_n = (do_n/dw)ᵀ R_n,  R_n R_nᵀ = the loss's Hessian by the outputs
    H_0⁻¹ = α⁻¹ I                         H_m+1⁻¹ = H_m⁻¹ - H_m⁻¹ X (N I + Xᵀ H_m⁻¹ X)⁻¹ Xᵀ H_m⁻¹

For squared error X is a column of the Jacobian an output; for cross-entropy the columns are weighed by R. What
is left out, Σ (dE/do) d²o/dw², vanishes where the network fits (Gauss-Newton).

Source: Hassibi & Stork 1993, section 3: there one vector at a time (Sherman-Morrison), which is this recursion
with BLOCK = 1. Several at a time (Woodbury) give the same matrix up to rounding.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.pruning.second_order.flattening import flatten_weights, unflatten_weights
from prunus.pruning.second_order.objective import Objective

BATCH = 32
"""Examples whose Jacobians are in memory at once."""
BLOCK = 32
"""Vectors that the inverse takes in at once."""
LARGEST = 16_384
"""Weights of the largest full inverse: 2 GiB in float64."""


def gauss_newton_factors(asked: Objective) -> Iterator[Tensor]:
    """The vectors X of the examples, in float64, [B · C, P] a batch."""

    def outputs(w: Tensor, x: Tensor) -> Tensor:
        return asked.answer(unflatten_weights(w, asked.weights), x.unsqueeze(0)).squeeze(0)

    at = flatten_weights(asked.weights)
    for inputs, targets in zip(
        torch.split(asked.inputs, BATCH), torch.split(asked.targets, BATCH), strict=True
    ):
        jacobian = vmap(jacrev(outputs), in_dims=(None, 0))(at, inputs).detach()
        with torch.no_grad():
            root = asked.loss.root(asked.answer(asked.weights, inputs), targets)
        yield torch.einsum("bcp,bcd->bdp", jacobian, root).reshape(-1, len(at)).double()


def inverse_hessian(vectors: Iterable[Tensor], examples: int, damping: float, block: int = BLOCK) -> Tensor:
    """(α I + (1/N) Σ X Xᵀ)⁻¹ by the recursion, [P, P] in float64.

    Args:
        vectors: [M, P] each, as many as there are.
        examples: N.
        damping: α; what keeps the inverse finite where the vectors span less than all weights.

    Raises StatisticsError (α not above zero), ModelError (more weights than a full inverse can hold),
    NonFiniteError (the vectors, or an inverse that rounding has spoilt because α is too small for them).

    >>> inverse_hessian([torch.tensor([[1.0, 0.0]])], examples=1, damping=0.5)
    tensor([[0.6667, 0.0000],
            [0.0000, 2.0000]], dtype=torch.float64)
    """
    if not 0 < damping < float("inf"):
        raise StatisticsError(
            f"Damping {damping} was asked for the inverse Hessian; it must be above 0, as in 1e-6."
        )
    inverse: Tensor | None = None
    for chunk in vectors:
        if inverse is None:
            check_size(chunk.shape[1])
            inverse = torch.eye(chunk.shape[1], dtype=torch.float64, device=chunk.device) / damping
        for x in torch.split(chunk.double(), block):
            rows = x @ inverse
            inner = rows @ x.T
            inner.diagonal().add_(examples)
            inverse -= rows.T @ torch.linalg.solve(inner, rows)
        # Rounding breaks the symmetry little by little.
        inverse = (inverse + inverse.T) / 2
    if inverse is None:
        raise StatisticsError("The inverse Hessian was asked of no examples; pass at least one.")
    if not torch.isfinite(inverse).all() or not (inverse.diagonal() > 0).all():
        raise NonFiniteError(
            f"The inverse Hessian of {len(inverse)} weights is not positive after {examples} examples with damping "
            f"{damping}; a larger damping keeps it so."
        )
    return inverse


def check_size(weights: int) -> None:
    """Raise ModelError for more weights than a full inverse can hold."""
    if weights > LARGEST:
        raise ModelError(
            f"A full inverse Hessian of {weights:,} weights would take {weights**2 * 8 / 2**30:,.0f} GiB; "
            f"name at most {LARGEST:,} of them."
        )
