"""Train on: pruned weights start at 0 and train like all others; the mask is only a start.

    w[pruned] = 0, not frozen

Source: Zhou et al. 2019; in the authors' code the start `mask_init` together with the model `original`.
What was pruned in earlier rounds starts at 0 again.
Everything else follows the mask-1 action; the optimizer goes on with what it remembers of pruned weights too, if it
remembers anything.
"""

from prunus.tickets.actions import Mask0Action, WeightHistory
from prunus.tickets.mask0.zero import claims
from prunus.tickets.mask0.zero import values as with_zeros
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
    """Kept weights and zeros."""
    return with_zeros(past, masks, kept, seed)


train_on = Mask0Action(values, claims, frozen=False)
