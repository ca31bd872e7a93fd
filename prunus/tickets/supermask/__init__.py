"""Supermasks: weights stay as they are drawn, and what is learned is which of them are there.

A file a kind of mask. A kind is a frozen value, its settings, and makes the mask of one tensor while it is learned:

    draw(place)      -> the factors of a step: mask x scale
    pull(gradient)   -> the gradient of the scores, by the straight-through rule
    likely()         -> the factors of the one mask that the scores say

`Learned` makes a constraint of the training loop of these: the optimizer steps the scores, the model holds
weight x mask x scale, and loop, observers, checkpoints and engines know nothing of it.
"""

from prunus.tickets.supermask.bernoulli import Bernoulli
from prunus.tickets.supermask.constraint import SupermaskConstraint, SupermaskType
from prunus.tickets.supermask.edge_popup import EdgePopup
from prunus.tickets.supermask.signed import Signed
from prunus.tickets.supermask.weights import WEIGHT_INITS

SUPERMASKS: dict[str, type[SupermaskType]] = {
    "bernoulli": Bernoulli,
    "edge_popup": EdgePopup,
    "signed": Signed,
}

__all__ = [
    "SUPERMASKS",
    "WEIGHT_INITS",
    "Bernoulli",
    "EdgePopup",
    "Signed",
    "SupermaskConstraint",
    "SupermaskType",
]
