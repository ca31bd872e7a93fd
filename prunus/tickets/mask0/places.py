"""Which places an action speaks of, and the claims that most of them share. Helpers of the actions."""

from torch import Tensor

from prunus.tickets.actions import Invariants, WeightHistory
from prunus.tickets.statistical_checks import equal_at, zero_at
from prunus.types import MaskDict, Params


def newly_pruned(past: WeightHistory, masks: MaskDict) -> MaskDict:
    """The places that this round prunes."""
    return {name: past.masks[name] & ~mask for name, mask in masks.items()}


def previously_pruned(past: WeightHistory, masks: MaskDict) -> MaskDict:
    """The places that earlier rounds pruned."""
    return {name: ~past.masks[name] & ~mask for name, mask in masks.items()}


def magnitude_change(past: WeightHistory, name: str) -> Tensor:
    """By how much the last training made each magnitude larger; below 0: it moved towards zero."""
    return past.final[name].detach().abs() - past.start[name].detach().abs()


def kept_unchanged(masks: MaskDict, kept: Params, start: Params) -> Invariants:
    """That kept weights are not touched."""
    return {"every kept weight is what the mask-1 action made it": equal_at(masks, start, kept)}


def all_zero(masks: MaskDict, start: Params) -> Invariants:
    """That pruned weights are zero."""
    return {"every pruned weight is zero": zero_at({name: ~mask for name, mask in masks.items()}, start)}


def previously_pruned_unchanged(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """That what was pruned in earlier rounds is left alone."""
    return {
        "every weight pruned earlier has the value it had": equal_at(
            previously_pruned(past, masks), start, past.start
        )
    }


def zero_or_frozen(past: WeightHistory, masks: MaskDict, zeros: MaskDict, start: Params) -> Invariants:
    """That of the newly pruned weights `zeros` are zero and the others frozen where the last training started."""
    new = newly_pruned(past, masks)
    others = {name: place & ~zeros[name] for name, place in new.items()}
    return {
        "every newly pruned weight that should be is zero": zero_at(
            {name: place & zeros[name] for name, place in new.items()}, start
        ),
        "every other newly pruned weight is what the last training started from": equal_at(
            others, start, past.start
        ),
        **previously_pruned_unchanged(past, masks, start),
    }
