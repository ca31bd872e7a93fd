"""An update of the remaining weights is never worse than setting the pruned weights to zero alone.

By the error of a layer's output (`limit_layer_update`):

    E(updated weights) <= E(pruned weights at zero, the others as they were)

Where inputs are strongly correlated, rounding or an order of columns with too few columns to compensate for the last
ones can break this. The remaining weights of such a layer are solved for again from the original weights, by the
conjugate gradients of `refit.py`. Every step lowers the error, so that it is a better update wherever it stops. A row
for which even this update is worse than zeroing (by rounding to the dtype of the weights) is zeroed.

By the loss (`limit_update_by_loss`): the update is halved until the loss is at most that of zeroing.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from prunus.errors import UpdateRejectedWarning
from prunus.masks import apply_masks
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import from_matrix
from prunus.pruning.obs.hessian import STRIPE_ROWS, LayerHessian
from prunus.pruning.obs.objective import Objective
from prunus.pruning.obs.refit import least_squares
from prunus.pruning.obs.state import PruneResult
from prunus.types import MaskDict, Params

CONVERGED = 1e-12
"""Reduction of the squared gradient after which a row is solved."""
NEGLIGIBLE = 1e-9
"""Fraction of the layer's output below which an error larger than that of zeroing is rounding, without a warning."""
ROUNDING = 1e-6
"""Relative difference of two losses that is rounding."""
UPDATE_FRACTIONS = (0.5, 0.25, 0.125)
"""Fractions of an update that are tried where the whole of it raises the loss."""


def limit_layer_update(
    hessian: LayerHessian, before: Tensor, mask: Tensor, updated: Tensor
) -> tuple[Tensor, bool]:
    """The update of a layer, solved for again where it loses more of the output than zeroing.

    Each group of a convolution is treated as a layer of its own.

    Args:
        hessian: Of the layer.
        before: The weight that the error is measured from.
        mask: True where a weight is kept; of the weight's shape.
        updated: The weight after the update; of the weight's shape.

    Returns:
        The weight, and whether the update was rejected by more than rounding.

    >>> hessian = LayerHessian(torch.tensor([[[2.0, 2.0], [2.0, 2.0]]], dtype=torch.float64), 1e-9, 1)
    >>> weight, mask = torch.tensor([[1.0, 1.0]]), torch.tensor([[True, False]])
    >>> weight, rejected = limit_layer_update(hessian, weight, mask, torch.tensor([[9.0, 0.0]]))
    >>> weight.round(decimals=3), rejected
    (tensor([[2., 0.]]), True)
    """
    updated, zeroed = torch.where(mask, updated, 0.0), torch.where(mask, before, 0.0)
    if _is_clearly_better(hessian, before, zeroed, updated):
        return updated, False
    limit, error = hessian.row_errors(before - zeroed), hessian.row_errors(before - updated)
    # NaN compares false, so that an update that is not finite is worse.
    worse = ~(error.sum(1) <= limit.sum(1))
    if not worse.any():
        return updated, False
    noticeable = ~((error - limit).sum(1) <= NEGLIGIBLE * hessian.row_errors(before).sum(1))
    solved, damped = hessian.rows(updated).clone(), hessian.damped()
    for group in worse.nonzero().flatten().tolist():
        rows = hessian.rows(before)[group]
        solved[group] = least_squares(damped[group], rows, rows, hessian.rows(mask)[group].bool(), CONVERGED)
    again = torch.where(mask, from_matrix(solved.flatten(0, 1), before).to(before.dtype), 0.0)
    still_worse = worse.unsqueeze(1) & ~(hessian.row_errors(before - again) <= limit)
    rows = torch.where(still_worse.unsqueeze(2), hessian.rows(zeroed), hessian.rows(again))
    return from_matrix(rows.flatten(0, 1), before).to(before.dtype).contiguous(), bool(noticeable.any())


def _is_clearly_better(hessian: LayerHessian, before: Tensor, zeroed: Tensor, updated: Tensor) -> bool:
    """Whether every group has a smaller error with `updated` than with `zeroed`, by more than rounding.

    E(zeroed) - E(updated) = ½ (updated - zeroed) H (2 before - zeroed - updated)ᵀ: one product, in the dtype of the
    weights, where the two errors are two in float64.
    """
    dtype = torch.promote_types(before.dtype, torch.float32)
    change = hessian.rows(updated.to(dtype) - zeroed.to(dtype), dtype)
    both = hessian.rows(2 * before.to(dtype) - zeroed - updated, dtype)
    gain, columns = change.new_zeros(len(change)), change.new_zeros(*change.shape[:2], 1)
    for first in range(0, change.shape[2], STRIPE_ROWS):
        stripe = slice(first, first + STRIPE_ROWS)
        matrix, part = hessian.hessian[:, :, stripe].to(dtype), both[:, :, stripe]
        gain += (change @ matrix * part).sum((1, 2))
        columns += part.abs() @ matrix.norm(dim=1).unsqueeze(2)
    # The rounding error of an entry of the product is eps √D |change| |column of H| at most.
    rounding = (change.norm(dim=2, keepdim=True) * columns).sum((1, 2))
    return bool((gain > torch.finfo(dtype).eps * change.shape[2] ** 0.5 * rounding).all())


def limit_layer_updates(
    method: str, hessians: Mapping[str, LayerHessian], before: Params, masks: MaskDict, updated: Params
) -> tuple[Params, list[str]]:
    """`limit_layer_update` of several layers, with a warning that names those whose update was rejected.

    Args:
        method: The name of the method, for the warning.
        hessians: Of the layers, by name of the weight.
        before: The weights that errors are measured from.
        masks: True where a weight is kept.
        updated: The weights after the update.

    Returns:
        The weights, and the names of the layers whose update was rejected.

    Raises:
        NonFiniteError: A weight is not finite.
    """
    weights: Params = {}
    rejected: list[str] = []
    for name, hessian in hessians.items():
        weights[name], is_rejected = limit_layer_update(hessian, before[name], masks[name], updated[name])
        rejected += [name] * is_rejected
    if rejected:
        warnings.warn(
            f"The update by {method} lost more of the output than setting the pruned weights to zero in "
            f"{', '.join(map(repr, rejected))}, whose inputs are strongly correlated or few; the kept weights were "
            "solved for again, by least squares for the same masks.",
            UpdateRejectedWarning,
            stacklevel=4,
        )
    check_finite(weights, "The updated weight")
    return weights, rejected


@torch.no_grad()
def limit_update_by_loss(objective: Objective, weights: Params, result: PruneResult) -> PruneResult:
    """Halve the update of the remaining weights until the loss is at most that of setting weights to zero alone.

    Warns with UpdateRejectedWarning where the whole update gives a higher loss, or one that is not finite.

    Args:
        objective: The loss on the calibration examples.
        weights: The weights before pruning.
        result: The pruned and updated weights.

    Returns:
        `result`, with the update multiplied by 1, 1/2, 1/4, 1/8 or 0.
    """
    zeroed = apply_masks({name: weight.detach() for name, weight in weights.items()}, result.masks)
    limit = float(objective.error(zeroed)) * (1 + ROUNDING)
    updated, error = result.weights, float(objective.error(result.weights))
    # NaN compares false.
    if error <= limit or not limit < inf:
        return result
    for fraction in UPDATE_FRACTIONS:
        updated = {name: zero + fraction * (result.weights[name] - zero) for name, zero in zeroed.items()}
        if float(objective.error(updated)) <= limit:
            break
    else:
        fraction, updated = 0.0, zeroed
    warnings.warn(
        f"The update of the kept weights gives an error of {error:.3g} on the calibration examples, where setting the "
        f"pruned weights to zero alone gives {limit:.3g}; the update was multiplied by {fraction:g}. Use more damping, "
        "more examples or more steps.",
        UpdateRejectedWarning,
        stacklevel=3,
    )
    return replace(result, weights=apply_masks(updated, result.masks))
