"""Fully connected networks of any widths, for example for XOR and for the MONK's problems."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from prunus.models.initialization import glorot_normal
from prunus.registry import lookup


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3): its value at 1 is 1, and its second derivative is largest there (LeCun 1989)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element."""
        return 1.7159 * torch.tanh(x * (2 / 3))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "scaled_tanh": ScaledTanh,
    "none": nn.Identity,
}


def mlp(*widths: int, hidden: str = "tanh", output: str = "none", seed: int = 0) -> nn.Sequential:
    """A fully connected network with Glorot-normal weights and zero biases.

    Args:
        widths: The number of inputs, of units of each hidden layer, and of outputs.
        hidden: The activation after each hidden layer, a key of ACTIVATIONS.
        output: The activation after the last layer, a key of ACTIVATIONS.
        seed: Seed of the initial weights.

    Returns:
        The model, [B, widths[0]] -> [B, widths[-1]].

    Raises:
        UnknownNameError: There is no such activation.

    Example:
        >>> sum(p.numel() for p in mlp(17, 3, 1).parameters())
        58
    """
    layers: list[nn.Module] = []
    for number, (i, o) in enumerate(pairwise(widths), start=2):
        name = output if number == len(widths) else hidden
        layers += [nn.Linear(i, o), lookup("activation", ACTIVATIONS, name)()]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        glorot_normal(model, seed)
    return model
