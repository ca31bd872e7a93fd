"""Gradient: weights on which the loss depends most steeply before training are kept.

    score = |g|        g = dL/dw at w_i, of the probe's batch

Source: Zhou et al. 2019, the authors' code, which takes one random batch (100 images of MNIST, 128 of CIFAR-10).
Also called: grad. Where earlier rounds pruned, the gradient is taken with the pruned weights at their values in
`initial`.
"""

from prunus.pruning.criteria.parts import loss_gradient
from prunus.types import Scores, Statistics


def gradient(evidence: Statistics) -> Scores:
    """|g| of every weight.

    Raises StatisticsError where the initial weights or the probe are missing, or the gradient by a whole layer is zero;
    ModelError naming a layer that the forward pass does not reach.

    >>> import torch
    >>> from prunus.types import ScoringBatch
    >>> probe = ScoringBatch(lambda weights, x: x @ weights["fc"].T, torch.ones(1, 1), torch.tensor([0]))
    >>> initial = {"fc": torch.tensor([[2.0], [2.0]])}
    >>> gradient(Statistics(initial, initial=initial, probe=probe))
    {'fc': tensor([[0.5000],
            [0.5000]])}
    """
    return {name: slope.abs() for name, slope in loss_gradient(evidence, "gradient").items()}
