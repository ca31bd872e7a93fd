"""An update of the kept weights is never worse than none, by the error of the layer's output.

    E(updated weights) <= E(pruned weights at zero, kept weights as they were)

Where inputs are strongly correlated, an order of columns that leaves too few to make up for the last ones, or rounding,
can break this. The kept weights of such a layer are solved for again, by conjugate gradients:

    minimize ½ (v - w)ᵀ (H + λ I) (v - w) in each row,   v zero where pruned,   from v = w where kept

Every step lowers that error, so that it is a better update whenever it is stopped. A row for which even this loses more
than zeroing (by rounding to the dtype of the weights) is zeroed.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.errors import UpdateRejectedWarning
from prunus.pruning.layerwise.hessian import LayerHessian
from prunus.pruning.matrix import from_matrix

STEPS = 200
"""Conjugate gradients at most; with damping of 1 % of the mean curvature some tens are enough."""
CONVERGED = 1e-12
"""Reduction of the squared gradient after which a row is solved."""
NEGLIGIBLE = 1e-9
"""Share of the layer's output below which losing more than zeroing is rounding, and not worth a warning."""


def no_worse_than_zeroing(
    inputs: LayerHessian, before: Tensor, mask: Tensor, updated: Tensor
) -> tuple[Tensor, bool]:
    """`updated`, and whether it was solved for again because it lost more of the output than zeroing.

    Each group of a convolution is a layer of its own here.

    Args:
        inputs: of the layer.
        before, mask, updated: of the weight's shape; the weights that the error is measured from, which of them are
            kept, and what the method made of them.

    >>> inputs = LayerHessian(torch.tensor([[[2.0, 2.0], [2.0, 2.0]]], dtype=torch.float64), 1e-9, 1, 1)
    >>> weight, mask = torch.tensor([[1.0, 1.0]]), torch.tensor([[True, False]])
    >>> fixed, rejected = no_worse_than_zeroing(inputs, weight, mask, torch.tensor([[9.0, 0.0]]))
    >>> fixed.round(decimals=3), rejected
    (tensor([[2., 0.]]), True)
    """
    updated, zeroed = torch.where(mask, updated, 0.0), torch.where(mask, before, 0.0)
    limit, error = inputs.row_errors(before - zeroed), inputs.row_errors(before - updated)
    # NaN compares false, so that an update that is not finite is worse.
    worse = ~(error.sum(1) <= limit.sum(1))
    if not worse.any():
        return updated, False
    noticeable = ~((error - limit).sum(1) <= NEGLIGIBLE * inputs.row_errors(before).sum(1))
    result, damped = inputs.rows(updated).clone(), inputs.damped()
    for group in worse.nonzero().flatten().tolist():
        result[group] = _solved(damped[group], inputs.rows(before)[group], inputs.rows(mask)[group].bool())
    again = torch.where(mask, from_matrix(result.flatten(0, 1), before).to(before.dtype), 0.0)
    too_much = worse.unsqueeze(1) & ~(inputs.row_errors(before - again) <= limit)
    fixed = torch.where(too_much.unsqueeze(2), inputs.rows(zeroed), inputs.rows(again))
    return from_matrix(fixed.flatten(0, 1), before).to(before.dtype).contiguous(), bool(noticeable.any())


def warn_of_rejected(method: str, names: Sequence[str]) -> None:
    """One warning that names the layers whose update was rejected, where there is one."""
    if names:
        warnings.warn(
            f"The update by {method} lost more of the output than setting the pruned weights to zero in "
            f"{', '.join(map(repr, names))}, whose inputs are strongly correlated or few; the kept weights were solved "
            "for again, by least squares for the same masks.",
            UpdateRejectedWarning,
            stacklevel=4,
        )


def _solved(hessian: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """The least squares for `rows` [R, D] on what is `kept` of them, by conjugate gradients from the kept weights."""
    scale = hessian.diagonal().clamp(min=torch.finfo(hessian.dtype).tiny).reciprocal()
    solved = torch.where(kept, rows, 0.0)
    gradient = torch.where(kept, (rows - solved) @ hessian, 0.0)
    direction = gradient * scale
    square = (gradient * direction).sum(1)
    start = square.clone()
    for _ in range(STEPS):
        image = torch.where(kept, direction @ hessian, 0.0)
        curvature = (direction * image).sum(1)
        going = (square > CONVERGED * start) & (curvature > 0)
        if not going.any():
            break
        step = torch.where(going, square / curvature, 0.0).unsqueeze(1)
        solved += step * direction
        gradient -= step * image
        scaled = gradient * scale
        following = (gradient * scaled).sum(1)
        direction = scaled + torch.where(going, following / square, 0.0).unsqueeze(1) * direction
        square = torch.where(going, following, 0.0)
    return solved
