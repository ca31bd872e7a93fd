"""Rewind the learning rate: kept weights go on from where they are, the schedule goes back to the rewind step.

    w = w_final,  η from the rewind step on

Source: Renda et al. 2020, section 2.
Also called: learning-rate rewinding, lr_finetune (their data files).
Everything else: biases and BatchNorm stay as the last training left them; the optimiser starts without a memory.
"""

from prunus.nouns import Masks, Params
from prunus.tickets.mask1.finetune import claims
from prunus.tickets.mask1.finetune import values as trained
from prunus.tickets.past import KeptAction, Past


def values(past: Past, masks: Masks, seed: int) -> Params:
    """The trained weights."""
    return trained(past, masks, seed)


rewind_learning_rate = KeptAction(values, claims, rest="final", rate="schedule")
