"""Bernoulli: every weight is there with a probability of its own, drawn anew in every step and in every evaluation.

    w' = w · m · scale,  m ~ Bernoulli(sigmoid(s)),  ∂m/∂s := sigmoid'(s)
    scale = 1, or, with `rescale`, size / ones of *this* sample, inside the graph:
    ∂L/∂m_i = scale g_i w_i - Σ_j g_j w'_j / ones,  g = ∂L/∂w'

Source: Zhou et al. 2019, section 5 (learned supermasks, dynamic weight rescaling); the rules of their code, as
facts. Its score is the mean over 10 samples.
Other names: sample-based sparsification (Ramanujan et al. 2020, code).
Departs: probabilities are those of 16-bit numbers, within 2^-17. A layer whose sample is empty is not rescaled.
`likely` keeps what has a probability above 1/2.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import SpecError
from prunus.tickets.supermask.uniforms import UniformStream, aligned_chunks, flat_view


@dataclass(frozen=True)
class Bernoulli:
    """The settings of the kind."""

    kind: ClassVar[str] = "bernoulli"
    random: ClassVar[bool] = True

    start: float = 0.5
    """The probability that every weight starts with."""
    rescale: bool = False
    """Dynamic weight rescaling."""

    @property
    def density(self) -> float:
        """That of the start."""
        return self.start

    def check(self) -> None:
        """Raise SpecError where a logit would not be finite."""
        if not 0 < self.start < 1:
            raise SpecError(
                f"The starting probability is {self.start}; it must be above 0 and below 1, where logits are finite."
            )

    def layer(self, weight: Tensor, seed: int) -> "BernoulliLayer":
        """The mask of a tensor."""
        self.check()
        scores = torch.full_like(weight, log(self.start / (1 - self.start)))
        return BernoulliLayer(scores, weight, self.rescale, seed)


class BernoulliLayer:
    """One logit a weight."""

    def __init__(self, scores: Tensor, weight: Tensor, rescale: bool, seed: int) -> None:
        self.scores = scores.requires_grad_()
        self.weight, self.rescale, self.seed = weight, rescale, seed
        self.factors = torch.empty_like(weight)
        self.slopes = torch.empty_like(weight)
        """p (1 - p) of the last draw."""
        self.ones, self.scale = weight.numel(), 1.0

    def draw(self, place: int) -> None:
        """A sample."""
        stream, ones = UniformStream(self.seed, place), 0
        for scores, slopes, factors in aligned_chunks(self.scores, self.slopes, self.factors):
            chances = torch.sigmoid(scores)
            torch.lt(stream.fill(slopes), chances, out=factors)
            torch.addcmul(chances, chances, chances, value=-1, out=slopes)
            ones += int(factors.sum()) if self.rescale else 0
        if self.rescale:
            self.ones, self.scale = ones, _scale(ones, self.factors)
            self.factors.mul_(self.scale)

    def pull(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """∂L/∂s = ∂L/∂m · p (1 - p)."""
        through = 0.0
        if self.rescale and self.ones:
            through = float(torch.dot(flat_view(upstream), flat_view(effective))) / self.ones
        for pulled, weight, slopes, gradient in aligned_chunks(upstream, self.weight, self.slopes, out):
            torch.mul(pulled, weight, out=gradient)
            if self.rescale:
                gradient.mul_(self.scale).sub_(through)
            gradient.mul_(slopes)

    def likely(self) -> Tensor:
        """What is more likely there than not."""
        factors = (self.scores.detach() > 0).to(self.factors.dtype)
        return factors.mul_(_scale(int(torch.count_nonzero(factors)), factors)) if self.rescale else factors


def _scale(ones: int, mask: Tensor) -> float:
    """size / ones."""
    return mask.numel() / ones if ones else 1.0
