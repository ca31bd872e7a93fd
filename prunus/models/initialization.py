"""Seeded initialization: the weights of a model depend on its seed and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.seeds import make_generator

IMAGENET_SHAPE = (3, 224, 224)
Initialize = Callable[[nn.Module, int], None]
"""(model, seed) -> None: sets the weights of the model, in place."""


def glorot_normal(model: nn.Module, seed: int) -> None:
    """Draw every weight of Linear and Conv2d layers from Glorot's normal distribution and set every bias to zero.

    Variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010; their eq. 12 is the uniform form); the initialization of
    Frankle & Carbin 2019, Figure 2. Each tensor has its own random stream, so that adding a layer does not change
    the weights of the others.

    Args:
        model: Changed in place.
        seed: Seed of the random streams, which also depend on the names of the layers.
    """
    _initialize(model, seed, nn.init.xavier_normal_)


def kaiming_normal(model: nn.Module, seed: int) -> None:
    """Draw every weight of Linear and Conv2d layers from He's normal distribution and set every bias to zero.

    Variance 2 / fan_in (He et al. 2015, "Delving deep into rectifiers", eq. 10).

    Args:
        model: Changed in place.
        seed: Seed of the random streams, as in `glorot_normal`.
    """
    _initialize(model, seed, nn.init.kaiming_normal_)


def _initialize(model: nn.Module, seed: int, fill: Callable[..., Tensor]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fill(module.weight, generator=make_generator(seed, "init", name))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_model(
    name: str, model: nn.Module, seed: int, initialize: Initialize = glorot_normal, **arguments: object
) -> nn.Module:
    """Initialize a built-in model and mark it with the name and arguments from which a file can rebuild it.

    Convolutions store their weights channels-last, which makes training on a CPU a third faster.

    Args:
        name: The key of the model in MODELS.
        model: Changed in place.
        seed: Seed of the initial weights.
        initialize: Sets all weights.
        arguments: Arguments of the function in MODELS, other than the seed.

    Returns:
        `model`.
    """
    with torch.no_grad():
        initialize(model.to(memory_format=torch.channels_last), seed)  # type: ignore[call-overload]
    model.built_in = {"name": name, "arguments": arguments}  # type: ignore[assignment]
    return model


@dataclass(frozen=True)
class BuiltIn:
    """A built-in model: called with a seed and arguments, it returns the network."""

    name: str
    """Its key in MODELS."""
    description: str
    build: Callable[..., nn.Module]
    """Takes the arguments, such as `width` and `classes`, and returns the network before its initialization."""
    initialize: Initialize = kaiming_normal
    input_shape: tuple[int, ...] = (3, 32, 32)
    """Of one example."""

    def __call__(self, *, seed: int = 0, **arguments: object) -> nn.Module:
        """Build the network.

        Args:
            seed: Seed of the initial weights.
            arguments: Those of `build`.

        Returns:
            The network in training mode.
        """
        return build_model(self.name, self.build(**arguments), seed, self.initialize, **arguments)


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """The number of channels of a layer in a network of another width.

    Args:
        channels: The number at width 1.
        width: The factor, above 0.
        multiple: The number is a multiple of this, the nearest one, unless `width` is 1.

    Returns:
        At least `multiple`.

    Raises:
        ModelError: The width is not above 0, or far above what can be built.

    >>> scaled(64, 0.25), scaled(24, 0.4, multiple=8), scaled(64, 1.0)
    (16, 8, 64)
    """
    if not 0 < width <= 1000:
        raise ModelError(f"Expected a width above 0 and at most 1000, got {width}.")
    return channels if width == 1 else max(int(channels * width / multiple + 0.5) * multiple, multiple)
