"""Permute: the initial weights of a layer, kept and pruned, change places.

    w = π(w_initial),  π over the layer

Source: Zhou et al. 2019, section 3 (mask-1 actions).
Also called: random reinit, in their code; a fresh draw, which the words promise, is `reinitialise`.
Departs: always from the initialisation. Their code permutes what the previous round had permuted.
Everything else: biases, BatchNorm and the optimiser's memory go back to the rewind point.
"""

import torch

from prunus.nouns import Masks, Params
from prunus.seeds import generator
from prunus.tickets.checks import no_more_stay_than_by_chance, part_of
from prunus.tickets.mask1.shuffles import shuffle
from prunus.tickets.past import Claims, KeptAction, Past


def values(past: Past, masks: Masks, seed: int) -> Params:
    """The initial weights, in another order."""
    return {
        name: shuffle(weight, torch.ones_like(weight, dtype=torch.bool), generator(seed, "permute", name))
        for name, weight in past.original.items()
    }


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """Initial weights of the layer, elsewhere than they were."""
    layers = [(start[name][mask], past.original[name], mask) for name, mask in masks.items()]
    return {
        "kept weights are initial weights of their layer, none twice": all(
            part_of(kept, layer.flatten()) for kept, layer, _ in layers
        ),
        "no more of them than by chance stand where they stood": all(
            no_more_stay_than_by_chance(kept, layer[mask], layer.flatten()) for kept, layer, mask in layers
        ),
    }


permute = KeptAction(values, claims)
