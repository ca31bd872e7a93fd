"""Counts, seeded ties and checks of masks. The masks themselves are in `prunus.masks`."""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunus.errors import DensityError, EmptyLayerWarning, NonFiniteError
from prunus.types import Density, MaskDict


def check_density(density: float, name: str = "everything") -> None:
    """Raise DensityError unless 0 < density <= 1."""
    number: object = density
    if not isinstance(number, int | float | np.number) or not 0 < density <= 1:
        raise DensityError(
            f"Density {density!r} was asked for {name}; density is the share of weights kept and must be "
            "above 0 and at most 1."
        )


def densities_by_name(density: Density, names: list[str]) -> dict[str, float]:
    """One checked density a tensor: the same for all, or as named; a name left out is an error."""
    if not isinstance(density, Mapping):
        check_density(density)
        return dict.fromkeys(names, density)
    if set(density) != set(names):
        wrong = sorted(set(density) ^ set(names))
        raise DensityError(
            f"Densities are needed for {names}, but were given for {list(density)}: see {wrong}."
        )
    for name, value in density.items():
        check_density(value, name)
    return {name: density[name] for name in names}


def num_to_keep(density: float, total: int) -> int:
    """How many of `total` weights a density keeps: density x total, halves rounded up.

    >>> num_to_keep(0.25, 10), num_to_keep(0.04, 266_200)
    (3, 10648)
    """
    return math.floor(density * total + 0.5)


def top_k(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The mask of exactly `k` highest of a 1-D tensor; ties at the border are drawn by `generator`.

    One selection, no sort: O(n). Raises DensityError unless 0 <= k <= n.
    """
    n = scores.numel()
    if not 0 <= k <= n:
        raise DensityError(f"{k} weights were to be kept of the {n} there are.")
    if k in (0, n):
        return torch.full_like(scores, k == n, dtype=torch.bool)
    threshold = _smallest(scores, n - k)
    mask = scores > threshold
    missing = k - int(torch.count_nonzero(mask))
    ties = torch.nonzero(scores == threshold).squeeze(1)
    chosen = torch.randperm(len(ties), generator=generator)[:missing] if missing < len(ties) else slice(None)
    mask[ties[chosen]] = True
    return mask


def _smallest(values: Tensor, place: int) -> float:
    """The entry that would stand at `place`, counted from 0, in ascending order."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # NumPy's selection takes half the time of kthvalue on CPU.
        return float(np.partition(values.detach().numpy(), place)[place])
    return float(values.kthvalue(place + 1).values)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise NonFiniteError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        # A sum is not finite as soon as one entry is not, and costs a tenth of isfinite().all().
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{what} {name!r} holds {bad} of {tensor.numel()} entries that are not finite."
            )


def warn_if_empty(masks: MaskDict) -> None:
    """Warn, by name, of every layer without a weight."""
    for name, mask in masks.items():
        if mask.numel() and not mask.any():
            warnings.warn(
                f"No weight of {name!r} is left: no signal passes it.", EmptyLayerWarning, stacklevel=3
            )
