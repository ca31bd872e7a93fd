"""The weights under a supermask: those of the network's initialization, derived from them, or drawn from a seed.

    initial           as the network was initialized                            Zhou et al. 2019, section 5
    signed_constant   their signs, times the standard deviation of the layer    the same, "signed constant"
    glorot            normal, standard deviation sqrt(2 / (fan_in + fan_out))
    signed_glorot     that standard deviation, with random signs
    kaiming           normal, standard deviation sqrt(2 / fan_in)               Ramanujan et al. 2020, section 4
    signed_kaiming    that standard deviation, with random signs                the same, "signed Kaiming constant"

The last four are made by `prunus.seeded_tensors`, so a file stores a seed instead of them. All are multiplied by a
multiplier; "scaled fan" (Ramanujan et al. 2020) is the multiplier 1 / sqrt(density).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, prod, sqrt

import torch
from torch import Tensor

from prunus.errors import SpecError
from prunus.registry import lookup
from prunus.seeded_tensors import SeededTensor, seeded_tensor_with_std
from prunus.seeds import derive_seed
from prunus.tickets.statistical_checks import population_std
from prunus.types import Params


def check_fixed_weights(kind: str, multiplier: float) -> None:
    """Check the settings of the weights under a mask.

    Args:
        kind: A key of WEIGHT_INITS.
        multiplier: Factor of the weights.

    Raises:
        UnknownNameError: There is no such kind.
        SpecError: The multiplier is not above 0, or not finite.
    """
    if not 0 < multiplier < inf:
        raise SpecError(f"Expected a positive, finite multiplier, got {multiplier}.")
    lookup("kind of weights", WEIGHT_INITS, kind)


@dataclass(frozen=True)
class FrozenWeights:
    """Weights that are never trained."""

    values: Params
    seeded: Mapping[str, SeededTensor] = field(default_factory=dict)
    """How each weight is made from a seed, for those that are."""


MakeWeights = Callable[[Params, float, int], FrozenWeights]
"""(initial weights, multiplier, seed) -> the weights; those from a seed use only the shapes of the initial weights."""


def fan_in_fan_out(weight: Tensor) -> tuple[int, int]:
    """Return inputs and outputs of a weight [O, I, K...], counted as in `torch.nn.init`.

    Example:
        >>> fan_in_fan_out(torch.empty(8, 3, 5, 5))
        (75, 200)
    """
    kernel = prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] * kernel


def initial(weights: Params, multiplier: float, seed: int) -> FrozenWeights:
    """Return the initial weights times the multiplier; the seed is not used.

    Args:
        weights: The initial weights by name.
        multiplier: The factor of the weights, above 0.
        seed: Not used.

    Returns:
        The weights, none of which is made from a seed.
    """
    return FrozenWeights({name: weight.detach() * multiplier for name, weight in weights.items()})


def signed_constant(weights: Params, multiplier: float, seed: int) -> FrozenWeights:
    """Return the initial signs times the standard deviation of the layer as a population; the seed is not used.

    Args:
        weights: The initial weights by name.
        multiplier: The factor of the weights, above 0.
        seed: Not used.

    Returns:
        The weights, none of which is made from a seed; a weight that is initially zero stays zero.
    """
    return FrozenWeights(
        {name: weight.sign() * (population_std(weight) * multiplier) for name, weight in weights.items()}
    )


def from_seeds(generator: str, fan: Callable[[int, int], float]) -> MakeWeights:
    """Return a function that draws weights with the standard deviation multiplier / sqrt(fan), one seed per tensor.

    Args:
        generator: A key of `prunus.seeded_tensors.GENERATORS`.
        fan: Maps fan-in and fan-out of a weight to a number.

    Returns:
        A function of initial weights, multiplier and seed.
    """

    def make(weights: Params, multiplier: float, seed: int) -> FrozenWeights:
        seeded = {}
        for name, weight in weights.items():
            std = multiplier / sqrt(fan(*fan_in_fan_out(weight)))
            seeded[name] = seeded_tensor_with_std(generator, derive_seed(seed, name), std)
        values = {n: torch.from_numpy(seeded[n].values(tuple(w.shape))).to(w) for n, w in weights.items()}
        return FrozenWeights(values, seeded)

    return make


def _glorot(fan_in: int, fan_out: int) -> float:
    return (fan_in + fan_out) / 2


def _kaiming(fan_in: int, fan_out: int) -> float:
    return fan_in / 2


WEIGHT_INITS: dict[str, MakeWeights] = {
    "initial": initial,
    "signed_constant": signed_constant,
    "glorot": from_seeds("normals", _glorot),
    "signed_glorot": from_seeds("signs", _glorot),
    "kaiming": from_seeds("normals", _kaiming),
    "signed_kaiming": from_seeds("signs", _kaiming),
}
