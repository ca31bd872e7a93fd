"""Supermask: kept weights start as the supermask has them, so that training starts from a network that works.

    w = w_frozen · factor,  factor the mask's, with its sign and its scale

Source: Zhou et al. 2019, section 5, has the mask and its weights; training the weights under it is ours.
Needs masks that are a supermask's (`masks_of`); no other past holds such weights.
Everything else: as at the rewind point, which is the initialisation the supermask was learned over.
"""

from prunus.errors import SpecError
from prunus.nouns import Masks, Params
from prunus.tickets.checks import equal_at
from prunus.tickets.past import Claims, KeptAction, Past
from prunus.training.state import copies


def values(past: Past, masks: Masks, seed: int) -> Params:
    """The weights under the learned mask. Raises SpecError where none was learned."""
    if not past.learned:
        raise SpecError("Kept weights were to start from a supermask's, but the masks are no supermask's.")
    return copies(past.learned)


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """Equality, and that the mask is the supermask's."""
    return {
        "every kept weight is the supermask's": equal_at(masks, start, past.learned),
        "no kept weight of the supermask is zero": all(
            bool((past.learned[name][mask] != 0).all()) for name, mask in masks.items()
        ),
    }


supermask = KeptAction(values, claims)
