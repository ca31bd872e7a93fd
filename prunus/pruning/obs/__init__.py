"""Optimal Brain Surgeon and Optimal Brain Damage: pruning by the curvature of an error.

    ExactObs, SparseGpt     by the error of each layer's output      hessian, exact_obs, sparse_gpt
    Fisher, FullObs, Obd    by the loss                              fisher, full_obs, obd, objective, diagonals

Every method is a frozen value. `state.prune_in_steps` prunes with any of them, under any scope;
`densities.allocate_densities` gives each layer a density by its errors.
"""
