"""Signed constant: every kept weight is plus or minus its layer's standard deviation, with its initial sign.

    w = sign(w_initial) · σ,  σ of all initial weights of the layer, as a population

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Departs: σ is always the initialization's. Their code computes it anew from the previous round's ±σ, and it drifts down
with every round (1.3 % in a small layer after 24). An initial weight of exactly zero has no sign and stays zero.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
"""

import torch

from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.mask1.scale import is_deviation, population_std
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """±σ."""
    return {name: weight.detach().sign() * population_std(weight) for name, weight in past.original.items()}


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """The initial signs, and one magnitude."""
    return {
        "every kept weight has its initial sign": all(
            bool((start[name][mask].sign() == past.original[name][mask].sign()).all())
            for name, mask in masks.items()
        ),
        **has_constant_magnitude(past, masks, start),
    }


def has_constant_magnitude(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """That kept weights which are not zero differ in nothing but their sign, and are as large as they should be."""
    sizes = {name: torch.unique(start[name][mask & (start[name] != 0)].abs()) for name, mask in masks.items()}
    return {
        "kept weights of a layer have one magnitude": all(len(size) <= 1 for size in sizes.values()),
        "it is the standard deviation of the layer's initial weights": all(
            is_deviation(value, past.original[name]) for name, size in sizes.items() for value in size
        ),
    }


signed_constant = Mask1Action(values, claims)
