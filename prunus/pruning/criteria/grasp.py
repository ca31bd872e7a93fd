"""GraSP: weights whose removal would weaken the gradient most are kept; before any training.

    score = w_i · (H g)      g, H: gradient and Hessian of the loss at w_i, of the probe's batch

Source: Wang, Zhang & Grosse 2020, who remove the largest of −w · (H g): to first order the change of |g|² / 2
by w → 0, which is better large. The score is often negative; its order is all that counts.
Departs: the loss is the one that is trained, without temperature. The authors' code divides the logits by 200
(for that, pass a probe whose `answer` does), draws fully connected layers anew before it scores, and is applied
once; where earlier rounds pruned, the pruned weights are here at their values in `initial`. Meant for the
global scope.
"""

import torch

from prunus.pruning.calibration_checks import check_nonzero
from prunus.pruning.criteria.parts import (
    detached_leaves,
    gradients_wrt,
    loss,
    masks_or_ones,
    require_scoring_batch,
    require_start_weights,
)
from prunus.types import Scores, Statistics


@torch.enable_grad()
def grasp(evidence: Statistics) -> Scores:
    """w_i · (H g) of every weight.

    Raises StatisticsError where the initial weights or the probe are missing, or H g by a whole layer is zero;
    ModelError naming a layer that the forward pass does not reach.

    >>> import torch
    >>> from prunus.types import ScoringBatch
    >>> probe = ScoringBatch(lambda weights, x: x @ weights["fc"].T, torch.ones(1, 1), torch.tensor([0]))
    >>> initial = {"fc": torch.tensor([[2.0], [2.0]])}
    >>> grasp(Statistics(initial, initial=initial, probe=probe))
    {'fc': tensor([[-0.5000],
            [ 0.5000]])}
    """
    weights = detached_leaves(require_start_weights(evidence, "grasp"))
    slopes = gradients_wrt(loss(require_scoring_batch(evidence, "grasp"), weights), weights, graph=True)
    # The derivative of g·c by w is H c for a constant c; c = g, without its history, gives H g.
    product = torch.stack([(slope * slope.detach()).sum() for slope in slopes.values()]).sum()
    # A weight that every slope is constant in has no part in the product: its curvature is zero.
    found = torch.autograd.grad(product, list(weights.values()), materialize_grads=True)
    curved = dict(zip(weights, found, strict=True))
    check_nonzero(curved, masks_or_ones(evidence, "grasp"), "The curvature H g by")
    return {name: weight.detach() * curved[name] for name, weight in weights.items()}
