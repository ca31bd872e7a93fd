"""Edge-popup: the weights of the highest scores are there, a fixed share of every layer.

    w' = w · m,  m = 1 for the k highest |s| of a layer,  ∂m/∂|s| := 1:  ∂L/∂s = g w sign(s)

Source: Ramanujan et al. 2020, section 3; |s| and scores uniform on ±1 / sqrt(fan_in) as in the authors' code (the
paper's algorithm ranks s). Settings of the paper: weights from Kaiming's normal distribution or the constant of its
deviation with random signs, their fan scaled by the density; SGD with momentum 0.9, weight decay 1e-4 on the
scores, cosine, batches of 128; best densities 0.3 to 0.7.
Departs: exactly density x size weights are kept, rounded, where their code truncates; ties go to the first in
row-major order.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.errors import DensityError
from prunus.pruning.density import check_density, num_to_keep
from prunus.seeds import make_generator
from prunus.tickets.supermask.uniforms import aligned_chunks, flat_view
from prunus.tickets.supermask.weights import fan_in_fan_out


@dataclass(frozen=True)
class EdgePopup:
    """The settings of the kind."""

    kind: ClassVar[str] = "edge_popup"
    random: ClassVar[bool] = False

    density: float = 0.5
    """The share of every layer that is kept."""

    def check(self) -> None:
        """Raise DensityError where the density is out of range."""
        check_density(self.density)

    def layer(self, weight: Tensor, seed: int) -> "EdgePopupLayer":
        """The mask of a tensor. Raises DensityError where it would keep none of its weights."""
        self.check()
        bound = 1 / sqrt(fan_in_fan_out(weight)[0])
        scores = torch.empty(weight.shape).uniform_(-bound, bound, generator=make_generator(seed, "scores"))
        keep = num_to_keep(self.density, weight.numel())
        if weight.numel() and not keep:
            raise DensityError(
                f"A density of {self.density:g} keeps none of {weight.numel():,} weights; the lowest that keeps one is "
                f"{1 / weight.numel():.2g}."
            )
        return EdgePopupLayer(torch.empty_like(weight).copy_(scores), weight, keep)


class EdgePopupLayer:
    """One score a weight."""

    def __init__(self, scores: Tensor, weight: Tensor, keep: int) -> None:
        self.scores = scores.requires_grad_()
        self.weight, self.keep = weight, keep
        self.factors = torch.empty_like(weight)
        self.border = KthLargest()

    def draw(self, place: int) -> None:
        """The mask that the scores say; chance has no part in it."""
        if not 0 < self.keep < self.factors.numel():
            self.factors.fill_(float(self.keep > 0))
            return
        border, kept = self.border.of(self.scores, self.keep)
        for scores, factors in aligned_chunks(self.scores, self.factors):
            torch.ge(scores.abs(), border, out=factors)
        if kept > self.keep:
            self._break_ties(border, kept - self.keep)

    def pull(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """∂L/∂s = g w sign(s)."""
        for pulled, weight, scores, gradient in aligned_chunks(upstream, self.weight, self.scores, out):
            torch.mul(pulled, weight, out=gradient).mul_(torch.sign(scores))

    def likely(self) -> Tensor:
        """The same mask."""
        self.draw(0)
        return self.factors.clone()

    def _break_ties(self, border: float, surplus: int) -> None:
        """Drop the last so many of those that are tied at the border."""
        tied = torch.nonzero(self.scores.detach().abs().reshape(-1) == border).squeeze(1)
        mask = self.factors.reshape(-1).clone()
        mask[tied[-surplus:]] = 0.0
        self.factors.copy_(mask.view(self.factors.shape))


class KthLargest:
    """The k-th largest size of many numbers, exactly, again and again while they change a little.

    It is looked for among those near the last one, and among all where it has left them: a tenth of the time of
    a selection.

    >>> KthLargest().of(torch.tensor([3.0, 1.0, -2.0]), 2)
    (2.0, 2)
    """

    NEAR = 0.01
    """The share of the numbers, on either side, that counts as near."""

    def __init__(self) -> None:
        self.low = self.high = float("nan")
        self.searches = 0
        """How often all were searched."""

    def of(self, values: Tensor, k: int) -> tuple[float, int]:
        """The k-th largest size, counted from 1, and how many are as large or larger."""
        if values.device.type != "cpu":
            sizes = values.detach().abs()
            border = float(sizes.flatten().kthvalue(sizes.numel() - k + 1).values)
            return border, int(torch.count_nonzero(sizes >= border))
        # NumPy compares in a fifth, and selects in half of the time that torch takes.
        return self._on_cpu(np.abs(flat_view(values).numpy()), k)

    def _on_cpu(self, sizes: NDArray[np.float32], k: int) -> tuple[float, int]:
        above = int(np.count_nonzero(sizes > self.high))
        near = sizes[(sizes >= self.low) & (sizes <= self.high)]
        if not 1 <= k - above <= near.size <= 8 * self.NEAR * sizes.size:
            above, near = 0, sizes
            self._settle(sizes, k)
        border = _largest(near, k - above)
        return border, above + int(np.count_nonzero(near >= border))

    def _settle(self, sizes: NDArray[np.float32], k: int) -> None:
        """Where the near ones are from now on."""
        self.searches += 1
        width = int(self.NEAR * sizes.size) + 1
        self.low = _largest(sizes, min(k + width, sizes.size))
        self.high = _largest(sizes, max(k - width, 1))


def _largest(values: NDArray[np.float32], k: int) -> float:
    """The k-th largest, counted from 1."""
    return float(np.partition(values, values.size - k)[values.size - k])
