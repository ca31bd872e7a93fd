"""Optimal Brain Surgeon made to scale: every layer alone, by what its inputs say of its output.

layer_inputs(model, weights, inputs)    H = 2 X Xᵀ of each layer, gathered while the examples pass
exact_obs(model, inputs)                a surgeon, row by row and exact: layers of some hundred inputs
sparse_gpt(model, inputs)               a schedule, column by column: layers of some thousand inputs
swept(found)                            the same where H is known, once for many densities
budget(curves, sizes, density)          densities of the layers from their errors, by dynamic programming
"""

from prunus.pruning.layerwise.budget import budget, curves, shares
from prunus.pruning.layerwise.exact_obs import ExactObsSurgeon, Holes, exact_obs
from prunus.pruning.layerwise.inputs import LayerInputs, layer_inputs, output_errors
from prunus.pruning.layerwise.sparse_gpt import sparse_gpt, swept

__all__ = [
    "ExactObsSurgeon",
    "Holes",
    "LayerInputs",
    "budget",
    "curves",
    "exact_obs",
    "layer_inputs",
    "output_errors",
    "shares",
    "sparse_gpt",
    "swept",
]
