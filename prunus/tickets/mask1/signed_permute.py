"""Signed permute: the initial magnitudes of a layer, kept and pruned, change places; every place keeps its sign.

    w = sign(w_initial) · π(|w_initial|),  π over the layer

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Also called: signed reinit, in their code; with freshly drawn magnitudes it is `signed_reinitialize`.
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
    """The initial weights, their magnitudes in another order."""
    return {
        name: with_signs_of(
            weight, permute_at(weight, weight != 0, make_generator(seed, "signed_permute", name))
        )
        for name, weight in past.original.items()
    }


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Signs of the place, magnitudes of the layer."""
    layers = [(start[name][mask], past.original[name], mask) for name, mask in masks.items()]
    return {
        "every kept weight has its initial sign": all(
            bool((kept.sign() == layer[mask].sign()).all()) for kept, layer, mask in layers
        ),
        "their magnitudes are initial ones of their layer, none twice": all(
            is_sub_multiset(kept.abs(), layer.abs().flatten()) for kept, layer, _ in layers
        ),
        "no more of them than by chance stand where they stood": all(
            consistent_with_permutation(
                kept[kept != 0].abs(), layer[mask][kept != 0].abs(), layer[layer != 0].abs()
            )
            for kept, layer, mask in layers
        ),
    }


signed_permute = Mask1Action(values, claims)
