"""Networks whose linear layers have a low rank."""

import copy

import torch
from torch import nn


def low_rank(model: nn.Module, rank: int) -> nn.Module:
    """Replace linear layers by two of a lower rank, from the singular value decomposition W ≈ U_r S_r V_rᵀ.

    Args:
        model: The network; it is not changed.
        rank: The number r of singular values that each layer keeps, at least 1.

    Returns:
        A copy in which a layer is replaced where that needs fewer weights.

    Example:
        >>> [layer.weight.numel() for layer in low_rank(nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 2)), 2).modules()
        ...  if isinstance(layer, nn.Linear)]
        [18, 12, 12]
    """
    model = copy.deepcopy(model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        outputs, inputs = layer.weight.shape
        if rank * (inputs + outputs) >= inputs * outputs:
            continue
        u, s, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        first = nn.Linear(inputs, rank, bias=False)
        second = nn.Linear(rank, outputs, bias=layer.bias is not None)
        with torch.no_grad():
            root = s[:rank].sqrt()
            first.weight.copy_(root[:, None] * vt[:rank])
            second.weight.copy_(u[:, :rank] * root)
            if layer.bias is not None:
                second.bias.copy_(layer.bias)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Sequential(first, second))
    return model
