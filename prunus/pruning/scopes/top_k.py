"""The mask of the highest scores, with ties broken at random."""

import numpy as np
import torch
from torch import Tensor

from prunus.errors import DensityError


def top_k(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The mask of exactly the `k` highest scores; ties at the threshold are broken at random.

    One selection, no sort: O(n).

    Args:
        scores: [n], finite.
        k: From 0 to n.
        generator: Of the random order of ties, on the CPU.

    Returns:
        Boolean mask [n].

    Raises:
        DensityError: K is out of range.
    """
    n = scores.numel()
    if not 0 <= k <= n:
        raise DensityError(f"Expected to keep 0 to {n} of {n} weights, got {k}; lower the density.")
    if k in (0, n):
        return torch.full_like(scores, k == n, dtype=torch.bool)
    threshold = _smallest(scores, n - k)
    mask = scores >= threshold
    num_too_many = int(torch.count_nonzero(mask)) - k
    if num_too_many:
        ties = torch.nonzero(scores == threshold).squeeze(1)
        mask[ties] = False
        order = torch.randperm(len(ties), generator=generator)
        mask[ties[order[: len(ties) - num_too_many]]] = True
    return mask


def top_k_within(scores: Tensor, k: int, within: Tensor | None, generator: torch.Generator) -> Tensor:
    """The mask of the `k` highest of the scores that an earlier mask keeps.

    Args:
        scores: Of any shape, finite.
        k: From 0 to their number.
        within: The earlier mask, of the same shape; None: all may be kept.
        generator: Of the random order of ties, on the CPU.

    Returns:
        Boolean mask of the shape of `scores`.
    """
    if within is None:
        return top_k(scores.flatten(), k, generator).reshape(scores.shape)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)  # contiguous
    mask[within] = top_k(scores[within], k, generator)
    return mask


def _smallest(values: Tensor, place: int) -> float:
    """The entry at `place`, counted from 0, of the values in ascending order."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # NumPy's selection takes half the time of kthvalue on CPU.
        return float(np.partition(values.detach().numpy(), place)[place])
    return float(values.kthvalue(place + 1).values)
