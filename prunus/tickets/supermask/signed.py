"""Signed: every weight is there, there with the other sign, or not there.

    w' = w · m,  m = +1 where s > τ, -1 where s < -τ, else 0,  ∂m/∂s := 1

Source: Koster, Grothe, Rettinger 2022, "Signing the Supermask: Keep, Hide, Invert", and the authors' code, as facts:
scores uniform on ±sqrt(6 / (fan_in + fan_out)), one threshold for all layers, signed constants as weights, SGD with
Nesterov's momentum 0.9, learning rate 0.05 falling, decoupled weight decay 5e-4 on the scores, which is what
empties the mask, 100 epochs of batches of 128.
Departs: their networks have ELU, no biases, and weights scaled for it; here the network is the one that is given.
τ is 0.01, the default of their layers; the configurations say 0.4 of the largest score, but the line that would
set it compares text by `is`, so that which of the two their figures come from is unverified.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import SpecError
from prunus.seeds import make_generator
from prunus.tickets.supermask.uniforms import aligned_chunks
from prunus.tickets.supermask.weights import fan_in_fan_out


@dataclass(frozen=True)
class Signed:
    """The settings of the kind."""

    kind: ClassVar[str] = "signed"
    random: ClassVar[bool] = False
    density: ClassVar[None] = None

    threshold: float = 0.01
    """τ."""

    def check(self) -> None:
        """Raise SpecError where the threshold is out of range."""
        if not self.threshold >= 0:
            raise SpecError(f"The threshold is {self.threshold}; it must be at least 0.")

    def layer(self, weight: Tensor, seed: int) -> "SignedLayer":
        """The mask of a tensor."""
        self.check()
        bound = sqrt(6 / sum(fan_in_fan_out(weight)))
        scores = torch.empty(weight.shape).uniform_(-bound, bound, generator=make_generator(seed, "scores"))
        return SignedLayer(torch.empty_like(weight).copy_(scores), weight, self.threshold)


class SignedLayer:
    """One score a weight."""

    def __init__(self, scores: Tensor, weight: Tensor, threshold: float) -> None:
        self.scores = scores.requires_grad_()
        self.weight, self.threshold = weight, threshold
        self.factors = torch.empty_like(weight)

    def draw(self, place: int) -> None:
        """The mask that the scores say; chance has no part in it."""
        for scores, factors in aligned_chunks(self.scores, self.factors):
            torch.gt(scores, self.threshold, out=factors)
            factors.sub_((scores < -self.threshold).to(factors.dtype))

    def pull(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """∂L/∂s = g w."""
        torch.mul(upstream, self.weight, out=out)

    def likely(self) -> Tensor:
        """The same mask."""
        self.draw(0)
        return self.factors.clone()
