"""Mask-1 actions: where kept weights start. A file an action; `rescaled` makes one of another.

What goes with the weights: an action whose `rest` is "rewound" takes biases, BatchNorm and its running statistics, and
the optimizer's memory from the rewind point; one whose `rest` is "final" leaves biases and BatchNorm as trained, and
the optimizer starts without a memory.

Every action starts from the past it is given, and never from what it made itself in an earlier round.
"""

from prunus.tickets.actions import Mask1Action
from prunus.tickets.mask1.finetune import finetune
from prunus.tickets.mask1.permute import permute
from prunus.tickets.mask1.random_signed_constant import random_signed_constant
from prunus.tickets.mask1.reinitialize import reinitialize
from prunus.tickets.mask1.rescaled import rescaled
from prunus.tickets.mask1.reshuffle import reshuffle
from prunus.tickets.mask1.rewind import rewind
from prunus.tickets.mask1.rewind_learning_rate import rewind_learning_rate
from prunus.tickets.mask1.signed_constant import signed_constant
from prunus.tickets.mask1.signed_permute import signed_permute
from prunus.tickets.mask1.signed_reinitialize import signed_reinitialize
from prunus.tickets.mask1.signed_reshuffle import signed_reshuffle
from prunus.tickets.mask1.supermask import supermask

MASK1_ACTIONS: dict[str, Mask1Action] = {
    "rewind": rewind,
    "finetune": finetune,
    "rewind_learning_rate": rewind_learning_rate,
    "reinitialize": reinitialize,
    "signed_reinitialize": signed_reinitialize,
    "permute": permute,
    "signed_permute": signed_permute,
    "reshuffle": reshuffle,
    "signed_reshuffle": signed_reshuffle,
    "signed_constant": signed_constant,
    "random_signed_constant": random_signed_constant,
    "supermask": supermask,
    "rewind_rescaled": rescaled(rewind),
    "reinitialize_rescaled": rescaled(reinitialize),
    "permute_rescaled": rescaled(permute),
    "signed_permute_rescaled": rescaled(signed_permute),
    "reshuffle_rescaled": rescaled(reshuffle),
    "signed_reshuffle_rescaled": rescaled(signed_reshuffle),
    "signed_constant_rescaled": rescaled(signed_constant),
    "random_signed_constant_rescaled": rescaled(random_signed_constant),
}

__all__ = [
    "MASK1_ACTIONS",
    "finetune",
    "permute",
    "random_signed_constant",
    "reinitialize",
    "rescaled",
    "reshuffle",
    "rewind",
    "rewind_learning_rate",
    "signed_constant",
    "signed_permute",
    "signed_reinitialize",
    "signed_reshuffle",
    "supermask",
]
