"""Which places an action speaks of, and the claims that most of them share. Helpers of the actions."""

from torch import Tensor

from prunus.nouns import Masks, Params
from prunus.tickets.checks import equal_at, zero_at
from prunus.tickets.past import Claims, Past


def newly(past: Past, masks: Masks) -> Masks:
    """The places that this round prunes."""
    return {name: past.masks[name] & ~mask for name, mask in masks.items()}


def earlier(past: Past, masks: Masks) -> Masks:
    """The places that earlier rounds pruned."""
    return {name: ~past.masks[name] & ~mask for name, mask in masks.items()}


def grown(past: Past, name: str) -> Tensor:
    """By how much the last training made each magnitude larger; below 0: it moved towards zero."""
    return past.final[name].detach().abs() - past.start[name].detach().abs()


def all_kept(masks: Masks, kept: Params, start: Params) -> Claims:
    """That kept weights are not touched."""
    return {"every kept weight is what the mask-1 action made it": equal_at(masks, start, kept)}


def all_zero(masks: Masks, start: Params) -> Claims:
    """That pruned weights are zero."""
    return {"every pruned weight is zero": zero_at({name: ~mask for name, mask in masks.items()}, start)}


def earlier_held(past: Past, masks: Masks, start: Params) -> Claims:
    """That what was pruned in earlier rounds is left alone."""
    return {
        "every weight pruned earlier has the value it had": equal_at(earlier(past, masks), start, past.start)
    }


def zero_or_held(past: Past, masks: Masks, zeros: Masks, start: Params) -> Claims:
    """That of the newly pruned weights `zeros` are zero and the others frozen where the last training started."""
    new = newly(past, masks)
    others = {name: place & ~zeros[name] for name, place in new.items()}
    return {
        "every newly pruned weight that should be is zero": zero_at(
            {name: place & zeros[name] for name, place in new.items()}, start
        ),
        "every other newly pruned weight is what the last training started from": equal_at(
            others, start, past.start
        ),
        **earlier_held(past, masks, start),
    }
