"""Rewind the learning rate: kept weights go on from where they are, the schedule goes back to the rewind step.

    w = w_final,  η from the rewind step on

Source: Renda et al. 2020, section 2.
Also called: learning-rate rewinding, lr_finetune (their data files).
Everything else: biases and BatchNorm stay as the last training left them; the optimizer starts without a memory.
"""

from prunus.tickets.actions import Mask1Action, WeightHistory
from prunus.tickets.mask1.finetune import claims
from prunus.tickets.mask1.finetune import values as trained
from prunus.types import MaskDict, Params


def values(past: WeightHistory, masks: MaskDict, seed: int) -> Params:
    """The trained weights."""
    return trained(past, masks, seed)


rewind_learning_rate = Mask1Action(values, claims, rest="final", rate="schedule")
