"""Densities, the fractions of weights that are kept, and the exact counts that follow from them."""

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context

import numpy as np

from prunus.errors import DensityError
from prunus.types import Density, Params


def check_density(density: float, name: str = "all weights") -> None:
    """Check that a density lies in (0, 1].

    Args:
        density: The fraction of weights to keep.
        name: What it was given for, for the error.

    Raises:
        DensityError: It is not a number above 0 and at most 1.
    """
    number: object = density
    if not isinstance(number, int | float | np.number) or not 0 < density <= 1:
        raise DensityError(
            f"Expected the density of {name} to be above 0 and at most 1, got {density!r}; density is the fraction of "
            "weights to keep."
        )


def check_densities(density: Density) -> None:
    """Raise DensityError unless one density, or each density by name, is a number above 0 and at most 1."""
    if not isinstance(density, Mapping):
        check_density(density)
        return
    for name, value in density.items():
        check_density(value, repr(name))


def densities_by_name(density: Density, names: list[str]) -> dict[str, float]:
    """One checked density per tensor, in the order of `names`.

    Args:
        density: One number for all tensors, or one per name.
        names: The tensors.

    Returns:
        {name: density}.

    Raises:
        DensityError: A density is out of range, a name has none, or a density is given for another name.

    >>> densities_by_name(0.5, ["a", "b"])
    {'a': 0.5, 'b': 0.5}
    """
    if isinstance(density, Mapping) and set(density) != set(names):
        wrong = sorted(set(density) ^ set(names))
        raise DensityError(
            f"Expected one density for each of {names}, got {list(density)}; add or remove {wrong}."
        )
    check_densities(density)
    return {name: density[name] if isinstance(density, Mapping) else density for name in names}


def num_to_keep(density: float, total: int) -> int:
    """The number of `total` weights that a density keeps: density · total, halves rounded up.

    Args:
        density: The fraction to keep.
        total: The number of weights, or blocks.

    Returns:
        The count.

    >>> num_to_keep(0.25, 10), num_to_keep(0.04, 266_200)
    (3, 10648)
    """
    return math.floor(density * total + 0.5)


def count_within(density: float, total: int, available: int | None, what: str) -> int:
    """The number of `total` weights that a density keeps.

    Args:
        density: The fraction of all weights to keep.
        total: The number of all weights, or blocks.
        available: The number that earlier masks keep; None: all.
        what: Their name in the error.

    Returns:
        The count.

    Raises:
        DensityError: It is larger than `available`.
    """
    count = num_to_keep(density, total)
    if available is not None and count > available:
        raise DensityError(
            f"Expected density {density:g} to keep at most {available} of the {total} {what}, as earlier masks keep no "
            f"more, got {count}; a pruned weight cannot be restored, so lower the density."
        )
    return count


def check_keeps_one(density: float, total: int, what: str) -> None:
    """Check that a density keeps at least one of `total` weights or blocks.

    Args:
        density: The fraction to keep.
        total: Their number.
        what: Their name in the error.

    Raises:
        DensityError: It keeps none; the error names the smallest density that keeps one.
    """
    if total == 0:
        raise DensityError(f"Expected {what}, got none, as it is smaller than one; choose smaller blocks.")
    if num_to_keep(density, total) == 0:
        # One of n is kept from 1 / 2n on; four digits, rounded up.
        smallest = float(Context(prec=4, rounding=ROUND_CEILING).divide(1, 2 * total))
        raise DensityError(
            f"Expected a density that keeps one of the {total} {what}, at least {smallest:g}, got {density:g}; "
            "increase it."
        )


def spread_over_columns(
    total: int, available: Sequence[int], num_rows: int, step: int, unit: int
) -> list[int]:
    """The number of weights to keep of every `step` columns of a matrix, spread evenly.

    Args:
        total: The number of weights to keep of all columns.
        available: The number of weights that may be kept of each column.
        num_rows: The number of rows.
        step: The number of columns whose masks are chosen together.
        unit: The number of weights that are kept or pruned together.

    Returns:
        One count for each step, a multiple of `unit`; the last may have fewer columns.

    >>> spread_over_columns(6, [3, 3, 3, 3], num_rows=3, step=3, unit=1)
    [5, 1]
    """
    fraction = total / max(1, sum(available))  # an empty layer has nothing to spread
    num_available, num_kept, counts = 0, 0, []
    for first in range(0, len(available), step):
        columns = available[first : first + step]
        num_available += sum(columns)
        count = max(0, min(num_to_keep(fraction, num_available) - num_kept, sum(columns)))
        size = num_rows * len(columns)
        # Whole units; what is rounded in this step is corrected in the following ones.
        counts.append(unit * num_to_keep(count / size, size // unit) if size else 0)
        num_kept += counts[-1]
    return counts


def densities_from_threshold(weights: Params, quality: float | Mapping[str, float]) -> dict[str, float]:
    """The density of each tensor whose weights beyond a multiple of its standard deviation are kept.

        keep |w| > quality · σ(w)        σ of the population

    Given to the scope `Layer()` with the criterion `magnitude`, these densities keep the same weights, with counts that
    are known beforehand.

    Source: Han et al. 2015, section 4 ("a quality parameter multiplied by the standard deviation of a layer's
    weights").

    Args:
        weights: Tensors of any shape.
        quality: At least 0; one number, or one per name.

    Returns:
        {name: density in (0, 1]}.

    Raises:
        DensityError: A quality is missing, not a number of at least 0, or keeps no weight of a tensor.

    >>> import torch
    >>> densities_from_threshold({"fc": torch.tensor([1.0, -1.0, 3.0, -3.0])}, 1.0)
    {'fc': 0.5}
    """
    densities = {}
    if isinstance(quality, Mapping) and set(quality) != set(weights):
        wrong = sorted(set(quality) ^ set(weights))
        raise DensityError(
            f"Expected one quality for each of {list(weights)}, got {list(quality)}; add or remove {wrong}."
        )
    for name, weight in weights.items():
        weight = weight.detach()
        q = quality[name] if isinstance(quality, Mapping) else quality
        if not q >= 0:
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
