"""Criteria of derivatives: SNIP, gradient, GraSP and SynFlow, for weights before training, and OBD for trained ones.

A ticket with earlier rounds scores its start weights, at which pruned weights have the values of the mask-0 action.
"""

import torch

from prunus.pruning.statistics import Statistics, criterion
from prunus.types import Scores


@criterion(requires={"gradients"}, defined_at="initialization")
def snip(stats: Statistics) -> Scores:
    """SNIP: |g · w|, the first-order change of the loss when a weight is removed.

    Source: Lee, Ajanthan & Torr 2019, "connection sensitivity"; the published code of Zhou et al. 2019.
    Differences: Scores are not divided by their sum, which does not change their order. Meant for the global scope.

    >>> weights, gradients = {"fc": torch.tensor([2.0, -1.0])}, {"fc": torch.tensor([0.5, 3.0])}
    >>> snip(Statistics(weights, gradients=gradients))
    {'fc': tensor([1., 3.])}
    """
    return {name: (stats.gradients[name] * weight).abs() for name, weight in stats.weights.items()}


@criterion(requires={"gradients"}, defined_at="initialization")
def gradient(stats: Statistics) -> Scores:
    """Gradient: |g|, the steepness of the loss by a weight.

    Source: Zhou et al. 2019, the published code, which takes one random batch (100 images of MNIST, 128 of CIFAR-10).
    Also called: grad.

    >>> gradient(Statistics({"fc": torch.tensor([2.0, -1.0])}, gradients={"fc": torch.tensor([0.5, -3.0])}))
    {'fc': tensor([0.5000, 3.0000])}
    """
    return {name: stats.gradients[name].abs() for name in stats.weights}


@criterion(requires={"hessian_gradients"}, defined_at="initialization")
def grasp(stats: Statistics) -> Scores:
    """GraSP: w · (H g), weights whose removal would reduce the norm of the gradient are kept.

    Source: Wang, Zhang & Grosse 2020, who remove the weights with the largest −w · (H g): to first order the change of
    |g|² / 2 when a weight is set to zero. The score is often negative; only its order matters.
    Differences: The loss is the one of training, without temperature. The published code divides the logits by 200 (for
    that, pass a `forward` that does), initializes fully connected layers again before it scores, and prunes once. Meant
    for the global scope.

    >>> weights, products = {"fc": torch.tensor([2.0, -1.0])}, {"fc": torch.tensor([0.5, 3.0])}
    >>> grasp(Statistics(weights, hessian_gradients=products))
    {'fc': tensor([ 1., -3.])}
    """
    return {name: weight * stats.hessian_gradients[name] for name, weight in stats.weights.items()}


@criterion(requires={"output_sum_gradients"}, defined_at="initialization")
def synflow(stats: Statistics) -> Scores:
    """SynFlow: |w| · dR/d|w|, R the sum of the outputs for an input of ones in the network of all |w|.

    Source: Tanaka, Kunin, Yamins & Ganguli 2020. In a ReLU network without biases the scores into a unit add up to
    those out of it, and those of every layer to R, so that no layer is emptied while another has weights to prune. That
    holds where the scores are computed again after every few weights (in the paper 100 rounds, densities that fall
    exponentially, the global scope), with the masks of the last round.
    Differences: Pruned weights count as zero. Biases and normalization layers are used as they are, where the authors
    take their absolute values too (the same for zero biases and for normalization layers before training). In float64.

    >>> weights, gradients = {"fc": torch.tensor([2.0, -1.0])}, {"fc": torch.tensor([0.5, 3.0])}
    >>> synflow(Statistics(weights, output_sum_gradients=gradients))["fc"].tolist()
    [1.0, 3.0]
    """
    masks, gradients = stats.remaining, stats.output_sum_gradients
    return {
        name: (torch.where(masks[name], weight.abs().double(), 0.0) * gradients[name]).abs()
        for name, weight in stats.weights.items()
    }


@criterion(requires={"hessian_diagonal"})
def obd(stats: Statistics) -> Scores:
    """OBD: h w² / 2, the saliency of a weight by the diagonal h = d²L/dw² of the Hessian.

    Source: LeCun, Denker & Solla 1990, "Optimal Brain Damage", section 2.3. It assumes that the weights are at a
    minimum (no gradient) and that the Hessian is diagonal. A negative curvature, as away from a minimum, gives a
    negative score: such a weight is pruned first. `obs.diagonals.DIAGONALS` has other approximations of the diagonal.

    >>> obd(Statistics({"fc": torch.tensor([2.0, 1.0])}, hessian_diagonal={"fc": torch.tensor([1.0, 6.0])}))
    {'fc': tensor([2., 3.])}
    """
    diagonal = stats.hessian_diagonal
    # Small float16 weights have a square of zero.
    weights = {name: weight.to(diagonal[name].dtype) for name, weight in stats.weights.items()}
    return {name: diagonal[name] * weight.square() / 2 for name, weight in weights.items()}
