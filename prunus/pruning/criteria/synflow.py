"""SynFlow: weights that carry much of the flow through the network are kept; without data, before any training.

    score = |w · dR/dw| at w = |w_i|      R = the sum of the answers to an input of ones

Source: Tanaka, Kunin, Yamins & Ganguli 2020. In a ReLU network without biases the scores into a unit sum up to
those out of it, and those of every layer to R, so that no layer is emptied while another has weights to give.
That holds where the score is asked again after every few weights (the paper: 100 rounds, densities falling
exponentially, global scope), with `masks` the last round's.
Departs: pruned weights count as zero whatever `initial` holds there; biases and norms are as the probe has them,
where the authors take their absolute values too (the same for zero biases and for norms at the start). In
float64, since R grows with depth and width beyond what float32 resolves.
"""

import torch

from prunus.pruning.criteria.parts import (
    detached_leaves,
    gradients_wrt,
    masks_or_ones,
    require_scoring_batch,
    require_start_weights,
)
from prunus.types import Scores, Statistics

NAME = "synflow"


@torch.enable_grad()
def synflow(evidence: Statistics) -> Scores:
    """|w · dR/dw| of every weight, float64; of the probe only the network and the shape of an input are used.

    Raises StatisticsError where the initial weights or the probe are missing, ModelError naming a layer that the
    forward pass does not reach.

    >>> import torch
    >>> from prunus.types import ScoringBatch
    >>> probe = ScoringBatch(lambda weights, x: x @ weights["fc"].T, torch.zeros(1, 1), torch.tensor([0]))
    >>> initial = {"fc": torch.tensor([[2.0], [-3.0]])}
    >>> synflow(Statistics(initial, initial=initial, probe=probe))["fc"].flatten().tolist()
    [2.0, 3.0]
    """
    initial, masks, probe = (
        require_start_weights(evidence, NAME),
        masks_or_ones(evidence, NAME),
        require_scoring_batch(evidence, NAME),
    )
    weights = detached_leaves(
        {name: torch.where(masks[name], w.abs().double(), 0.0) for name, w in initial.items()}
    )
    ones = torch.ones_like(probe.inputs[:1], dtype=torch.float64)
    slopes = gradients_wrt(probe.answer(weights, ones).sum(), weights)
    return {name: (weight.detach() * slopes[name]).abs() for name, weight in weights.items()}
