"""Reinitialise: kept weights are drawn anew, from the distribution they were first drawn from.

    w ~ the initialisation

Source: Frankle & Carbin 2019, section 2 ("random reinitialization"): the control of the winning ticket.
Also called: random reinit, reinit. What Zhou et al. 2019's code calls so is `permute`.
Everything else: biases, BatchNorm and the optimiser's memory go back to the rewind point.
The draw hangs on the seed alone: with one seed for all rounds, weights start from one redrawn network.
"""

from prunus.nouns import Masks, Params
from prunus.tickets.checks import chosen_from_a_draw_like, no_more_stay_than_by_chance
from prunus.tickets.past import Claims, KeptAction, Past


def values(past: Past, masks: Masks, seed: int) -> Params:
    """A fresh draw of every weight."""
    drawn = past.fresh(seed)
    return {name: drawn[name].detach().clone() for name in past.original}


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """A draw cannot be known by its values; that it is not the old one, and drawn likewise, can."""
    layers = [(start[name][mask], past.original[name]) for name, mask in masks.items()]
    return {
        **drawn_anew(past, masks, start),
        "kept weights are distributed as initial ones, but for what a criterion may have chosen": all(
            chosen_from_a_draw_like(kept, layer) and chosen_from_a_draw_like(kept.abs(), layer.abs())
            for kept, layer in layers
        ),
    }


def drawn_anew(past: Past, masks: Masks, start: Params) -> Claims:
    """That kept weights are not the old ones; those may have ties, or be all of one magnitude."""

    def others_than(old: Params) -> bool:
        return all(
            no_more_stay_than_by_chance(start[name][mask], old[name][mask], past.original[name].flatten())
            for name, mask in masks.items()
        )

    return {
        "no more kept weights than by chance are initial ones": others_than(past.original),
        "no more kept weights than by chance are the rewind point's": others_than(past.rewind),
    }


reinitialise = KeptAction(values, claims)
