"""Supermask: kept weights start as the supermask has them, so that training starts from a network that works.

    w = w_frozen · factor,  factor the mask's, with its sign and its scale

Source: Zhou et al. 2019, section 5, has the mask and its weights; training the weights under it is ours.
Needs masks that are a supermask's (`masks_from`); no other past holds such weights.
Everything else: as at the rewind point, which is the initialization the supermask was learned over.
"""

from prunus.errors import SpecError
from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.statistical_checks import equal_at
from prunus.training.state import clone_tensors
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The weights under the learned mask. Raises SpecError where none was learned."""
    if not past.learned:
        raise SpecError("Kept weights were to start from a supermask's, but the masks are no supermask's.")
    return clone_tensors(past.learned)


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Equality, and that the mask is the supermask's."""
    return {
        "every kept weight is the supermask's": equal_at(masks, start, past.learned),
        "no kept weight of the supermask is zero": all(
            bool((past.learned[name][mask] != 0).all()) for name, mask in masks.items()
        ),
    }


supermask = Mask1Action(values, claims)
