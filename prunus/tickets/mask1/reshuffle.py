"""Reshuffle: the initial values of a layer's kept weights change places among themselves.

    w[kept] = π(w_initial[kept])

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Also called: random reshuffle.
Departs: always from the initialization. Their code reshuffles what the previous round had reshuffled.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
"""

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.mask1.shuffles import permute_at
from prunus.tickets.statistical_checks import consistent_with_permutation, is_sub_multiset
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The initial values of kept weights in another order; pruned places as they were."""
    return {
        name: permute_at(weight, masks[name], make_generator(seed, "reshuffle", name))
        for name, weight in past.original.items()
    }


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """A permutation, and not the identity."""
    layers = [(start[name][mask], past.original[name][mask]) for name, mask in masks.items()]
    return {
        "kept weights are a permutation of their initial values": all(
            is_sub_multiset(kept, before) for kept, before in layers
        ),
        "no more of them than by chance stand where they stood": all(
            consistent_with_permutation(kept, before, before) for kept, before in layers
        ),
    }


reshuffle = Mask1Action(values, claims)
