"""Rescaled: another action, its weights as much larger as its layer is larger than what is kept of it.

    w = action(…) · size of the layer / number of kept weights

Source: Zhou et al. 2019; the authors' code rescales four of its actions so. (Their supermasks have a "dynamic weight
rescaling" of the same factor, of every sample anew.)
Also called: *_rescaling.
Always from the initialization, as in the authors' code. A layer of which nothing is kept has the factor 1.
Everything else: as with the action that is rescaled.
"""

from dataclasses import replace

from torch import Tensor

from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.types import MaskDict, Params


def rescaled(action: Mask1Action) -> Mask1Action:
    """`action`, its weights times the inverse of their layer's density.

    The claims are the action's own, of a past in which every weight was as much larger: an order, a sign or a
    statistic of the layer does not care when it was multiplied. So equality stays equality.
    """

    def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
        return _scale(action.values(past, masks, seed), masks)

    def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
        larger = replace(
            past,
            original=_scale(past.original, masks),
            rewind=_scale(past.rewind, masks),
            start=_scale(past.start, masks),
            final=_scale(past.final, masks),
            fresh=lambda seed: _scale(past.fresh(seed), masks),
        )
        return {
            f"before rescaling, {claim}": holds
            for claim, holds in action.claims(larger, masks, start).items()
        }

    return replace(action, values=values, claims=claims)


def _scale(weights: Params, masks: MaskDict) -> Params:
    return {name: weight.detach() * _factor(masks[name]) for name, weight in weights.items()}


def _factor(mask: Tensor) -> float:
    kept = int(mask.sum())
    return mask.numel() / kept if kept else 1.0
