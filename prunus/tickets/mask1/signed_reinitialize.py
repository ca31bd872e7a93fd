"""Signed reinitialize: magnitudes are drawn anew, signs are the initial ones.

    w = sign(w_initial) · |draw|

Source: Zhou et al. 2019, section 3 (mask-1 actions): with their signs, redrawn weights train nearly as well as rewound
ones. Their code permutes the layer where its name says draw; that is `signed_permute`.
Everything else: biases, BatchNorm and the optimizer's memory go back to the rewind point.
"""

from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.mask1.reinitialize import is_fresh_draw
from prunus.tickets.mask1.reinitialize import values as draw
from prunus.tickets.mask1.shuffles import with_signs_of
from prunus.tickets.statistical_checks import consistent_with_selected_sample
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """A fresh draw of every weight, with the sign of its initial value; an initial zero stays zero."""
    return {
        name: with_signs_of(past.original[name], drawn) for name, drawn in draw(past, masks, seed).items()
    }


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Those of a draw, and signs. A magnitude may be drawn zero (once in 2^24, where the draw is uniform)."""
    layers = [(start[name][mask], past.original[name], mask) for name, mask in masks.items()]
    return {
        **is_fresh_draw(past, masks, start),
        "magnitudes are distributed as initial ones, but for what a criterion may have chosen": all(
            consistent_with_selected_sample(kept.abs(), layer.abs()) for kept, layer, _ in layers
        ),
        "no kept weight has another sign than its initial value": all(
            bool(((kept.sign() == layer[mask].sign()) | ((kept == 0) & (layer[mask] != 0))).all())
            for kept, layer, mask in layers
        ),
    }


signed_reinitialize = Mask1Action(values, claims)
