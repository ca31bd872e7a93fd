"""Round what is neither pruned nor quantized, such as biases and statistics of BatchNorm, to half precision."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.pruning.weight_layers import layer_kinds
from prunus.types import Params


@torch.no_grad()
def round_to_half(model: nn.Module, weights: Params, exclude: Sequence[str] = ()) -> None:
    """Round the float32 tensors of `model` that a recipe stores in half precision, in place.

    These are the trainable parameters that are not quantized, and the running statistics of BatchNorm layers whose
    parameters are all trainable. A tensor with an entry beyond the range of float16 remains exact.

    Args:
        model: Any module.
        weights: The weights that are quantized and therefore not rounded.
        exclude: Shell patterns over the names of tensors that remain exact. A tied parameter remains exact if a
            pattern matches any of its names, and so do prunable weights that are not in `weights`.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.bias.data.fill_(1 / 3)
        tensor([0.3333])
        >>> round_to_half(layer, {"weight": layer.weight})
        >>> layer.bias.item()
        0.333251953125
    """

    def is_excluded(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in exclude)

    left_out = layer_kinds(model).keys() - weights.keys()
    exact = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in left_out or is_excluded(name)
    }
    tensors: list[Tensor] = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in weights and id(parameter) not in exact
    ]
    for path, norm in model.named_modules():
        if isinstance(norm, _BatchNorm) and all(p.requires_grad for p in norm.parameters()):
            tensors += [b for name, b in norm.named_buffers(path, recurse=False) if not is_excluded(name)]
    limit = torch.finfo(torch.float16).max
    for tensor in tensors:
        if tensor.dtype == torch.float32 and tensor.numel() and float(tensor.abs().max()) <= limit:
            # -0.0, to which small negative numbers are rounded, becomes 0.0.
            tensor.copy_(tensor.half().float() + 0.0)
