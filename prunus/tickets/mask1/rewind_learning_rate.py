"""Rewind the learning rate: kept weights go on from where they are, the schedule goes back to the rewind step.

    w = w_final,  η from the rewind step on

Source: Renda et al. 2020, section 2.
Also called: learning-rate rewinding, lr_finetune (their data files).
Everything else: biases and BatchNorm stay as the last training left them; the optimiser starts without a memory.
"""

from prunus.tickets.mask1.finetune import claims, values
from prunus.tickets.past import KeptAction

rewind_learning_rate = KeptAction(values, claims, rest="final", rate="schedule")
