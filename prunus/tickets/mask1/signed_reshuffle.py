"""Signed reshuffle: the initial magnitudes of kept weights change places; every place keeps its sign.

    w[kept] = sign(w_initial[kept]) · π(|w_initial[kept]|)

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Departs: always from the initialization, where their code starts from the previous round's; a weight that is exactly
zero has no sign, so it stays zero, and the others change places.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
"""

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.mask1.shuffles import permute_at, with_signs_of
from prunus.tickets.statistical_checks import consistent_with_permutation, is_sub_multiset
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The initial weights, the magnitudes of the kept ones in another order."""
    return {
        name: with_signs_of(
            weight,
            permute_at(weight, masks[name] & (weight != 0), make_generator(seed, "signed_reshuffle", name)),
        )
        for name, weight in past.original.items()
    }


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Signs of the place, magnitudes of the kept."""
    layers = [(start[name][mask], past.original[name][mask]) for name, mask in masks.items()]
    moving = [(kept[kept != 0].abs(), before[kept != 0].abs()) for kept, before in layers]
    return {
        "every kept weight has its initial sign": all(
            bool((kept.sign() == before.sign()).all()) for kept, before in layers
        ),
        "their magnitudes are a permutation of the initial ones": all(
            is_sub_multiset(kept.abs(), before.abs()) for kept, before in layers
        ),
        "no more of them than by chance stand where they stood": all(
            consistent_with_permutation(kept, before, before) for kept, before in moving
        ),
    }


signed_reshuffle = Mask1Action(values, claims)
