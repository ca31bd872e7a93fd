"""Give the kept weights of each tensor 2^bits shared values: a codebook of centroids, and a code a weight.

Zero stays zero: pruned weights take no part, and no centroid stands for them. Tensors do not share with one
another. Source: Han et al. 2016, section 3.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.compression.sharing.kmeans import Floats, Sorted, lloyd, nearest
from prunus.compression.sharing.starts import STARTS
from prunus.errors import NoEffectWarning, NotFiniteError, SharingError
from prunus.nouns import Masks, Params
from prunus.seeds import derive
from prunus.tables import look_up

MAX_BITS = 8


@dataclass(frozen=True)
class Shared:
    """One tensor in shared values: `codebook[codes]` at `places`, zero elsewhere."""

    codebook: Tensor
    """[k] float32, ascending."""
    codes: Tensor
    """[kept] int64, 0..k-1."""
    places: Tensor
    """[kept] int64, ascending flat indices of the kept weights."""
    shape: torch.Size

    def dense(self) -> Tensor:
        """The tensor itself, of `shape`, with +0.0 where pruned."""
        return shared_values(self.codebook, self)


def shared_values(codebook: Tensor, shared: Shared) -> Tensor:
    """The tensor that the codes and places of `shared` make of `codebook` [k]."""
    flat = codebook.new_zeros(shared.shape.numel())
    return flat.scatter_(0, shared.places, codebook[shared.codes]).reshape(shared.shape)


def share(
    params: Params, masks: Masks, bits: int | Mapping[str, int], start: str = "linear", seed: int = 0
) -> dict[str, Shared]:
    """Share the kept weights of each tensor of `masks` by k-means with 2^bits centroids.

    Args:
        params: weights by name; float32, any shape.
        masks: which weights are kept; tensors without a mask are left out.
        bits: 1 to 8; one for all, or one a name.
        start: a key of `starts.STARTS`.
        seed: for the random start.

    A tensor with no more than 2^bits distinct values keeps them exactly (NoEffectWarning). Raises
    SharingError (bits out of range, nothing kept), NotFiniteError, UnknownNameError.
    """
    result = {}
    for name, mask in masks.items():
        width = bits if isinstance(bits, int) else bits[name]
        places = mask.flatten().nonzero().squeeze(1)
        kept = params[name].detach().flatten()[places].cpu().numpy()
        centroids = _centroids(kept, width, start, seed, name)
        codes = nearest(kept, centroids)
        used, codes = np.unique(codes, return_inverse=True)
        result[name] = Shared(
            torch.from_numpy(centroids[used].astype(np.float32)).to(params[name].device),
            torch.from_numpy(codes).to(params[name].device),
            places,
            params[name].shape,
        )
    return result


def _centroids(kept: NDArray[np.float32], width: int, start: str, seed: int, name: str) -> Floats:
    if not 1 <= width <= MAX_BITS:
        raise SharingError(f"{width} bits were asked for {name!r}; a codebook takes 1 to {MAX_BITS}.")
    if not len(kept):
        raise SharingError(f"{name!r} has no weight left, so there is nothing to share.")
    try:
        numbers = Sorted.of(kept)
    except NotFiniteError as error:
        raise NotFiniteError(f"{name!r} cannot be shared: {error}") from error
    distinct = int(np.count_nonzero(np.diff(numbers.values))) + 1
    if distinct <= 2**width:
        warnings.warn(
            f"{name!r} has {distinct} distinct values, which {width} bits hold exactly: "
            "sharing changes nothing.",
            NoEffectWarning,
            stacklevel=3,
        )
        return np.unique(numbers.values).astype(np.float64)
    generator = np.random.default_rng(derive(seed, "codebook", name))
    return lloyd(numbers, look_up("start of k-means", STARTS, start)(numbers, 2**width, generator))
