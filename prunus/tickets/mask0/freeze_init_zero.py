"""Freeze or zero: pruned weights are 0 if training moved them towards zero, else frozen where it started.

    w[newly pruned] = 0 if |w_start| > |w_final| else w_start,  w[pruned earlier] as it was

Source: Zhou et al. 2019, section 4 (mask-0 actions), Variant 1: "masking is training".
Also called: freeze_init_zero_mask.
Magnitudes alone are compared, so a weight that crossed zero counts by how far it went. One that never moved stays
where it started. Start and end are those of the last training, in the authors' code as here.
Everything else follows the mask-1 action. What the optimiser remembers of pruned weights is of no effect, since they
are set back after every step.
"""

import torch

from prunus.nouns import Masks, Params
from prunus.tickets.mask0.places import all_kept, grown, newly, zero_or_held
from prunus.tickets.past import Claims, Past, PrunedAction


def values(past: Past, masks: Masks, kept: Params, seed: int) -> Params:
    """Kept weights; where pruned, what the last training started from or 0."""
    return {
        name: torch.where(
            masks[name], kept[name], past.start[name].masked_fill(new & (grown(past, name) < 0), 0.0)
        ).detach()
        for name, new in newly(past, masks).items()
    }


def claims(past: Past, masks: Masks, kept: Params, start: Params) -> Claims:
    """Zeros where the rule says, the start elsewhere."""
    towards = {name: past.start[name].abs() > past.final[name].abs() for name in masks}
    return {**all_kept(masks, kept, start), **zero_or_held(past, masks, towards, start)}


freeze_init_zero = PrunedAction(values, claims)
