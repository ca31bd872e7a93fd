"""The weights under a supermask: those of the network's initialization, or made of them, or generated from a seed.

    initial           as the network was initialized                            Zhou et al. 2019, section 5
    signed_constant   their signs, times the standard deviation of the layer    the same, "signed constant"
    glorot            normal, deviation sqrt(2 / (fan_in + fan_out))
    signed_glorot     that deviation, with random signs
    kaiming           normal, deviation sqrt(2 / fan_in)                        Ramanujan et al. 2020, section 4
    signed_kaiming    that deviation, with random signs                         the same, "signed Kaiming constant"

The last four come from `prunus.seeded_tensors`, so that a file need hold no more of them than a seed. All are times a
multiplier; "scaled fan" (Ramanujan et al. 2020) is the multiplier 1 / sqrt(density).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod, sqrt

import torch
from torch import Tensor

from prunus.seeded_tensors import SeededTensor, seeded_tensor_with_std
from prunus.seeds import derive_seed
from prunus.tickets.mask1.scale import population_std
from prunus.types import Params


@dataclass(frozen=True)
class FrozenWeights:
    """Weights that are never trained."""

    values: Params
    generated: Mapping[str, SeededTensor] = field(default_factory=dict)
    """How each comes from a seed, where they do."""


Draw = Callable[[Params, float, int], FrozenWeights]
"""(initial weights, multiplier, seed) -> the weights; those that are generated look at nothing but the shapes."""


def fan_in_fan_out(weight: Tensor) -> tuple[int, int]:
    """Inputs and outputs of a weight [O, I, K...], counted as torch's initializations count them.

    >>> fan_in_fan_out(torch.empty(8, 3, 5, 5))
    (75, 200)
    """
    kernel = prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] * kernel


def initial(first: Params, multiplier: float, seed: int) -> FrozenWeights:
    """As initialized."""
    return FrozenWeights({name: weight.detach() * multiplier for name, weight in first.items()})


def signed_constant(first: Params, multiplier: float, seed: int) -> FrozenWeights:
    """The initial signs, times σ of the layer's initial weights as a population."""
    return FrozenWeights(
        {name: weight.sign() * (population_std(weight) * multiplier) for name, weight in first.items()}
    )


def generated(generator: str, fan: Callable[[int, int], float]) -> Draw:
    """Weights of `generator` with the deviation 1 / sqrt(fan(inputs, outputs)), a seed a tensor."""

    def draw(first: Params, multiplier: float, seed: int) -> FrozenWeights:
        how = {
            name: seeded_tensor_with_std(
                generator, derive_seed(seed, name), multiplier / sqrt(fan(*fan_in_fan_out(weight)))
            )
            for name, weight in first.items()
        }
        values = {name: torch.from_numpy(how[name].values(tuple(w.shape))).to(w) for name, w in first.items()}
        return FrozenWeights(values, how)

    return draw


def _glorot(inputs: int, outputs: int) -> float:
    return (inputs + outputs) / 2


def _kaiming(inputs: int, outputs: int) -> float:
    return inputs / 2


WEIGHT_INITS: dict[str, Draw] = {
    "initial": initial,
    "signed_constant": signed_constant,
    "glorot": generated("normals", _glorot),
    "signed_glorot": generated("signs", _glorot),
    "kaiming": generated("normals", _kaiming),
    "signed_kaiming": generated("signs", _kaiming),
}
