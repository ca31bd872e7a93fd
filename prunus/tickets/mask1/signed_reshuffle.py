"""Signed reshuffle: the initial magnitudes of kept weights change places; every place keeps its sign.

    w[kept] = sign(w_initial[kept]) · π(|w_initial[kept]|)

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Departs: always from the initialisation, where their code starts from the previous round's; a weight that is exactly
zero has no sign, so it stays zero, and the others change places.
Everything else: biases, BatchNorm and the optimiser's memory go back to the rewind point.
"""

from prunus.nouns import Masks, Params
from prunus.seeds import generator
from prunus.tickets.checks import no_more_stay_than_by_chance, part_of
from prunus.tickets.mask1.shuffles import shuffle, with_signs_of
from prunus.tickets.past import Claims, KeptAction, Past


def values(past: Past, masks: Masks, seed: int) -> Params:
    """The initial weights, the magnitudes of the kept ones in another order."""
    return {
        name: with_signs_of(
            weight, shuffle(weight, masks[name] & (weight != 0), generator(seed, "signed_reshuffle", name))
        )
        for name, weight in past.original.items()
    }


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """Signs of the place, magnitudes of the kept."""
    layers = [(start[name][mask], past.original[name][mask]) for name, mask in masks.items()]
    moving = [(kept[kept != 0].abs(), before[kept != 0].abs()) for kept, before in layers]
    return {
        "every kept weight has its initial sign": all(
            bool((kept.sign() == before.sign()).all()) for kept, before in layers
        ),
        "their magnitudes are a permutation of the initial ones": all(
            part_of(kept.abs(), before.abs()) for kept, before in layers
        ),
        "no more of them than by chance stand where they stood": all(
            no_more_stay_than_by_chance(kept, before, before) for kept, before in moving
        ),
    }


signed_reshuffle = KeptAction(values, claims)
