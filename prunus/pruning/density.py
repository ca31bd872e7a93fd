"""Densities: the fraction of weights that is kept, checked, per tensor, as an exact count, and from a threshold."""

import math
from collections.abc import Mapping

import numpy as np

from prunus.errors import DensityError
from prunus.types import Density, Params


def check_density(density: float, name: str = "all weights") -> None:
    """Check that a density lies in (0, 1].

    Args:
        density: the fraction of weights to keep.
        name: what it was given for, for the error.

    Raises:
        DensityError: it is no number above 0 and at most 1.
    """
    number: object = density
    if not isinstance(number, int | float | np.number) or not 0 < density <= 1:
        raise DensityError(
            f"Expected the density of {name} to be above 0 and at most 1, got {density!r}; density is the fraction of "
            "weights to keep."
        )


def densities_by_name(density: Density, names: list[str]) -> dict[str, float]:
    """One checked density per tensor, in the order of `names`.

    Args:
        density: one number for all tensors, or one per name.
        names: the tensors.

    Returns:
        {name: density}.

    Raises:
        DensityError: a density is out of range, a name has none, or a density is given for another name.

    >>> densities_by_name(0.5, ["a", "b"])
    {'a': 0.5, 'b': 0.5}
    """
    if not isinstance(density, Mapping):
        check_density(density)
        return dict.fromkeys(names, density)
    if set(density) != set(names):
        wrong = sorted(set(density) ^ set(names))
        raise DensityError(
            f"Expected one density for each of {names}, got {list(density)}; add or remove {wrong}."
        )
    for name, value in density.items():
        check_density(value, repr(name))
    return {name: density[name] for name in names}


def num_to_keep(density: float, total: int) -> int:
    """The number of `total` weights that a density keeps: density · total, halves rounded up.

    >>> num_to_keep(0.25, 10), num_to_keep(0.04, 266_200)
    (3, 10648)
    """
    return math.floor(density * total + 0.5)


def densities_from_threshold(weights: Params, quality: float | Mapping[str, float]) -> dict[str, float]:
    """The density of each tensor whose weights beyond a multiple of its standard deviation are kept.

        keep |w| > quality · σ(w)        σ of the population

    Given to the scope `Layer()` with the criterion `magnitude`, these densities keep the same weights, with counts that
    are known beforehand.

    Source: Han et al. 2015, section 3.1 ("a quality parameter multiplied by the standard deviation of a layer's
    weights").

    Args:
        weights: tensors of any shape.
        quality: at least 0; one number, or one per name.

    Returns:
        {name: density in (0, 1]}.

    Raises:
        DensityError: a quality is negative or keeps no weight of a tensor.

    >>> import torch
    >>> densities_from_threshold({"fc": torch.tensor([1.0, -1.0, 3.0, -3.0])}, 1.0)
    {'fc': 0.5}
    """
    densities = {}
    for name, weight in weights.items():
        weight = weight.detach()
        q = quality if isinstance(quality, float | int) else quality[name]
        if q < 0:
            raise DensityError(f"Expected a quality of at least 0 for {name!r}, got {q}; increase it.")
        deviation = weight.std(correction=0)
        num_kept = int((weight.abs() > q * deviation).sum())
        if num_kept == 0:
            raise DensityError(
                f"Expected the quality {q} to keep a weight of {name!r}, got a largest magnitude of "
                f"{float(weight.abs().max()):.4g} at a standard deviation of {float(deviation):.4g}; lower the quality."
            )
        densities[name] = num_kept / weight.numel()
    return densities
