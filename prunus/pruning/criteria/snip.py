"""SNIP: weights whose removal would change the loss most, to first order, are kept; before any training.

    score = |g · w_i|        g = dL/dw at w_i, of the probe's batch

Source: Lee, Ajanthan & Torr 2019, "connection sensitivity"; Zhou et al.'s published code.
Departs: not divided by the sum of all scores, which changes no order. Where earlier rounds pruned, the gradient
is taken with the pruned weights at their values in `initial`. Meant for the global scope.
"""

from prunus.pruning.criteria.parts import loss_gradient, require_start_weights
from prunus.types import Scores, Statistics


def snip(evidence: Statistics) -> Scores:
    """|g · w_i| of every weight.

    Raises StatisticsError where the initial weights or the probe are missing, or the gradient by a whole layer is zero;
    ModelError naming a layer that the forward pass does not reach.

    >>> import torch
    >>> from prunus.types import ScoringBatch
    >>> probe = ScoringBatch(lambda weights, x: x @ weights["fc"].T, torch.ones(1, 1), torch.tensor([0]))
    >>> initial = {"fc": torch.tensor([[2.0], [2.0]])}
    >>> snip(Statistics(initial, initial=initial, probe=probe))
    {'fc': tensor([[1.],
            [1.]])}
    """
    slopes, initial = loss_gradient(evidence, "snip"), require_start_weights(evidence, "snip")
    return {name: (slopes[name] * start).abs() for name, start in initial.items()}
