"""Fully connected networks of any widths: those of XOR, of MONK's problems, and of tests."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from prunus.models.initialization import glorot_normal
from prunus.registry import lookup


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3): 1 at 1, steepest curvature there (LeCun 1989)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return 1.7159 * torch.tanh(x * (2 / 3))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "scaled_tanh": ScaledTanh,
    "none": nn.Identity,
}


def mlp(*widths: int, hidden: str = "tanh", output: str = "none", seed: int = 0) -> nn.Sequential:
    """Linear layers of `widths`, an activation after each: [B, widths[0]] -> [B, widths[-1]].

    Glorot-normal weights, zero biases. `hidden` and `output` are keys of ACTIVATIONS; the last layer's is `output`.

    >>> sum(p.numel() for p in mlp(17, 3, 1).parameters())
    58
    """
    layers: list[nn.Module] = []
    for place, (i, o) in enumerate(pairwise(widths), start=2):
        last = place == len(widths)
        kind = lookup("activation", ACTIVATIONS, output if last else hidden)
        layers += [nn.Linear(i, o), kind()]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        glorot_normal(model, seed)
    return model
