"""Give the kept weights of each tensor 2^bits shared values: a codebook of centroids, and a code a weight.

Zero stays zero: pruned weights take no part, and no centroid stands for them. Tensors do not share with one
another. Source: Han et al. 2016, section 3. Where we depart: centroids that no weight is nearest to are moved
(`kmeans.cluster`).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.compression.quantization.kmeans import SortedValues, cluster, nearest
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.errors import (
    ModelError,
    NoEffectWarning,
    NonFiniteError,
    QuantizationError,
    UnusedCentroidsWarning,
)
from prunus.masks import check_masks
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.types import MaskDict, Params

MAX_BITS = 8


@dataclass(frozen=True)
class CodebookTensor:
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
        return dequantize(self.codebook, self)


def dequantize(codebook: Tensor, shared: CodebookTensor) -> Tensor:
    """The tensor that the codes and places of `shared` make of `codebook` [k]."""
    flat = codebook.new_zeros(shared.shape.numel())
    return flat.scatter_(0, shared.places, codebook[shared.codes]).reshape(shared.shape)


def quantize_weights(
    params: Params, masks: MaskDict, bits: int | Mapping[str, int], start: str = "linear", seed: int = 0
) -> dict[str, CodebookTensor]:
    """Share the kept weights of each tensor of `masks` by k-means with 2^bits centroids.

    A weight that is exactly zero (or -0.0) counts as pruned, whatever its mask says, and stays zero. A tensor without
    any other weight gets an empty codebook.

    Args:
        params: Weights by name; float32, any shape.
        masks: Which weights are kept; tensors without a mask are left out.
        bits: Bits of a code, 1 to 8; one for all tensors, or one for each name in `masks`.
        start: Initialization of k-means, a key of `starts.STARTS`.
        seed: Seed of the random initialization.

    Returns:
        The shared tensors by name. A tensor with no more than 2^bits distinct values keeps them exactly
        (NoEffectWarning).

    Raises:
        QuantizationError: Bits out of range, missing, or given for a name without a mask.
        ModelError: A mask without a weight of its name and shape; weights that are not float32.
        NonFiniteError: A kept weight is NaN or infinite.
        UnknownNameError: `start` is in no table.
    """
    check_masks(params, masks)
    check_float32({name: params[name] for name in masks})
    check_start(start)
    widths = bits_of_each(bits, list(masks))
    result = {}
    for name, mask in masks.items():
        weight = params[name].detach().flatten()
        places = (mask.to(weight.device).flatten() & (weight != 0)).nonzero().squeeze(1)
        kept = weight[places].cpu().numpy()
        codebook, codes = _codebook(kept, widths[name], start, seed, name)
        result[name] = CodebookTensor(
            torch.from_numpy(codebook).to(weight.device),
            torch.from_numpy(codes).to(weight.device),
            places,
            params[name].shape,
        )
    return result


def check_float32(weights: Params) -> None:
    """Raise ModelError unless all weights are float32."""
    for name, weight in weights.items():
        if weight.dtype != torch.float32:
            raise ModelError(
                f"Expected float32 weights to compress, got {name!r} of {weight.dtype}; convert with model.float()."
            )


def check_start(start: str) -> None:
    """Raise UnknownNameError unless `start` is an initialization of k-means."""
    lookup("start of k-means", KMEANS_INITS, start)


def bits_of_each(bits: int | Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """The bits of each of `names`, from one number for all or from exactly one for each. Raises QuantizationError."""
    widths = dict(bits) if isinstance(bits, Mapping) else dict.fromkeys(names, bits)
    for what, keys in (("missing", set(names) - set(widths)), ("not to be shared", set(widths) - set(names))):
        if keys:
            raise QuantizationError(
                f"Expected bits for each of {list(names)}, got {dict(widths)}: {sorted(map(str, keys))} {what}."
            )
    for name, width in widths.items():
        if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= MAX_BITS:
            raise QuantizationError(
                f"Expected 1 to {MAX_BITS} bits for {name!r}, as an integer, got {width!r}."
            )
    return widths


def _codebook(
    kept: NDArray[np.float32], width: int, start: str, seed: int, name: str
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The codebook of the non-zero numbers `kept`, ascending, and the code of each."""
    if not len(kept):
        return np.zeros(0, np.float32), np.zeros(0, np.intp)
    try:
        numbers = SortedValues.of(kept)
    except NonFiniteError as error:
        raise NonFiniteError(f"{name!r} cannot be shared: {error}") from error
    distinct = int(np.count_nonzero(numbers.values[1:] != numbers.values[:-1])) + 1
    if distinct <= 2**width:
        warnings.warn(
            f"{name!r} has {distinct} distinct non-zero values, which {width} bits hold exactly: "
            "weight sharing has no effect.",
            NoEffectWarning,
            stacklevel=3,
        )
        return np.unique(kept, return_inverse=True)
    generator = np.random.default_rng(derive_seed(seed, "codebook", name))
    centroids = cluster(numbers, KMEANS_INITS[start](numbers, 2**width, generator), 2**width)
    # Centroids that have not converged may round to one float32 number. -0.0 becomes 0.0.
    codebook, merged = np.unique(centroids.astype(np.float32) + np.float32(0), return_inverse=True)
    codes = merged[nearest(kept, centroids)]
    if len(codebook) < 2**width:
        warnings.warn(
            f"{name!r} has {distinct} distinct non-zero values, for which {len(codebook)} of {2**width} centroids are "
            "used.",
            UnusedCentroidsWarning,
            stacklevel=3,
        )
    return codebook, codes
