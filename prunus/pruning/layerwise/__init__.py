"""Optimal Brain Surgeon made to scale: every layer alone, by what its inputs say of its output.

layer_inputs(model, weights, inputs)    H = 2 X Xᵀ of each layer, gathered while the examples pass
exact_obs(model, inputs)                a surgeon, row by row and exact: layers of some hundred inputs
sparse_gpt(model, inputs)               a schedule, column by column: layers of some thousand inputs
swept(found)                            the same where H is known, once for many densities
budget(curves, sizes, density)          densities of the layers from their errors, by dynamic programming
"""

from prunus.pruning.layerwise.densities import allocate_densities, error_curves, relative_error_curves
from prunus.pruning.layerwise.exact_obs import ExactObsState, SparsityPattern, exact_obs
from prunus.pruning.layerwise.hessian import LayerHessian, layer_hessians, relative_output_errors
from prunus.pruning.layerwise.sparse_gpt import sparse_gpt, sparse_gpt_from_hessians

__all__ = [
    "ExactObsState",
    "LayerHessian",
    "SparsityPattern",
    "allocate_densities",
    "error_curves",
    "exact_obs",
    "layer_hessians",
    "relative_error_curves",
    "relative_output_errors",
    "sparse_gpt",
    "sparse_gpt_from_hessians",
]
