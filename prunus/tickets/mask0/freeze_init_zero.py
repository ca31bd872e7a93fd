"""Freeze or zero: pruned weights are 0 if training moved them towards zero, else frozen where it started.

    w[newly pruned] = 0 if |w_start| > |w_final| else w_start,  w[pruned earlier] as it was

Source: Zhou et al. 2019, section 4 (mask-0 actions), Variant 1: "masking is training".
Also called: freeze_init_zero_mask.
Magnitudes alone are compared, so a weight that crossed zero counts by how far it went. One that never moved stays
where it started. Start and end are those of the last training, in the authors' code as here.
Everything else follows the mask-1 action. What the optimizer remembers of pruned weights is of no effect, since they
are set back after every step.
"""

import torch

from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.mask0.places import kept_unchanged, magnitude_change, newly_pruned, zero_or_frozen
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
    """Kept weights; where pruned, what the last training started from or 0."""
    return {
        name: torch.where(
            masks[name],
            kept[name],
            past.start[name].masked_fill(new & (magnitude_change(past, name) < 0), 0.0),
        ).detach()
        for name, new in newly_pruned(past, masks).items()
    }


def claims(past: WeightHistory, masks: MaskDict, kept: Params, start: Params) -> Invariants:
    """Zeros where the rule says, the start elsewhere."""
    towards = {name: past.start[name].abs() > past.final[name].abs() for name in masks}
    return {**kept_unchanged(masks, kept, start), **zero_or_frozen(past, masks, towards, start)}


freeze_init_zero = Mask0Action(values, claims)
