"""Reshuffle: the initial values of a layer's kept weights change places among themselves.

    w[kept] = π(w_initial[kept])

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Also called: random reshuffle.
Departs: always from the initialisation. Their code reshuffles what the previous round had reshuffled.
Everything else: biases, BatchNorm and the optimiser's memory go back to the rewind point.
"""

from prunus.nouns import Masks, Params
from prunus.seeds import generator
from prunus.tickets.checks import no_more_stay_than_by_chance, part_of
from prunus.tickets.mask1.shuffles import shuffle
from prunus.tickets.past import Claims, KeptAction, Past


def values(past: Past, masks: Masks, seed: int) -> Params:
    """The initial values of kept weights in another order; pruned places as they were."""
    return {
        name: shuffle(weight, masks[name], generator(seed, "reshuffle", name))
        for name, weight in past.original.items()
    }


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """A permutation, and not the identity."""
    layers = [(start[name][mask], past.original[name][mask]) for name, mask in masks.items()]
    return {
        "kept weights are a permutation of their initial values": all(
            part_of(kept, before) for kept, before in layers
        ),
        "no more of them than by chance stand where they stood": all(
            no_more_stay_than_by_chance(kept, before, before) for kept, before in layers
        ),
    }


reshuffle = KeptAction(values, claims)
