"""Refit: the remaining weights that minimize the error of each layer's output, for masks of any method.

    minimize ½ (v - w)ᵀ (H + λ I) (v - w) in each row w,   v zero where pruned

by conjugate gradients, preconditioned with the diagonal, for all rows of a layer at once: one product with H per
iteration, where solving each row for its own mask needs a factorization per row.

Source: the least squares of Boža 2024, "Fast and effective weight update for pruned large language models", and Meng et
al. 2024, "ALPS", section 3.2; the method is of Hestenes & Stiefel 1952.
Also called: reconstruction, weight update for a fixed mask.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn

from prunus.data.examples import Calibration
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import from_matrix
from prunus.pruning.obs.blocks import hessians_by_block
from prunus.pruning.obs.hessian import DAMPING, LayerHessian
from prunus.pruning.obs.layer_inputs import PassOptions
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.views import layer_view
from prunus.types import Params, Progress

MAX_ITERATIONS = 200
"""Conjugate gradients at most; with damping of 1 % of the mean curvature some tens are enough."""
CONVERGED = 1e-8
"""Reduction of the squared gradient after which a row is solved; its error is then within about 1e-8 of the least."""


def refit(
    model: nn.Module,
    original: Params,
    result: PruneResult,
    inputs: Calibration,
    *,
    damping: float = DAMPING,
    **options: Unpack[PassOptions],
) -> PruneResult:
    """Fit the remaining weights to the outputs of the layers with their original weights.

    Args:
        model: The network; it is not changed. Its layers receive their inputs in the network with `original`.
        original: The weights before pruning, by name, of the layers to refit.
        result: The pruned weights and masks, of any method, of these layers and of others.
        inputs: Calibration examples in any form.
        damping: λ as a fraction of the mean of the diagonal of H; may be 0.
        options: See `PassOptions`; progress is reported after each layer too.

    Returns:
        `result` with other weights, exactly zero where pruned, and the larger damping. No row of a layer has a larger
        output error on the examples than in `result`.

    Raises:
        StatisticsError, ModelError, NonFiniteError: As `layer_hessians`.

    >>> model, weights = nn.Linear(2, 1, bias=False), {"weight": torch.tensor([[1.0, 1.0]])}
    >>> masks = {"weight": torch.tensor([[False, True]])}
    >>> zeroed = PruneResult({"weight": torch.tensor([[0.0, 1.0]])}, masks, 0.0, 0.0)
    >>> refit(model, weights, zeroed, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), damping=1e-9).weights
    {'weight': tensor([[0., 2.]])}
    """
    view = layer_view(model, original)
    weights = view.weights(original)
    masks, start = view.to_view(result.masks), view.to_view(result.weights)
    with view.names_of_model():
        blocks = hessians_by_block(view.model, weights, inputs, damping=damping, **options)
        pruned = PruneResult(start, masks, 0.0, result.damping)
        fitted = refit_layers(blocks, weights, pruned, progress=options.get("progress"))
    refitted = view.from_view(fitted)
    seconds = {name: result.seconds.get(name, 0.0) + more for name, more in refitted.seconds.items()}
    weights = {**result.weights, **refitted.weights}
    return replace(refitted, weights=weights, masks=result.masks, seconds=seconds)


def refit_layers(
    blocks: Iterable[Mapping[str, LayerHessian]],
    original: Params,
    result: PruneResult,
    *,
    progress: Progress | None = None,
) -> PruneResult:
    """`refit` where the Hessians are known.

    Args:
        blocks: Of all layers, with their damping, some at a time.
        original: The weights before pruning, by name.
        result: The pruned weights and masks.
        progress: Called after each layer.

    Returns:
        `result` with other weights.
    """
    weights: Params = {}
    increase, seconds, dampings = 0.0, dict(result.seconds), dict[str, float]()
    for hessians in blocks:
        for name, hessian in hessians.items():
            start = time.perf_counter()
            before, mask = original[name].detach(), result.masks[name]
            weights[name] = _refit_layer(hessian, before, mask, result.weights[name].detach())
            increase += hessian.damped_error(weights[name] - before)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            dampings[name] = hessian.damping
            if progress:
                progress("layers refitted", len(weights), len(original))
    check_finite(weights, "The refitted weight")
    damping = max(result.damping, *dampings.values())
    return PruneResult(weights, result.masks, increase, damping, seconds, dampings)


def _refit_layer(hessian: LayerHessian, original: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    groups = zip(
        hessian.damped(), hessian.rows(original), hessian.rows(weight), hessian.rows(mask), strict=True
    )
    solved = [
        least_squares(damped.to(dtype), rows.to(dtype), start.to(dtype), mask_rows.bool())
        for damped, rows, start, mask_rows in groups
    ]
    fitted = torch.where(mask, from_matrix(torch.cat(solved), weight).to(weight.dtype), 0.0)
    worse = ~(hessian.row_errors(original - fitted) <= hessian.row_errors(original - weight))
    rows = torch.where(worse.unsqueeze(2), hessian.rows(weight), hessian.rows(fitted))
    return from_matrix(rows.flatten(0, 1), weight).to(weight.dtype).contiguous()


def least_squares(
    hessian: Tensor,
    rows: Tensor,
    start: Tensor,
    mask: Tensor,
    converged: float = CONVERGED,
    max_iterations: int = MAX_ITERATIONS,
) -> Tensor:
    """The least squares for `rows` on the weights that `mask` keeps, by conjugate gradients.

    Every iteration lowers the error, so that the result is better than the start wherever it stops.

    Args:
        hessian: [D, D], damped.
        rows: [R, D]
        start: [R, D], where to start from.
        mask: [R, D], True where a weight is kept.
        converged: Reduction of a row's squared gradient after which it is solved.
        max_iterations: At most; each is one product of the rows with H.

    Returns:
        [R, D], zero where pruned.
    """
    scale = hessian.diagonal().clamp(min=torch.finfo(hessian.dtype).tiny).reciprocal()
    pruned = ~mask
    solution = start.masked_fill(pruned, 0.0)
    gradient = ((rows - solution) @ hessian).masked_fill_(pruned, 0.0)
    direction = gradient * scale
    square = (gradient * direction).sum(1)
    solved = torch.zeros_like(square)
    if converged:
        # Relative to the gradient of pruning alone, as that of a start near the solution cannot be reduced as much.
        zeroed = (rows.masked_fill(mask, 0.0) @ hessian).masked_fill_(pruned, 0.0)
        solved = converged * (zeroed.square() * scale).sum(1)
    for _ in range(max_iterations):
        product = (direction @ hessian).masked_fill_(pruned, 0.0)
        curvature = (direction * product).sum(1)
        active = (square > solved) & (curvature > 0)
        if not active.any():
            break
        step = torch.where(active, square / curvature, 0.0).unsqueeze(1)
        solution += step * direction
        gradient -= step * product
        scaled = gradient * scale
        new_square = (gradient * scaled).sum(1)
        direction = scaled + torch.where(active, new_square / square, 0.0).unsqueeze(1) * direction
        square = torch.where(active, new_square, 0.0)
    return solution
