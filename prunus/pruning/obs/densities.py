"""Divide one density over the layers, so that the sum of their errors is as small as possible.

    minimize Σ_l E_l(d_l)   where   Σ_l d_l n_l <= density · Σ_l n_l,   d_l of some levels

by dynamic programming over the number of weights kept. E_l comes from a layer's scores: pruning a weight costs its
score, lowest first. Errors are relative to the layer's output, so that a layer with large outputs does not dominate.

Source: the dynamic program of "SPDY" (Frantar & Alistarh 2022), which "Optimal Brain Compression" (2022) runs over its
layers pruned to many densities. Where the curves are convex it does what the `global` scope does with the same scores.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DensityError, NonFiniteError
from prunus.pruning.density import check_density, num_to_keep
from prunus.pruning.masks import check_finite
from prunus.pruning.obs.hessian import LayerHessian
from prunus.types import MaskDict, Params, Scores

DENSITY_GRID = tuple(level / 100 for level in range(1, 101))
NUM_UNITS = 10_000
"""Units in which kept weights are counted; the count of a layer is rounded up to them."""

ErrorCurve = Mapping[float, float]
"""Density -> error."""


def error_curves(
    scores: Scores, masks: MaskDict, levels: Sequence[float] = DENSITY_GRID
) -> dict[str, ErrorCurve]:
    """The error of each layer at each density: the sum of the scores of the weights that are pruned.

    Args:
        scores: One score per weight.
        masks: The weights that remain now; only these are counted.
        levels: Densities; those above the remaining weights, and those that keep none, are left out.

    Returns:
        One curve per layer.

    Raises:
        NonFiniteError: A score is not finite.

    >>> import torch
    >>> error_curves({"fc": torch.tensor([1.0, 3.0])}, {"fc": torch.tensor([True, True])}, [0.5, 1.0])
    {'fc': {0.5: 1.0, 1.0: 0.0}}
    """
    check_finite(scores, "The score of")
    curves: dict[str, ErrorCurve] = {}
    for name, score in scores.items():
        remaining = score[masks[name]].double().sort().values
        sums = np.concatenate([[0.0], remaining.cumsum(0).cpu().numpy()])
        counts = {level: num_to_keep(level, score.numel()) for level in levels}
        curves[name] = {
            level: float(sums[len(remaining) - count])
            for level, count in counts.items()
            if 0 < count <= len(remaining)
        }
    return curves


def relative_error_curves(
    curves: Mapping[str, ErrorCurve], hessians: Mapping[str, LayerHessian], weights: Params
) -> dict[str, ErrorCurve]:
    """The same curves relative to the output of each layer.

    Args:
        curves: From `error_curves`.
        hessians: Of the same layers.
        weights: The weights before pruning.

    Returns:
        One curve per layer.

    Raises:
        NonFiniteError: The output of a layer is zero.
    """
    relative: dict[str, ErrorCurve] = {}
    for name, curve in curves.items():
        norm = hessians[name].error(weights[name])
        if not norm:
            raise NonFiniteError(
                f"Expected an output of the layer of {name!r} that is not zero on all calibration examples, got zero; "
                f"exclude {name!r}."
            )
        relative[name] = {density: error / norm for density, error in curve.items()}
    return relative


def allocate_densities(
    curves: Mapping[str, ErrorCurve], sizes: Mapping[str, int], density: float
) -> dict[str, float]:
    """The density of each layer, a level of its curve; together they keep at most the weights that `density` keeps.

    Args:
        curves: One curve per layer.
        sizes: The number of weights of each layer.
        density: The fraction of all weights together to keep, in (0, 1].

    Returns:
        One density per layer.

    Raises:
        DensityError: Even the lowest levels keep more.

    >>> allocate_densities({"a": {0.5: 1.0, 1.0: 0.0}, "b": {0.5: 9.0, 1.0: 0.0}}, {"a": 10, "b": 10}, 0.75)
    {'a': 0.5, 'b': 1.0}
    """
    check_density(density)
    total = sum(sizes[name] for name in curves)
    allowed = num_to_keep(density, total)
    unit = max(1, total // NUM_UNITS)
    costs = {
        name: np.array([-(-num_to_keep(level, sizes[name]) // unit) for level in curve])
        for name, curve in curves.items()
    }
    units, lowest = allowed // unit, sum(int(cost.min()) for cost in costs.values())
    if units < lowest:
        raise DensityError(
            f"Expected a density that keeps the {lowest * unit} weights of the lowest levels of the layers, got "
            f"{density}, which keeps {allowed} of {total}; use a higher density, or lower levels."
        )
    least_error, levels = np.zeros(units + 1), []
    for name, curve in curves.items():
        least_error, level = _add_layer(least_error, np.array(list(curve.values())), costs[name])
        levels.append(level)
    remaining, result = int(least_error.argmin()), {}
    for (name, curve), level_at in reversed(list(zip(curves.items(), levels, strict=True))):
        index = int(level_at[remaining])
        result[name] = list(curve)[index]
        remaining -= int(costs[name][index])
    return {name: result[name] for name in curves}


def _add_layer(
    least_error: NDArray[np.float64], errors: NDArray[np.float64], costs: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The least error with one layer more, for each number of units; and the level of this layer that gives it."""
    totals = np.full((len(costs), len(least_error)), np.inf)
    for level, cost in enumerate(costs):
        if cost < len(least_error):
            totals[level, cost:] = least_error[: len(least_error) - cost] + errors[level]
    level_at = totals.argmin(0)
    return np.take_along_axis(totals, level_at[None], 0)[0], level_at
