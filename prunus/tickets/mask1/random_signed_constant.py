"""Random signed constant: every kept weight is plus or minus its layer's standard deviation, the signs permuted.

    w = π(sign(w_initial)) · σ,  π over the layer, σ as in `signed_constant`

Source: Zhou et al. 2019, section 3 (mask-1 actions): the control of `signed_constant`, which fails.
Also called: rand_signed_constant.
Departs: always from the initialization; in their code σ drifts, see `signed_constant`.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
"""

import math

import torch
from torch import Tensor

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.mask1.scale import population_std
from prunus.tickets.mask1.shuffles import permute_at
from prunus.tickets.mask1.signed_constant import has_constant_magnitude
from prunus.tickets.statistical_checks import DEVIATIONS
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """±σ, the signs of the layer in another order."""
    return {
        name: population_std(weight)
        * permute_at(
            weight.detach().sign(),
            torch.ones_like(weight, dtype=torch.bool),
            make_generator(seed, "random_signed_constant", name),
        )
        for name, weight in past.original.items()
    }


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """One magnitude; not more of a sign than the layer has, nor more in place than a permutation brings."""
    signs = [(start[name][mask].sign(), past.original[name].sign(), mask) for name, mask in masks.items()]
    return {
        **has_constant_magnitude(past, masks, start),
        "no sign is more frequent among kept weights than in the layer at first": all(
            int((kept == sign).sum()) <= int((layer == sign).sum())
            for kept, layer, _ in signs
            for sign in (-1, 0, 1)
        ),
        "no more kept weights than by chance have their initial sign, or the other": all(
            _as_permuted(int((kept * layer[mask] == product).sum()), layer, product)
            for kept, layer, mask in signs
            for product in (-1, 1)
        ),
    }


def _as_permuted(found: int, signs: Tensor, product: int) -> bool:
    """Whether a permutation of the layer can have `found` places where both signs have this product.

    The bound is the whole layer's, since a criterion may have kept the very places where signs agree.
    """
    total, plus, minus = signs.numel(), int((signs > 0).sum()), int((signs < 0).sum())
    expected = (plus**2 + minus**2 if product > 0 else 2 * plus * minus) / total
    return found <= expected + DEVIATIONS * math.sqrt(expected) + DEVIATIONS


random_signed_constant = Mask1Action(values, claims)
