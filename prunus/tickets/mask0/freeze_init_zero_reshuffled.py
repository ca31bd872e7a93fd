"""Freeze or zero, reshuffled: as many zeros as `freeze_init_zero` has, at random among the newly pruned weights.

    w[newly pruned] = 0 at random places, else w_start,  w[pruned earlier] as it was

Source: Zhou et al. 2019, section 4 (mask-0 actions): a control for how many are zero.
Also called: freeze_init_zero_reshuffle.
The number is exact, layer by layer; a weight that started at 0 is zero anyway and not drawn.
Everything else follows the mask-1 action. What the optimizer remembers of pruned weights is of no effect, since they
are set back after every step.
"""

import torch
from torch import Tensor

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.mask0.places import (
    kept_unchanged,
    magnitude_change,
    newly_pruned,
    previously_pruned_unchanged,
)
from prunus.tickets.statistical_checks import consistent_with_hypergeometric, equal_at
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
    """Kept weights; where pruned, what the last training started from or 0."""
    start = {}
    for name, new in newly_pruned(past, masks).items():
        zeros = int((new & (magnitude_change(past, name) < 0)).sum())
        draw = make_generator(seed, "freeze_init_zero_reshuffled", name)
        places = _some(new & (past.start[name] != 0), zeros, draw)
        start[name] = torch.where(masks[name], kept[name], past.start[name].masked_fill(places, 0.0)).detach()
    return start


def _some(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A mask of `count` of `places`."""
    where = places.flatten().nonzero().squeeze(1)
    chosen = torch.zeros_like(places).flatten()
    chosen[where[torch.randperm(len(where), generator=generator)[:count].to(where.device)]] = True
    return chosen.reshape(places.shape)


def claims(past: WeightHistory, masks: MaskDict, kept: Params, start: Params) -> Invariants:
    """The number of zeros, nothing else changed, and no preference for those that moved towards zero."""
    free = {name: ~mask & past.masks[name] & (past.start[name] != 0) for name, mask in masks.items()}
    towards = {
        name: place & (past.start[name].abs() > past.final[name].abs()) for name, place in free.items()
    }
    zeros = {name: place & (start[name] == 0) for name, place in free.items()}
    others = {name: past.masks[name] & ~mask & ~zeros[name] for name, mask in masks.items()}
    count = {name: int(place.sum()) for name, place in towards.items()}
    return {
        **kept_unchanged(masks, kept, start),
        "as many newly pruned weights are set to zero as moved towards it": all(
            int(zeros[name].sum()) == number for name, number in count.items()
        ),
        "which are is chance": all(
            consistent_with_hypergeometric(
                int((zeros[name] & towards[name]).sum()), number, number, int(free[name].sum())
            )
            for name, number in count.items()
        ),
        "every other newly pruned weight is what the last training started from": equal_at(
            others, start, past.start
        ),
        **previously_pruned_unchanged(past, masks, start),
    }


freeze_init_zero_reshuffled = Mask0Action(values, claims)
