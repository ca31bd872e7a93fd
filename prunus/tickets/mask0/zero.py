"""Zero: pruned weights are 0 and stay 0; that is the lottery ticket.

    w[pruned] = 0

Source: Frankle & Carbin 2019, section 2; Han et al. 2015, section 3.
Also called: mask (Zhou et al. 2019's code).
Everything else follows the mask-1 action. What the optimizer remembers of pruned weights is of no effect, since they
are set to 0 after every step.
"""

import torch

from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.mask0.places import all_zero, kept_unchanged
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
    """Kept weights and zeros."""
    return {name: torch.where(mask, kept[name].detach(), 0.0) for name, mask in masks.items()}


def claims(past: WeightHistory, masks: MaskDict, kept: Params, start: Params) -> Invariants:
    """Zeros, and nothing else changed."""
    return {**kept_unchanged(masks, kept, start), **all_zero(masks, start)}


zero = Mask0Action(values, claims)
