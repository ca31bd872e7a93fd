"""Optimal Brain Surgeon and Optimal Brain Damage: pruning by the curvature of an error.

    ExactObs, SparseGpt     by the error of each layer's output      hessian, exact_obs, sparse_gpt
    Fisher, FullObs, Obd    by the loss                              fisher, full_obs, obd, objective, diagonals

Every method is a frozen value. `prune_in_steps` prunes with any of them, under any scope; `allocate_densities` gives
each layer a density by its errors.
"""

from prunus.pruning.obs.densities import allocate_densities, error_curves, relative_error_curves
from prunus.pruning.obs.diagonals import DIAGONALS, Diagonal
from prunus.pruning.obs.exact_obs import ExactObs, ExactObsState, exact_obs_state
from prunus.pruning.obs.fisher import Fisher, FisherState
from prunus.pruning.obs.full_obs import FullObs, FullObsState
from prunus.pruning.obs.hessian import LayerHessian, layer_hessians, relative_output_errors
from prunus.pruning.obs.method import LossMethod, PruningMethod
from prunus.pruning.obs.obd import Obd, ObdState
from prunus.pruning.obs.objective import (
    LOSSES,
    Loss,
    Objective,
    flatten_weights,
    make_objective,
    unflatten_weights,
)
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.obs.state import (
    Examine,
    PruneResult,
    PruningState,
    intermediate_densities,
    prune_in_steps,
)

__all__ = [
    "DIAGONALS",
    "LOSSES",
    "Diagonal",
    "ExactObs",
    "ExactObsState",
    "Examine",
    "Fisher",
    "FisherState",
    "FullObs",
    "FullObsState",
    "LayerHessian",
    "Loss",
    "LossMethod",
    "Obd",
    "ObdState",
    "Objective",
    "PruneResult",
    "PruningMethod",
    "PruningState",
    "SparseGpt",
    "allocate_densities",
    "error_curves",
    "exact_obs_state",
    "flatten_weights",
    "intermediate_densities",
    "layer_hessians",
    "make_objective",
    "prune_in_steps",
    "relative_error_curves",
    "relative_output_errors",
    "unflatten_weights",
]
