"""Layers with weights and inputs of a fixed seed, in float64."""

import torch
from torch import Tensor, nn

from prunus.pruning.prunable import prunable_weights
from prunus.seeds import make_generator
from prunus.types import Params

OUT, IN, N = 6, 8, 40


def draw(*shape: int, role: str = "x") -> Tensor:
    return torch.randn(shape, generator=make_generator(1, role), dtype=torch.float64)


def correlated(n: int, size: int) -> Tensor:
    return draw(n, size) @ (torch.eye(size, dtype=torch.float64) + draw(size, size, role="mix"))


def linear() -> tuple[nn.Module, Params, Tensor]:
    model = nn.Linear(IN, OUT).double()
    with torch.no_grad():
        model.weight.copy_(draw(OUT, IN, role="w"))
    return model, prunable_weights(model), correlated(N, IN)


def relative_output_errors(hessians, before: Params, after: Params) -> dict[str, float]:
    """|ΔW X|² / |W X|² of each layer."""
    return {
        n: h.error(after[n].detach() - before[n].detach()) / h.error(before[n]) for n, h in hessians.items()
    }


CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "padded": (nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 7, 8)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same"), (4, 6, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 8)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "one": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 9)),
    "one grouped": (nn.Conv1d(4, 6, 3, groups=2), (4, 9)),
    "one replicated": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="replicate"), (4, 9)),
    "one circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9)),
}


def convolution(kind: str) -> tuple[nn.Module, Params, Tensor]:
    layer, shape = CONVOLUTIONS[kind]
    model = nn.Sequential(layer).double()
    with torch.no_grad():
        layer.weight.copy_(draw(*layer.weight.shape, role="w"))
    return model, prunable_weights(model), draw(9, *shape)
