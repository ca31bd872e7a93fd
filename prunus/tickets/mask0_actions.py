"""The mask-0 actions of the lottery ticket papers: what pruned weights are set to, and whether they train.

    zero                         w = 0
    train                        w = 0, and pruned weights train like all others; the mask is only a start
    freeze_init                  w = w_initial
    freeze_init_zero             w = 0 if |w_final| < |w_start|, else w_start              (Variant 1)
    freeze_init_zero_all         the same, and kept weights that moved towards zero or started at it start at 0
                                                                                           (Variant 2)
    freeze_init_zero_reshuffled  as many zeros as Variant 1, at random places, else w_start (control)
    freeze_init_zero_reversed    w = 0 if |w_final| > |w_start|, else w_start               (control)

Under the actions that freeze, a weight that an earlier round pruned keeps its value; under `zero` and `train` it is 0.
A weight is newly pruned if the last training still trained it.

Source: Frankle & Carbin 2019, section 2 (`zero`, called `mask` in the code of Zhou et al.); Zhou et al. 2019, section 4
("masking is training"), and the authors' code: `train` is its start `mask_init` with the model `original`.

Differences from the authors' code of Zhou et al. 2019:
    - `freeze_init` always uses the initialization, step 0. Their code uses the values that the previous round started
      from, which are the same where weights are rewound to step 0.
    - Magnitudes are compared, so a weight that crossed zero counts by its distance from zero. A weight that did not
      move is not set to zero. Start and end are those of the last training, as in their code.
    - Variant 2 sets kept weights that started at 0 to 0 again. In their code they are 0 because each round starts from
      the start of the previous one.
    - The number of random zeros is exact in each layer; weights that started at 0 are not drawn.

Biases, BatchNorm and the optimizer state follow the mask-1 action. The optimizer state of frozen weights has no effect,
because they are reset after every step; under `train` it is used.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.statistical_checks import (
    are_equal_where,
    are_zero_where,
    consistent_with_hypergeometric,
)
from prunus.types import MaskDict, Params

FillPruned = Callable[[WeightHistory, MaskDict, int], Params]
"""(history, newly pruned places, seed) -> complete tensors, of which only the pruned places are used."""


def newly_pruned(history: WeightHistory, masks: MaskDict) -> MaskDict:
    """Return the places that this round prunes and the last training still trained."""
    return {name: history.masks[name] & ~mask for name, mask in masks.items()}


def moved_towards_zero(history: WeightHistory, name: str) -> Tensor:
    """Return where the last training made the magnitude smaller."""
    return history.final[name].detach().abs() < history.start[name].detach().abs()


def moved_away_from_zero(history: WeightHistory, name: str) -> Tensor:
    """Return where the last training made the magnitude larger."""
    return history.final[name].detach().abs() > history.start[name].detach().abs()


def fill_pruned(fill: FillPruned) -> Callable[[WeightHistory, MaskDict, Params, int], Params]:
    """Make the `values` of an action from the function that computes the pruned weights."""

    def values(history: WeightHistory, masks: MaskDict, kept_weights: Params, seed: int) -> Params:
        filled = fill(history, newly_pruned(history, masks), seed)
        return {
            name: torch.where(mask, kept_weights[name].detach(), filled[name].detach())
            for name, mask in masks.items()
        }

    return values


def _zeros(history: WeightHistory, new: MaskDict, seed: int) -> Params:
    return {name: torch.zeros_like(history.start[name]) for name in new}


def _initial_where_new(history: WeightHistory, new: MaskDict, seed: int) -> Params:
    return {
        name: torch.where(place, history.initial[name], history.start[name]) for name, place in new.items()
    }


def _zero_where_smaller(history: WeightHistory, new: MaskDict, seed: int) -> Params:
    return {
        n: history.start[n].masked_fill(place & moved_towards_zero(history, n), 0.0)
        for n, place in new.items()
    }


def _zero_where_larger(history: WeightHistory, new: MaskDict, seed: int) -> Params:
    return {
        n: history.start[n].masked_fill(place & moved_away_from_zero(history, n), 0.0)
        for n, place in new.items()
    }


def _zero_at_random(history: WeightHistory, new: MaskDict, seed: int) -> Params:
    filled = {}
    for name, place in new.items():
        count = int((place & moved_towards_zero(history, name)).sum())
        indices = (place & (history.start[name] != 0)).flatten().nonzero().squeeze(1)
        generator = make_generator(seed, "freeze_init_zero_reshuffled", name)
        zeroed = torch.zeros_like(place).flatten()
        zeroed[indices[torch.randperm(len(indices), generator=generator)[:count].to(indices.device)]] = True
        filled[name] = history.start[name].masked_fill(zeroed.reshape(place.shape), 0.0)
    return filled


def _variant_2(history: WeightHistory, masks: MaskDict, kept_weights: Params, seed: int) -> Params:
    start = fill_pruned(_zero_where_smaller)(history, masks, kept_weights, seed)
    return {name: start[name].masked_fill(place, 0.0) for name, place in _kept_zeros(history, masks).items()}


def _kept_zeros(history: WeightHistory, masks: MaskDict) -> MaskDict:
    return {
        name: mask & (moved_towards_zero(history, name) | (history.start[name] == 0))
        for name, mask in masks.items()
    }


# Invariants. Each examines the tensors alone, not how they were computed.


def _kept_unchanged(masks: MaskDict, kept_weights: Params, start: Params) -> Invariants:
    return {
        "every kept weight equals the value of the mask-1 action": are_equal_where(masks, start, kept_weights)
    }


def _earlier_unchanged(history: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    earlier = {name: ~history.masks[name] & ~mask for name, mask in masks.items()}
    return {
        "every weight pruned earlier keeps its value": are_equal_where(earlier, start, history.start),
    }


def _all_zero(history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params) -> Invariants:
    pruned = {name: ~mask for name, mask in masks.items()}
    return {
        **_kept_unchanged(masks, kept_weights, start),
        "every pruned weight is zero": are_zero_where(pruned, start),
    }


def _at_initialization(
    history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params
) -> Invariants:
    new = newly_pruned(history, masks)
    return {
        **_kept_unchanged(masks, kept_weights, start),
        "every newly pruned weight equals its initial value": are_equal_where(new, start, history.initial),
        **_earlier_unchanged(history, masks, start),
    }


def _zero_or_start(history: WeightHistory, masks: MaskDict, zeros: MaskDict, start: Params) -> Invariants:
    """Of the newly pruned weights, those at `zeros` are zero and the others are as the last training started."""
    new = newly_pruned(history, masks)
    zeroed = {name: place & zeros[name] for name, place in new.items()}
    others = {name: place & ~zeros[name] for name, place in new.items()}
    return {
        "every newly pruned weight that must be zero is zero": are_zero_where(zeroed, start),
        "every other newly pruned weight equals the start of the last training": are_equal_where(
            others, start, history.start
        ),
        **_earlier_unchanged(history, masks, start),
    }


def _variant_1_invariants(
    history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params
) -> Invariants:
    smaller = {name: moved_towards_zero(history, name) for name in masks}
    return {**_kept_unchanged(masks, kept_weights, start), **_zero_or_start(history, masks, smaller, start)}


def _reversed_invariants(
    history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params
) -> Invariants:
    larger = {name: moved_away_from_zero(history, name) for name in masks}
    return {**_kept_unchanged(masks, kept_weights, start), **_zero_or_start(history, masks, larger, start)}


def _variant_2_invariants(
    history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params
) -> Invariants:
    zeros = _kept_zeros(history, masks)
    others = {name: mask & ~zeros[name] for name, mask in masks.items()}
    smaller = {name: moved_towards_zero(history, name) for name in masks}
    return {
        "every kept weight that moved towards zero, or started at zero, is zero": are_zero_where(
            zeros, start
        ),
        "every other kept weight equals the value of the mask-1 action": are_equal_where(
            others, start, kept_weights
        ),
        **_zero_or_start(history, masks, smaller, start),
    }


def _reshuffled_invariants(
    history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params
) -> Invariants:
    new = newly_pruned(history, masks)
    free = {name: place & (history.start[name] != 0) for name, place in new.items()}
    smaller = {name: place & moved_towards_zero(history, name) for name, place in free.items()}
    zeros = {name: place & (start[name] == 0) for name, place in free.items()}
    others = {name: place & ~zeros[name] for name, place in new.items()}
    counts = {name: int(place.sum()) for name, place in smaller.items()}
    by_chance = all(
        consistent_with_hypergeometric(int((zeros[n] & smaller[n]).sum()), count, count, int(free[n].sum()))
        for n, count in counts.items()
    )
    return {
        **_kept_unchanged(masks, kept_weights, start),
        "as many newly pruned weights are zero as moved towards zero": all(
            int(zeros[name].sum()) == count for name, count in counts.items()
        ),
        "the choice of the zeros is consistent with chance": by_chance,
        "every other newly pruned weight equals the start of the last training": are_equal_where(
            others, start, history.start
        ),
        **_earlier_unchanged(history, masks, start),
    }


MASK0_ACTIONS: dict[str, Mask0Action] = {
    "zero": Mask0Action(
        fill_pruned(_zeros),
        _all_zero,
        description="w = 0, frozen: the lottery ticket (Frankle & Carbin 2019).",
    ),
    "freeze_init": Mask0Action(
        fill_pruned(_initial_where_new),
        _at_initialization,
        description="w = w_initial, frozen (Zhou et al. 2019).",
    ),
    "freeze_init_zero": Mask0Action(
        fill_pruned(_zero_where_smaller),
        _variant_1_invariants,
        description="w = 0 if training moved it towards zero, else its start, frozen (Zhou et al. 2019, Variant 1).",
    ),
    "freeze_init_zero_all": Mask0Action(
        _variant_2,
        _variant_2_invariants,
        description="freeze_init_zero, and kept weights moved towards zero start at 0 (Zhou et al. 2019, Variant 2).",
    ),
    "freeze_init_zero_reshuffled": Mask0Action(
        fill_pruned(_zero_at_random),
        _reshuffled_invariants,
        description="freeze_init_zero with its zeros at random places, a control (Zhou et al. 2019).",
    ),
    "freeze_init_zero_reversed": Mask0Action(
        fill_pruned(_zero_where_larger),
        _reversed_invariants,
        description="w = 0 if training moved it away from zero, else its start, a control (Zhou et al. 2019).",
    ),
    "train": Mask0Action(
        fill_pruned(_zeros),
        _all_zero,
        freezes=False,
        description="w = 0 at the start, and trains like all others (Zhou et al. 2019, code).",
    ),
}
