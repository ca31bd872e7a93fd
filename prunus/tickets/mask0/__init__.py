"""Mask-0 actions: what pruned weights are set to, and whether they stay there. A file an action.

Biases, BatchNorm and the optimizer's memory follow the mask-1 action, and no mask-0 action touches them. A weight is
newly pruned if the last training still trained it.
"""

from prunus.tickets.actions import Mask0Action
from prunus.tickets.mask0.freeze_init import freeze_init
from prunus.tickets.mask0.freeze_init_zero import freeze_init_zero
from prunus.tickets.mask0.freeze_init_zero_all import freeze_init_zero_all
from prunus.tickets.mask0.freeze_init_zero_reshuffled import freeze_init_zero_reshuffled
from prunus.tickets.mask0.freeze_init_zero_reversed import freeze_init_zero_reversed
from prunus.tickets.mask0.train_on import train_on
from prunus.tickets.mask0.zero import zero

MASK0_ACTIONS: dict[str, Mask0Action] = {
    "zero": zero,
    "freeze_init": freeze_init,
    "freeze_init_zero": freeze_init_zero,
    "freeze_init_zero_all": freeze_init_zero_all,
    "freeze_init_zero_reshuffled": freeze_init_zero_reshuffled,
    "freeze_init_zero_reversed": freeze_init_zero_reversed,
    "train_on": train_on,
}

__all__ = [
    "MASK0_ACTIONS",
    "freeze_init",
    "freeze_init_zero",
    "freeze_init_zero_all",
    "freeze_init_zero_reshuffled",
    "freeze_init_zero_reversed",
    "train_on",
    "zero",
]
