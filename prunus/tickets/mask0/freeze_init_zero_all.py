"""Freeze or zero, kept weights too: as `freeze_init_zero`, and kept ones that moved towards zero start at 0.

    w[newly pruned] = 0 if |w_start| > |w_final| else w_start,  w[pruned earlier] as it was
    w[kept]         = 0 if |w_start| > |w_final| or w_start = 0, else as the mask-1 action says; and trains

Source: Zhou et al. 2019, section 4 (mask-0 actions), Variant 2.
A kept weight that started at 0 does so again: in the authors' code rounds start from the previous round's start, and
zeros stay. Here mask-1 actions go back to the initialization, so it has to be said.
Magnitudes alone are compared; a weight that never moved counts as not moved towards zero.
Everything else follows the mask-1 action. What the optimizer remembers of pruned weights is of no effect, since they
are set back after every step; for a kept weight that starts at 0 it remembers what it does for the others.
"""

from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.mask0.freeze_init_zero import values as zero_pruned
from prunus.tickets.mask0.places import magnitude_change, zero_or_frozen
from prunus.tickets.statistical_checks import equal_at, zero_at
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
    """Pruned weights as in Variant 1, and zeros among the kept."""
    start = zero_pruned(past, masks, kept, seed)
    return {
        name: start[name].masked_fill(
            mask & ((magnitude_change(past, name) < 0) | (past.start[name] == 0)), 0.0
        )
        for name, mask in masks.items()
    }


def claims(past: WeightHistory, masks: MaskDict, kept: Params, start: Params) -> Invariants:
    """Zeros where the rule says, pruned or kept."""
    towards = {name: past.start[name].abs() > past.final[name].abs() for name in masks}
    zeros = {name: mask & (towards[name] | (past.start[name] == 0)) for name, mask in masks.items()}
    others = {name: mask & ~zeros[name] for name, mask in masks.items()}
    return {
        "every kept weight that moved towards zero, or started there, is zero": zero_at(zeros, start),
        "every other kept weight is what the mask-1 action made it": equal_at(others, start, kept),
        **zero_or_frozen(past, masks, towards, start),
    }


freeze_init_zero_all = Mask0Action(values, claims)
