"""Losses with their first and second derivatives by the outputs: what second-order pruning starts from.

    squared_error    E = ½ Σ_c (o_c - d_c)²      slope o - d    Hessian I
    cross_entropy    E = -log p_label            slope p - d    Hessian diag(p) - p pᵀ,  p = softmax(o)

o outputs, d targets; of one example, the mean over examples is the error. A root of the Hessian is a matrix R with
R Rᵀ = Hessian; for cross-entropy R = diag(√p) - p √pᵀ.

Source: LeCun et al. 1990, eq. 8, whose E = Σ (d - x)² is twice ours: saliencies and errors halve together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.errors import StatisticsError

Derivative = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss by what second-order pruning asks of it; `outputs` are [B, C]."""

    name: str
    value: Derivative
    """(outputs, targets) -> [B], the error of each example."""
    slope: Derivative
    """-> [B, C], dE/do."""
    bend: Derivative
    """-> [B, C], the diagonal of d²E/do²."""
    root: Derivative
    """-> [B, C, C], R with R Rᵀ = d²E/do²."""
    labeled: bool
    """Whether targets are labels, int64 [B]; else numbers [B, C]."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise StatisticsError unless `targets` are such as this loss compares `outputs` with."""
        asked = "[B] of int64 below C" if self.labeled else "[B, C] of floating point"
        fits = (
            targets.shape == outputs.shape[:1] and targets.dtype == torch.int64
            if self.labeled
            else targets.shape == outputs.shape and targets.is_floating_point()
        )
        if outputs.dim() != 2 or not fits or (self.labeled and not _within(targets, outputs.shape[1])):
            raise StatisticsError(
                f"The loss {self.name!r} compares outputs [B, C] with targets {asked}, and was given outputs "
                f"{tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}."
            )


def _within(labels: Tensor, classes: int) -> bool:
    return not len(labels) or (int(labels.min()) >= 0 and int(labels.max()) < classes)


def _softmax_slope(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.softmax(1) - F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)


def _softmax_bend(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(1)
    return p * (1 - p)


def _softmax_root(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(1)
    return torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)


def _ones(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.ones_like(outputs)


LOSSES: dict[str, Loss] = {
    "squared_error": Loss(
        "squared_error",
        value=lambda outputs, targets: (outputs - targets).square().sum(1) / 2,
        slope=lambda outputs, targets: outputs - targets,
        bend=_ones,
        root=lambda outputs, targets: torch.diag_embed(torch.ones_like(outputs)),
        labeled=False,
    ),
    "cross_entropy": Loss(
        "cross_entropy",
        value=lambda outputs, labels: F.cross_entropy(outputs, labels, reduction="none"),
        slope=_softmax_slope,
        bend=_softmax_bend,
        root=_softmax_root,
        labeled=True,
    ),
}
