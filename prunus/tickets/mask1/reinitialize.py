"""Reinitialize: kept weights are drawn anew, from the distribution they were first drawn from.

    w ~ the initialization

Source: Frankle & Carbin 2019, section 2 ("random reinitialization"): the control of the winning ticket.
Also called: random reinit, reinit. What Zhou et al. 2019's code calls so is `permute`.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
The draw hangs on the seed alone: with one seed for all rounds, weights start from one redrawn network.
"""

from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.statistical_checks import consistent_with_permutation, consistent_with_selected_sample
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """A fresh draw of every weight."""
    drawn = past.fresh(seed)
    return {name: drawn[name].detach().clone() for name in past.original}


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """A draw cannot be known by its values; that it is not the old one, and drawn likewise, can."""
    layers = [(start[name][mask], past.original[name]) for name, mask in masks.items()]
    return {
        **is_fresh_draw(past, masks, start),
        "kept weights are distributed as initial ones, but for what a criterion may have chosen": all(
            consistent_with_selected_sample(kept, layer)
            and consistent_with_selected_sample(kept.abs(), layer.abs())
            for kept, layer in layers
        ),
    }


def is_fresh_draw(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """That kept weights are not the old ones; those may have ties, or be all of one magnitude."""

    def others_than(old: Params) -> bool:
        return all(
            consistent_with_permutation(start[name][mask], old[name][mask], past.original[name].flatten())
            for name, mask in masks.items()
        )

    return {
        "no more kept weights than by chance are initial ones": others_than(past.original),
        "no more kept weights than by chance are the rewind point's": others_than(past.rewind),
    }


reinitialize = Mask1Action(values, claims)
