"""Quantize the remaining weights of each tensor to 2^bits values: a codebook of centroids, and one code per weight.

Pruned weights are zero, have no code, and remain zero. Each tensor has its own codebook.

Source: Han et al. 2016, section 3 ("weight sharing"). Difference from the paper: centroids that are nearest to no
weight are moved (`kmeans.cluster`).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.compression.quantization.kmeans import SortedValues, cluster, nearest
from prunus.compression.quantization.kmeans_init import KMEANS_INITS, KMeansInit
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
    """A quantized tensor: `codebook[codes]` at `indices`, zero elsewhere."""

    codebook: Tensor
    """[k] float32, ascending."""
    codes: Tensor
    """[remaining] int64, 0..k-1."""
    indices: Tensor
    """[remaining] int64, ascending flat indices of the remaining weights."""
    shape: torch.Size

    def dense(self) -> Tensor:
        """Return the tensor, of `shape`, with +0.0 where pruned."""
        return dequantize(self.codebook, self)


def dequantize(codebook: Tensor, tensor: CodebookTensor) -> Tensor:
    """Return the tensor with the codes and indices of `tensor` and the values of `codebook`, [k].

    Args:
        codebook: The values of the codes, [k], such as trained centroids.
        tensor: The codes, the positions of the remaining weights, and the shape.

    Returns:
        A tensor of the shape of `tensor` and the dtype of `codebook`; pruned weights are +0.0.
    """
    flat = codebook.new_zeros(tensor.shape.numel())
    return flat.scatter_(0, tensor.indices, codebook[tensor.codes]).reshape(tensor.shape)


def quantize_weights(
    params: Params,
    masks: MaskDict,
    bits: int | Mapping[str, int],
    kmeans_init: str = "linear",
    seed: int = 0,
    *,
    reserve_zero: bool = False,
) -> dict[str, CodebookTensor]:
    """Quantize the remaining weights of each tensor of `masks` by k-means with 2^bits centroids.

    A weight that is exactly zero (or -0.0) counts as pruned, whatever its mask says, and remains zero. A tensor
    without any other weight gets an empty codebook.

    Args:
        params: Weights by name; floating-point, any shape; quantized as float32.
        masks: True where a weight remains; tensors without a mask are left out.
        bits: Bits of a code, 1 to 8; one number for all tensors, or one for each name in `masks`.
        kmeans_init: Initialization of k-means, a key of `KMEANS_INITS`.
        seed: Seed of the random initialization.
        reserve_zero: Whether one of the 2^bits codes is left for zero, which the filler zeros of relative indices
            need: there are 2^bits - 1 centroids. The files of the authors of Deep Compression are like this.

    Returns:
        The quantized tensors by name. A tensor with no more distinct values than centroids keeps them exactly
        (NoEffectWarning).

    Raises:
        QuantizationError: Bits are out of range, missing, or given for a name without a mask.
        ModelError: A mask has no weight of its name and shape, or weights are not floating-point numbers.
        NonFiniteError: A remaining weight is NaN or infinite.
        UnknownNameError: `kmeans_init` is unknown.

    Example:
        >>> weights = {"fc": torch.tensor([0.9, 1.1, 0.0, -3.1, -2.9])}
        >>> quantized = quantize_weights(weights, {"fc": weights["fc"] != 0}, bits=1)
        >>> quantized["fc"].dense()
        tensor([ 1.,  1.,  0., -3., -3.])
    """
    check_masks(params, masks)
    for name in masks:
        if not params[name].is_floating_point():
            raise ModelError(
                f"Expected floating-point weights to quantize, got {name!r} of {params[name].dtype}; leave it out."
            )
    initialize = lookup("initialization of k-means", KMEANS_INITS, kmeans_init)
    bits = check_bits(bits, list(masks))
    result = {}
    for name, mask in masks.items():
        weight = params[name].detach().float().flatten()
        indices = (mask.to(weight.device).flatten() & (weight != 0)).nonzero().squeeze(1)
        values = weight[indices].cpu().numpy()
        num_centroids = 2 ** bits[name] - reserve_zero
        codebook, codes = map(torch.from_numpy, _codebook(values, num_centroids, initialize, seed, name))
        codebook, codes = codebook.to(weight.device), codes.to(weight.device)
        result[name] = CodebookTensor(codebook, codes, indices, params[name].shape)
    return result


def check_bits(bits: int | Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Return the bits of each of `names`, from one number for all or exactly one for each.

    Args:
        bits: Bits of a code, integers from 1 to 8; one number for all, or one for each of `names`.
        names: The names of the weights to quantize.

    Returns:
        The bits by name.

    Raises:
        QuantizationError: Bits are out of range, missing, or given for another name.
    """
    by_name = dict(bits) if isinstance(bits, Mapping) else dict.fromkeys(names, bits)
    problems = {"missing": set(names) - set(by_name), "not to be quantized": set(by_name) - set(names)}
    for problem, keys in problems.items():
        if keys:
            raise QuantizationError(
                f"Expected bits for each of {list(names)}, got {by_name}: {sorted(map(str, keys))} {problem}."
            )
    for name, number in by_name.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MAX_BITS:
            raise QuantizationError(
                f"Expected 1 to {MAX_BITS} bits for {name!r}, as an integer, got {number!r}."
            )
    return by_name


def _codebook(
    weights: NDArray[np.float32], num_centroids: int, initialize: KMeansInit, seed: int, name: str
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The codebook of nonzero weights, ascending, and the code of each weight."""
    if not len(weights):
        return np.zeros(0, np.float32), np.zeros(0, np.intp)
    try:
        values = SortedValues.of(weights)
    except NonFiniteError as error:
        raise NonFiniteError(f"{name!r} cannot be quantized: {error}") from error
    distinct = int(np.count_nonzero(values.values[1:] != values.values[:-1])) + 1
    if distinct <= num_centroids:
        warnings.warn(
            f"{name!r} has {distinct} distinct nonzero values, which {num_centroids} centroids represent exactly: "
            "quantization has no effect.",
            NoEffectWarning,
            stacklevel=3,
        )
        return np.unique(weights, return_inverse=True)
    generator = np.random.default_rng(derive_seed(seed, "codebook", name))
    centroids = cluster(values, initialize(values, num_centroids, generator), num_centroids)
    # Centroids that have not converged may round to one float32 number. -0.0 becomes 0.0.
    codebook, merged = np.unique(centroids.astype(np.float32) + np.float32(0), return_inverse=True)
    codes = merged[nearest(weights, centroids)]
    if len(codebook) < num_centroids:
        warnings.warn(
            f"{name!r} has {distinct} distinct nonzero values, for which {len(codebook)} of {num_centroids} centroids "
            "are used.",
            UnusedCentroidsWarning,
            stacklevel=3,
        )
    return codebook, codes
