"""Supermasks: weights keep their initial values, and a mask over them is learned (Zhou et al. 2019, section 5).

A kind of mask is a frozen value with its settings; `kind.layer(weight, seed)` makes the mask of one tensor:

    draw(index)              sets the factors of a step, mask x scale
    backward(gradient, ...)  computes the gradient of the scores, by the straight-through estimator
    most_likely_factors()    returns the factors of the most likely mask of the scores

`SupermaskConstraint` makes a constraint of the training loop of them: the optimizer trains the scores, and the model
holds weight x mask x scale.
"""

from prunus.tickets.supermask.constraint import SupermaskConstraint
from prunus.tickets.supermask.kinds import Bernoulli, EdgePopup, Signed, SupermaskType
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
