"""Second order: pruning by the curvature of the error, from Optimal Brain Damage to Optimal Brain Surgeon.

objective(model, weights, inputs, targets, loss)   the error as a function of the weights
DIAGONALS[name](objective)                         the diagonal of its Hessian, for the criterion `obd`
obs(objective), obd(objective)                     surgeons: scores and, with OBS, an update of what stays
fisher(objective)                                  OBS in blocks, for networks of any size: WoodFisher, oBERT
operate(surgeon, weights, density, scope)          prune with one, under any scope
"""

from prunus.pruning.second_order.fisher import fisher
from prunus.pruning.second_order.hessian_diagonal import DIAGONALS, Diagonal
from prunus.pruning.second_order.losses import LOSSES
from prunus.pruning.second_order.obd import obd
from prunus.pruning.second_order.objective import Objective, make_objective
from prunus.pruning.second_order.obs import obs
from prunus.pruning.second_order.pruning_state import (
    PruneFn,
    PruneResult,
    PruningMethod,
    PruningState,
    criterion_method,
    intermediate_densities,
    prune_weights,
)

__all__ = [
    "DIAGONALS",
    "LOSSES",
    "Diagonal",
    "Objective",
    "PruneFn",
    "PruneResult",
    "PruningMethod",
    "PruningState",
    "criterion_method",
    "fisher",
    "intermediate_densities",
    "make_objective",
    "obd",
    "obs",
    "prune_weights",
]
