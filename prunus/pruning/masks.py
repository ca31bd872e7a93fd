"""Checks of scores and of masks."""

import warnings
from collections.abc import Mapping

from torch import Tensor

from prunus.data.validation import count_not_finite
from prunus.errors import EmptyLayerWarning, NonFiniteError
from prunus.types import MaskDict


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise NonFiniteError naming the first tensor that holds NaN or infinity.

    Args:
        tensors: Tensors by name.
        what: The beginning of the sentence, as in "The score of".

    Raises:
        NonFiniteError: An entry is NaN or infinite.
    """
    for name, tensor in tensors.items():
        bad = count_not_finite(tensor)
        if bad:
            raise NonFiniteError(
                f"{what} {name!r} holds {bad} of {tensor.numel()} entries that are not finite; correct them first."
            )


def warn_if_empty(masks: MaskDict) -> None:
    """Warn, by name, of every layer without a weight."""
    for name, mask in masks.items():
        if mask.numel() and not mask.any():
            warnings.warn(
                f"No weight of {name!r} is left: no signal passes it.", EmptyLayerWarning, stacklevel=3
            )
