"""Penalties on the weights, as what they add to the gradient (λ: the strength).

    none  0
    l1    λ Σ |w|      adds λ sign(w)
    l2    λ/2 Σ w²     adds λ w

Added to the gradient before the optimizer sees it, as Han et al. 2015 (section 3.1) compare them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def no_penalty(weights: Sequence[Tensor], strength: float) -> None:
    """No penalty."""


def l1(weights: Sequence[Tensor], strength: float) -> None:
    """Add λ sign(w) to the gradient of each weight."""
    for weight in weights:
        if weight.grad is not None:
            weight.grad.add_(weight.detach().sign(), alpha=strength)


def l2(weights: Sequence[Tensor], strength: float) -> None:
    """Add λ w to the gradient of each weight."""
    pairs = [(w.grad, w.detach()) for w in weights if w.grad is not None]
    if pairs:
        gradients, values = zip(*pairs, strict=True)
        torch._foreach_add_(gradients, values, alpha=strength)


PENALTIES: dict[str, Callable[[Sequence[Tensor], float], None]] = {"none": no_penalty, "l1": l1, "l2": l2}
