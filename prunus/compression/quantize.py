"""`prunus.quantize`: share the weights of any module in place, in one call."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.compression.checks import bits_by_name
from prunus.compression.quantization import CodebookConstraint, quantize_weights
from prunus.errors import ModelError
from prunus.masks import Masks, all_kept
from prunus.modules import check_initialized, uncompiled
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.weight_layers import masks_of_torch


@torch.inference_mode(False)  # centroids that are made in inference mode cannot be trained
def quantize(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    bits: int | Mapping[str, int] = 5,
    *,
    kmeans_init: str = "linear",
    seed: int = 0,
    reserve_zero: bool = False,
) -> CodebookConstraint:
    """Set the remaining weights of each tensor of `model` to 2^bits centroids, in place.

    Source: Han, Mao & Dally 2016, section 3. `attach` of the result trains the centroids in a training loop of your
    own; `prunus.save(model, path)` then writes a small file.

    Args:
        model: Any module.
        masks: Boolean tensors by parameter name, `prunus.prune(...).masks` for example; only these tensors are
            quantized, and their pruned weights are zero. None: all prunable weights, of which those that are zero stay
            zero.
        bits: Bits of a code, 1 to 8; one number, or numbers by name of the tensor or kind of its layer ("conv",
            "linear").
        kmeans_init: The initialization of k-means: "linear", "density", "random", "cube_root" or "optimal".
        seed: Seed of the random initialization.
        reserve_zero: Whether one of the 2^bits codes is left for zero, as in the files of the authors of Deep
            Compression: there are 2^bits - 1 centroids.

    Returns:
        The codebooks and codes, which hold the weights at their centroids; masks are part of it.

    Raises:
        ModelError: The masks are empty, or a mask has no parameter of its name and shape, or pruned weights that are
            not zero.
        NoPrunableWeightsError, TiedWeightsError: There are no masks, and no weights to quantize.
        QuantizationError: Bits are out of range, missing, or given for another name.
        NonFiniteError: A weight is NaN or infinite.
        UnknownNameError: `kmeans_init` is unknown.

    >>> model = nn.Linear(8, 8)
    >>> quantized = quantize(model, bits=3)
    >>> len(model.weight.unique()), len(quantized.codebooks["weight"])
    (8, 8)
    """
    model = uncompiled(model)
    check_initialized(model)
    if isinstance(masks, Masks) and masks.pruned_values:
        raise ModelError(
            "Expected masks whose pruned weights are zero, got masks with other values; a codebook holds kept weights "
            "only."
        )
    if masks is None:
        prunable = prunable_weights(model)
        masks = masks_of_torch(model, prunable) or all_kept(prunable)
    masks = dict(Masks(model, masks))
    if not masks:
        raise ModelError(
            "Expected masks of the weights to quantize, got none; leave masks out to quantize all weights."
        )
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    bits = bits_by_name(model, list(masks), bits)
    constraint = CodebookConstraint(
        model, quantize_weights(parameters, masks, bits, kmeans_init, seed, reserve_zero=reserve_zero)
    )
    constraint.apply()
    return constraint
