"""The layers whose weights are pruned unless they are excluded.

Linear, Bilinear, convolutions of any kind, Conv1D of transformers     weight
MultiheadAttention                                                     in_proj_weight, or q_, k_ and v_proj_weight
LSTM, GRU, RNN and their cells                                         weight_ih*, weight_hh*, weight_hr*
a layer whose weight is computed (`computed_weights`)                  the parameter whose zeros are the weight's
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from prunus.pruning.computed_weights import ComputedWeight, computed_weights
from prunus.types import MaskDict, Params

LINEAR = (nn.Linear, nn.Bilinear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class WeightLayer:
    """The layer of a prunable weight."""

    module: nn.Module
    attribute: str
    """The name of the weight in the layer, such as "weight"."""
    kind: str
    """"linear" or "conv"."""
    computed: ComputedWeight | None
    """Where the layer computes the weight from the parameter."""


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """The layer of every weight that is pruned unless it is excluded, by the name of its parameter.

    Args:
        model: Any module.

    Returns:
        All names of a parameter that has several are keys.
    """
    layers = {}
    for path, module in model.named_modules(remove_duplicate=False):
        computed = {weight.attribute: weight for weight in computed_weights(module)}
        for attribute in _weight_attributes(module):
            parameter = computed[attribute].parameter if attribute in computed else attribute
            kind = "conv" if isinstance(module, CONVOLUTIONS) else "linear"
            layers[f"{path}.{parameter}".lstrip(".")] = WeightLayer(
                module, attribute, kind, computed.get(attribute)
            )
    return layers


def _weight_attributes(module: nn.Module) -> Iterator[str]:
    """The names of the weights of a layer that are pruned by default."""
    if isinstance(module, LINEAR + CONVOLUTIONS) or is_transformers_conv1d(module):
        yield "weight"
    elif isinstance(module, nn.MultiheadAttention):
        yield from (name for name in ATTENTION_WEIGHTS if getattr(module, name) is not None)
    elif isinstance(module, nn.RNNBase):
        yield from (name for name in module._flat_weights_names if name.startswith("weight_"))
    elif isinstance(module, nn.RNNCellBase):
        yield from ("weight_ih", "weight_hh")


def is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether a module is the Conv1D of Hugging Face transformers, a Linear whose weight is [I, O]."""
    transformers = sys.modules.get("transformers.pytorch_utils")  # not imported here: it takes seconds
    return transformers is not None and isinstance(module, transformers.Conv1D)


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """The kind, "linear" or "conv", of every weight that is pruned unless it is excluded, by parameter name.

    >>> layer_kinds(nn.Sequential(nn.Conv2d(1, 2, 3), nn.LSTM(2, 2)))
    {'0.weight': 'conv', '1.weight_ih_l0': 'linear', '1.weight_hh_l0': 'linear'}
    """
    return {name: layer.kind for name, layer in weight_layers(model).items()}


def masks_of_torch(model: nn.Module, weights: Params) -> MaskDict | None:
    """The masks that torch.nn.utils.prune has set on `weights`; None where it has set none.

    Args:
        model: Any module.
        weights: `prunable_weights(model)`.

    Returns:
        {name: mask}, all True for a weight without a mask.

    >>> layer = torch.nn.utils.prune.l1_unstructured(nn.Linear(2, 1), "weight", amount=1)
    >>> int(masks_of_torch(layer, {"weight_orig": layer.weight_orig})["weight_orig"].sum())
    1
    """
    layers = weight_layers(model)
    masks = {
        name: layer.computed.mask
        for name in weights
        if (layer := layers.get(name)) and layer.computed and layer.computed.mask is not None
    }
    if not masks:
        return None
    return {n: masks[n] if n in masks else torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
