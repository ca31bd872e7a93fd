"""Signed permute: the initial magnitudes of a layer, kept and pruned, change places; every place keeps its sign.

    w = sign(w_initial) · π(|w_initial|),  π over the layer

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Also called: signed reinit, in their code; with freshly drawn magnitudes it is `signed_reinitialise`.
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
    """The initial weights, their magnitudes in another order."""
    return {
        name: with_signs_of(weight, shuffle(weight, weight != 0, generator(seed, "signed_permute", name)))
        for name, weight in past.original.items()
    }


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """Signs of the place, magnitudes of the layer."""
    layers = [(start[name][mask], past.original[name], mask) for name, mask in masks.items()]
    return {
        "every kept weight has its initial sign": all(
            bool((kept.sign() == layer[mask].sign()).all()) for kept, layer, mask in layers
        ),
        "their magnitudes are initial ones of their layer, none twice": all(
            part_of(kept.abs(), layer.abs().flatten()) for kept, layer, _ in layers
        ),
        "no more of them than by chance stand where they stood": all(
            no_more_stay_than_by_chance(
                kept[kept != 0].abs(), layer[mask][kept != 0].abs(), layer[layer != 0].abs()
            )
            for kept, layer, mask in layers
        ),
    }


signed_permute = KeptAction(values, claims)
