"""New weights of the layers that lose inputs, so that their outputs change least: least squares.

    ΔW = argmin |W_R X_R - ΔW X_K|² + λ |ΔW|² = W_R H_RK (H_KK + λ I)⁻¹

R are the inputs that are removed, K those that are kept, H = 2 X Xᵀ / N, with the inputs X that calibration examples
have in the dense network; λ is the damping of H. Dead inputs keep their weights.

Source: He et al. 2017, "Channel pruning for accelerating very deep neural networks", eq. 1, the second step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunus.pruning.matrix import from_matrix, to_matrix
from prunus.pruning.structured.criteria import FilterStatistics, input_columns


def refit_weights(statistics: FilterStatistics, removed: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights of linear and convolutional layers that lose inputs, refitted to the outputs of the dense layers.

    Args:
        statistics: The model, its groups and calibration examples.
        removed: Indices of the channels to remove, by name of the group.

    Returns:
        Weights of the shape before the removal, by name; the weights of removed inputs are unchanged.

    Raises:
        StatisticsError: There are no calibration examples.
    """
    weights = {}
    for name, readers in statistics.readers.items():
        weight = statistics.reader_weights[name]
        is_removed = torch.zeros(weight[0].numel(), dtype=torch.bool, device=weight.device)
        for group, member in readers:
            columns = input_columns(weight, member)[list(removed.get(group.name, ()))]
            is_removed[columns.flatten().to(weight.device)] = True
        if is_removed.any():
            hessian = statistics.hessians[name]
            matrix, products = to_matrix(weight).double(), hessian.damped()[0]
            change = torch.linalg.solve(
                products[~is_removed][:, ~is_removed],
                products[~is_removed][:, is_removed] @ matrix[:, is_removed].T,
            )
            matrix[:, ~is_removed] += change.T
            weights[name] = torch.empty_like(weight).copy_(from_matrix(matrix, weight))
    return weights
