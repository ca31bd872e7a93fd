"""Networks that are small without pruning: of low rank, and trained on the outputs of another network."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.training.losses import LossFunction

TEMPERATURE, SOFT_FRACTION = 4.0, 0.9
"""Of distillation: what logits are divided by, and the weight of the loss against the outputs of the dense network."""


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


def distillation_loss(teacher: nn.Module) -> LossFunction:
    """The loss of Hinton, Vinyals & Dean 2015, section 2: (1 - a) CE(labels) + a T² CE(softmax(teacher / T)).

    Args:
        teacher: The network whose outputs a smaller one learns; a is SOFT_FRACTION and T is TEMPERATURE.

    Returns:
        A loss as `prunus.train` takes it: (outputs, (inputs, labels)) -> the mean loss.
    """
    teacher.eval()

    def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        with torch.no_grad():
            targets = (teacher(inputs) / TEMPERATURE).softmax(1)
        soft = F.cross_entropy(outputs / TEMPERATURE, targets)
        return (1 - SOFT_FRACTION) * F.cross_entropy(outputs, labels) + SOFT_FRACTION * TEMPERATURE**2 * soft

    return loss
