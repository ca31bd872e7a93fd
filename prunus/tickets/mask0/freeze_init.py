"""Freeze at the initialization: pruned weights go back to their initial value and stay there.

    w[newly pruned] = w_initial,  w[pruned earlier] as it was

Source: Zhou et al. 2019, section 4 (mask-0 actions): worse than 0, so that 0 is more than a way not to train.
Departs: always the initialization, step 0, whatever kept weights start from. Their code freezes at what the previous
round started from, which is the same where weights are rewound to step 0.
Everything else follows the mask-1 action. What the optimizer remembers of pruned weights is of no effect, since they
are set back after every step.
"""

import torch

from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.mask0.places import kept_unchanged, newly_pruned, previously_pruned_unchanged
from prunus.tickets.statistical_checks import equal_at
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
    """Kept weights; initial ones where this round prunes; and what stood where earlier ones did."""
    return {
        name: torch.where(
            masks[name], kept[name], torch.where(new, past.original[name], past.start[name])
        ).detach()
        for name, new in newly_pruned(past, masks).items()
    }


def claims(past: WeightHistory, masks: MaskDict, kept: Params, start: Params) -> Invariants:
    """Equality, place by place."""
    new = {name: ~mask & past.masks[name] for name, mask in masks.items()}
    return {
        **kept_unchanged(masks, kept, start),
        "every newly pruned weight has its initial value": equal_at(new, start, past.original),
        **previously_pruned_unchanged(past, masks, start),
    }


freeze_init = Mask0Action(values, claims)
