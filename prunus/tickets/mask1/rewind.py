"""Rewind: kept weights go back to the rewind point; at step 0 that is the lottery ticket.

    w = w_rewind

Source: Frankle & Carbin 2019, section 2 (step 0); Frankle et al. 2020 (later steps).
Also called: none (the action of Zhou et al. 2019's code that changes nothing), LT, reset; late or weight rewinding.
Everything else: biases, BatchNorm with its running statistics, and the optimizer's memory go back to the same step.
Three published codebases left the weights or the statistics as trained; the claims are there to see that.
"""

from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.statistical_checks import equal_at
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The weights of the rewind point."""
    return {name: weight.detach().clone() for name, weight in past.rewind.items()}


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Equality."""
    return {"every kept weight is the rewind point's": equal_at(masks, start, past.rewind)}


rewind = Mask1Action(values, claims)
