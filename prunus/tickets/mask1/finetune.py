"""Fine-tune: kept weights go on from where they are, at the last learning rate.

    w = w_final

Source: Han et al. 2015, section 3; so named by Renda et al. 2020, section 2.
Everything else: biases and BatchNorm stay as the last training left them; the optimizer starts without a memory, at the
last rate of the schedule throughout.
"""

from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.statistical_checks import equal_at
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The trained weights."""
    return {name: weight.detach().clone() for name, weight in past.final.items()}


def claims(past: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """Equality."""
    return {"every kept weight is as the last training left it": equal_at(masks, start, past.final)}


finetune = Mask1Action(values, claims, rest="final", rate="last")
