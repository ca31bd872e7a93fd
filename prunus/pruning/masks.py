"""Plain masks: all kept, applied to weights, nested; and checks of tensors. Packing is in `prunus.training.constraints`."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.errors import EmptyLayerWarning, NonFiniteError
from prunus.training.constraints import check_masks
from prunus.types import MaskDict, Params


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


def all_kept(weights: Params) -> MaskDict:
    """Masks that keep all."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def apply_masks(params: Params, masks: MaskDict) -> Params:
    """The tensors of `params` with +0.0 where `masks` is False; those without a mask as they are."""
    check_masks(params, masks)
    return {n: torch.where(masks[n], p, torch.zeros_like(p)) if n in masks else p for n, p in params.items()}


def are_nested(inner: MaskDict, outer: MaskDict) -> bool:
    """Whether every weight that `inner` keeps is kept by `outer`."""
    return all(not bool((mask & ~outer[name]).any()) for name, mask in inner.items())
