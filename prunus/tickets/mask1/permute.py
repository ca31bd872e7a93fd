"""Permute: the initial weights of a layer, kept and pruned, change places.

    w = π(w_initial),  π over the layer

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Also called: random reinit, in their code; a fresh draw, which the words promise, is `reinitialize`.
Departs: always from the initialization. Their code permutes what the previous round had permuted.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
"""

import torch

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.mask1.shuffles import permute_at
from prunus.tickets.statistical_checks import consistent_with_permutation, is_sub_multiset
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The initial weights, in another order."""
    return {
        name: permute_at(
            weight, torch.ones_like(weight, dtype=torch.bool), make_generator(seed, "permute", name)
        )
        for name, weight in past.original.items()
    }


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Initial weights of the layer, elsewhere than they were."""
    layers = [(start[name][mask], past.original[name], mask) for name, mask in masks.items()]
    return {
        "kept weights are initial weights of their layer, none twice": all(
            is_sub_multiset(kept, layer.flatten()) for kept, layer, _ in layers
        ),
        "no more of them than by chance stand where they stood": all(
            consistent_with_permutation(kept, layer[mask], layer.flatten()) for kept, layer, mask in layers
        ),
    }


permute = Mask1Action(values, claims)
