"""How R networks of one shape lie in memory as one, and how that one answers.

    Layers     linear layers with ReLU between: weights [R, I, O], batched products; the one for a CPU
    Mapped     any network without buffers: its own forward, mapped over R; on a GPU, where convolutions gain from it

R replicate, B batch, I in, O out, C classes.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from prunus.errors import ModelError


class Layout(Protocol):
    """What a stack asks of a layout."""

    names: list[str]
    """The parameters of one network, in order."""

    def laid(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of one network, of the parameter's shape, as its slice of the stack."""

    def back(self, name: str, part: Tensor) -> Tensor:
        """The inverse of `laid`."""

    def inputs(self, pictures: Tensor) -> Tensor:
        """[N, ...] as the stack wants its examples."""

    def answer(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """[R, B, ...] -> logits [R, B, C]."""


class Layers:
    """Linear layers with biases, and ReLU between them."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        self.names = [f"{layer}.{part}" for layer in self.layers for part in ("weight", "bias")]

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether the model has nothing but linear layers with biases; how they are joined is tried out later."""
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        known = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        return bool(layers) and {name for name, _ in model.named_parameters()} == known

    def laid(self, name: str, tensor: Tensor) -> Tensor:
        """[O, I] -> [I, O];  [O] -> [1, O]."""
        return tensor.detach().T if tensor.dim() == 2 else tensor.detach().unsqueeze(0)

    def back(self, name: str, part: Tensor) -> Tensor:
        """[I, O] -> [O, I];  [1, O] -> [O]."""
        return part.detach().squeeze(0) if name.endswith("bias") else part.detach().T

    def inputs(self, pictures: Tensor) -> Tensor:
        """[N, ...] -> [N, I]."""
        return pictures.flatten(1)

    def answer(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """[R, B, I] -> [R, B, C]."""
        for place, layer in enumerate(self.layers):
            x = torch.baddbmm(tensors[f"{layer}.bias"], x, tensors[f"{layer}.weight"])
            if place < len(self.layers) - 1:
                x = F.relu(x)
        return x


class Mapped:
    """The model's own forward, mapped over the replicates."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]

    def laid(self, name: str, tensor: Tensor) -> Tensor:
        """As it is."""
        return tensor.detach()

    def back(self, name: str, part: Tensor) -> Tensor:
        """As it is."""
        return part.detach()

    def inputs(self, pictures: Tensor) -> Tensor:
        """As they are."""
        return pictures

    def answer(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """[R, B, ...] -> [R, B, C]."""

        def one(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            found: Tensor = functional_call(self.model, dict(parameters), (inputs,))
            return found

        mapped: Tensor = vmap(one, randomness="different")(dict(tensors), x)
        return mapped


def layout_of(model: nn.Module, device: str) -> Layout:
    """The layout for a model on a device. Raises ModelError where stacking it is impossible, or slower than not."""
    if list(model.buffers()):
        raise ModelError(
            f"{type(model).__name__} has buffers (BatchNorm's statistics, say), which cannot be stacked; use the "
            "engine inline or processes."
        )
    if Layers.fits(model):
        return Layers(model)
    if torch.device(device).type == "cpu":
        raise ModelError(
            f"{type(model).__name__} is not made of linear layers with biases alone, and on a CPU others train "
            "faster one after the other than stacked; use the engine inline or processes."
        )
    return Mapped(model)
