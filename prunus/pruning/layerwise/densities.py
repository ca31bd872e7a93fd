"""One budget over all layers: which density of each, so that their errors add up to as little as can be.

    minimize Σ_l E_l(d_l)   where   Σ_l d_l n_l <= density · Σ_l n_l,   d_l of some levels

by dynamic programming over what is spent. E_l comes from a layer's scores: what is deleted costs its score, cheapest
first. Errors are taken as shares of what the layer answers, so that a layer of large outputs does not rule the others.

Source: the dynamic program of "SPDY" (Frantar & Alistarh 2022), which "Optimal Brain Compression" (2022) runs over its
layers pruned to many densities. Where the curves are convex it does what the `global` scope does with the same scores.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DensityError, NonFiniteError
from prunus.pruning.density import check_density, num_to_keep
from prunus.pruning.layerwise.hessian import LayerHessian
from prunus.pruning.masks import check_finite
from prunus.types import MaskDict, Params, Scores

DENSITY_GRID = tuple(level / 100 for level in range(1, 101))
UNITS = 10_000
"""Parts that the budget is spent in; what a layer takes is rounded up to them."""

Curve = Mapping[float, float]
"""Density -> error."""


def error_curves(scores: Scores, masks: MaskDict, levels: Sequence[float] = DENSITY_GRID) -> dict[str, Curve]:
    """The error of each layer at each density: the sum of the scores of what goes, of those that `masks` leave.

    Levels above what is left, and those that keep no weight, are left out.

    >>> import torch
    >>> error_curves({"fc": torch.tensor([1.0, 3.0])}, {"fc": torch.tensor([True, True])}, [0.5, 1.0])
    {'fc': {0.5: 1.0, 1.0: 0.0}}
    """
    check_finite(scores, "The score of")
    found: dict[str, Curve] = {}
    for name, score in scores.items():
        left = score[masks[name]].double().sort().values
        sums = np.concatenate([[0.0], left.cumsum(0).cpu().numpy()])
        kept = {level: num_to_keep(level, score.numel()) for level in levels}
        found[name] = {level: float(sums[len(left) - k]) for level, k in kept.items() if 0 < k <= len(left)}
    return found


def relative_error_curves(
    found: Mapping[str, Curve], inputs: Mapping[str, LayerHessian], weights: Params
) -> dict[str, Curve]:
    """The same curves as shares of what each layer answers. Raises NonFiniteError where one answers zero."""
    scaled: dict[str, Curve] = {}
    for name, curve in found.items():
        whole = inputs[name].error(weights[name])
        if not whole:
            raise NonFiniteError(f"The layer of {name!r} answers all calibration examples with zero.")
        scaled[name] = {density: error / whole for density, error in curve.items()}
    return scaled


def allocate_densities(
    found: Mapping[str, Curve], sizes: Mapping[str, int], density: float
) -> dict[str, float]:
    """The density of each layer, of its curve's levels; together they keep at most count(density, all weights).

    Args:
        found: a curve a layer.
        sizes: the weights of each layer.
        density: the share of all weights together to keep, in (0, 1].

    Raises DensityError where even the lowest levels keep more.

    >>> allocate_densities({"a": {0.5: 1.0, 1.0: 0.0}, "b": {0.5: 9.0, 1.0: 0.0}}, {"a": 10, "b": 10}, 0.75)
    {'a': 0.5, 'b': 1.0}
    """
    check_density(density)
    total = sum(sizes[name] for name in found)
    allowed = num_to_keep(density, total)
    unit = max(1, total // UNITS)
    spend = {
        name: np.array([-(-num_to_keep(level, sizes[name]) // unit) for level in curve])
        for name, curve in found.items()
    }
    units, lowest = allowed // unit, sum(int(costs.min()) for costs in spend.values())
    if units < lowest:
        raise DensityError(
            f"Density {density} allows {allowed} of {total} weights, but the lowest levels of the layers keep "
            f"{lowest * unit}; ask for more, or give lower levels."
        )
    best, chosen = np.zeros(units + 1), []
    for name, curve in found.items():
        best, at = _with_layer(best, np.array(list(curve.values())), spend[name])
        chosen.append(at)
    left, result = int(best.argmin()), {}
    for (name, curve), at in reversed(list(zip(found.items(), chosen, strict=True))):
        level = int(at[left])
        result[name] = list(curve)[level]
        left -= int(spend[name][level])
    return {name: result[name] for name in found}


def _with_layer(
    best: NDArray[np.float64], errors: NDArray[np.float64], spend: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The least error when u units are spent, one layer more; and which of its levels that takes."""
    tried = np.full((len(spend), len(best)), np.inf)
    for level, units in enumerate(spend):
        if units < len(best):
            tried[level, units:] = best[: len(best) - units] + errors[level]
    at = tried.argmin(0)
    return np.take_along_axis(tried, at[None], 0)[0], at
