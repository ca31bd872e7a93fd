"""The kinds of learned masks: `Bernoulli`, `EdgePopup` and `Signed`, each a frozen value with its settings."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import SpecError
from prunus.pruning.density import check_density, check_keeps_one, num_to_keep
from prunus.seeds import make_generator
from prunus.tickets.supermask.kth_largest import KthLargest
from prunus.tickets.supermask.uniforms import UniformStream, aligned_chunks, flat_view
from prunus.tickets.supermask.weights import fan_in_fan_out


def uniform_scores(weight: Tensor, bound: float, seed: int) -> Tensor:
    """Return scores drawn uniformly from [-bound, bound], with the shape and memory layout of a weight.

    Args:
        weight: The weight [O, I, K...], whose values are not used.
        bound: The largest magnitude of a score, above 0.
        seed: The seed of the layer.

    Returns:
        The scores, with the dtype and on the device of the weight; the numbers do not depend on the memory layout.
    """
    scores = torch.empty(weight.shape).uniform_(-bound, bound, generator=make_generator(seed, "scores"))
    return torch.empty_like(weight).copy_(scores)


@dataclass(frozen=True)
class Bernoulli:
    """Every weight is kept with a probability of its own; a mask is drawn at each step and each evaluation.

        w' = w · m · scale,  m ~ Bernoulli(sigmoid(s)),  ∂m/∂s := sigmoid'(s)
        scale = 1, or, with `rescale`, size / ones of this sample, inside the graph:
        ∂L/∂m_i = scale g_i w_i - Σ_j g_j w'_j / ones,  g = ∂L/∂w'

    The most likely mask keeps weights whose probability is above 1/2.

    Source: Zhou et al. 2019, section 5 (learned supermasks, dynamic weight rescaling), with the rules of the authors'
    code. Its score is the mean over 10 samples. Ramanujan et al. 2020 call it sample-based sparsification.

    Differences: Probabilities have 16 bits and are exact within 2^-17. A layer whose sample is empty is not rescaled.
    """

    kind: ClassVar[str] = "bernoulli"
    random: ClassVar[bool] = True

    start: float = 0.5
    """The probability that every weight starts with."""
    rescale: bool = False
    """Whether dynamic weight rescaling is used."""

    @property
    def density(self) -> float:
        """The expected density at the start."""
        return self.start

    def check(self) -> None:
        """Raise SpecError if the logit of the start would not be finite."""
        if not 0 < self.start < 1:
            raise SpecError(f"Expected a starting probability above 0 and below 1, got {self.start}.")

    def layer(self, weight: Tensor, seed: int) -> "BernoulliLayer":
        """Return the mask of a tensor.

        Args:
            weight: The fixed weights of the tensor, of any shape; not modified.
            seed: The seed of the samples.

        Returns:
            The mask, in which each score is the logit of `start`.

        Raises:
            SpecError: `start` is out of range.
        """
        self.check()
        scores = torch.full_like(weight, log(self.start / (1 - self.start)))
        return BernoulliLayer(scores, weight, self.rescale, seed)


class SupermaskLayer(ABC):
    """The mask of one tensor while it is learned, with one score per weight."""

    def __init__(self, scores: Tensor, weight: Tensor) -> None:
        self.scores, self.weight = scores.requires_grad_(), weight
        self.factors = torch.empty_like(weight)
        """The mask of the last draw, times its scale."""

    @abstractmethod
    def draw(self, index: int) -> None:
        """Set the factors to those of a draw; the same draw has the same mask.

        Args:
            index: The number of the draw, for masks that are random.
        """

    @abstractmethod
    def backward(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """Compute the gradient of the scores.

        Args:
            upstream: The gradient of the loss with respect to the effective weights, g.
            effective: The effective weights of this step, w'.
            out: The tensor that the gradient of the scores is written to; what it holds is overwritten.
        """

    def most_likely_factors(self) -> Tensor:
        """Return the factors of the most likely mask of the scores."""
        self.draw(0)
        return self.factors.clone()


class BernoulliLayer(SupermaskLayer):
    """The mask of one tensor, with one logit per weight."""

    def __init__(self, scores: Tensor, weight: Tensor, rescale: bool, seed: int) -> None:
        super().__init__(scores, weight)
        self.rescale, self.seed = rescale, seed
        self.derivatives = torch.empty_like(weight)
        """p (1 - p) of the last draw."""
        self.num_ones, self.scale = weight.numel(), 1.0

    def draw(self, index: int) -> None:
        """Draw a sample."""
        stream, num_ones = UniformStream(self.seed, index), 0
        for scores, derivatives, factors in aligned_chunks(self.scores, self.derivatives, self.factors):
            probabilities = torch.sigmoid(scores)
            torch.lt(stream.fill(derivatives), probabilities, out=factors)
            torch.addcmul(probabilities, probabilities, probabilities, value=-1, out=derivatives)
            num_ones += int(factors.sum()) if self.rescale else 0
        if self.rescale:
            self.num_ones, self.scale = num_ones, _rescaling(num_ones, self.factors)
            self.factors.mul_(self.scale)

    def backward(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """Compute ∂L/∂s = ∂L/∂m · p (1 - p).

        Args:
            upstream: The gradient of the loss with respect to the effective weights, g.
            effective: The effective weights of this step, w'; used only with `rescale`.
            out: The tensor that the gradient of the scores is written to; what it holds is overwritten.
        """
        through_scale = 0.0
        if self.rescale and self.num_ones:
            through_scale = float(torch.dot(flat_view(upstream), flat_view(effective))) / self.num_ones
        for outer, weight, derivatives, gradient in aligned_chunks(
            upstream, self.weight, self.derivatives, out
        ):
            torch.mul(outer, weight, out=gradient)
            if self.rescale:
                gradient.mul_(self.scale).sub_(through_scale)
            gradient.mul_(derivatives)

    def most_likely_factors(self) -> Tensor:
        """Return the factors of the mask that keeps weights with a probability above 1/2."""
        factors = (self.scores.detach() > 0).to(self.factors.dtype)
        if self.rescale:
            factors.mul_(_rescaling(int(torch.count_nonzero(factors)), factors))
        return factors


def _rescaling(num_ones: int, mask: Tensor) -> float:
    """Return size / ones, or 1 for an empty mask."""
    return mask.numel() / num_ones if num_ones else 1.0


@dataclass(frozen=True)
class EdgePopup:
    """The weights with the highest scores are kept, a fixed fraction of every layer.

        w' = w · m,  m = 1 for the k highest |s| of a layer,  ∂m/∂|s| := 1:  ∂L/∂s = g w sign(s)

    Source: Ramanujan et al. 2020, section 3; |s|, and scores uniform on ±1 / sqrt(fan_in), as in the authors' code (the
    algorithm in the paper ranks s). Settings of the paper: weights of Kaiming's normal distribution, or the constant of
    its standard deviation with random signs, with the fan scaled by the density; SGD with momentum 0.9, weight decay
    1e-4 on the scores, cosine schedule, batches of 128; best densities 0.3 to 0.7.

    Differences: Exactly density x size weights are kept, rounded, where their code truncates. Ties are broken in favor
    of the first weights in row-major order.
    """

    kind: ClassVar[str] = "edge_popup"
    random: ClassVar[bool] = False

    density: float = 0.5
    """The fraction of every layer that is kept."""

    def check(self) -> None:
        """Raise DensityError if the density is out of range."""
        check_density(self.density)

    def layer(self, weight: Tensor, seed: int) -> "EdgePopupLayer":
        """Return the mask of a tensor.

        Args:
            weight: The fixed weights of the tensor [O, I, K...]; not modified.
            seed: The seed of the scores.

        Returns:
            The mask, with scores that are uniform on ±1 / sqrt(fan_in).

        Raises:
            DensityError: The density is out of range, or so low that none of the weights would be kept.
        """
        self.check()
        if weight.numel():
            check_keeps_one(self.density, weight.numel(), "weights")
        num_kept = num_to_keep(self.density, weight.numel())
        scores = uniform_scores(weight, 1 / sqrt(fan_in_fan_out(weight)[0]), seed)
        return EdgePopupLayer(scores, weight, num_kept)


class EdgePopupLayer(SupermaskLayer):
    """The mask of one tensor, of the scores with the largest magnitudes."""

    def __init__(self, scores: Tensor, weight: Tensor, num_kept: int) -> None:
        super().__init__(scores, weight)
        self.num_kept, self.threshold = num_kept, KthLargest()

    def draw(self, index: int) -> None:
        """Set the factors to the mask of the scores, which is not random."""
        if not 0 < self.num_kept < self.factors.numel():
            self.factors.fill_(float(self.num_kept > 0))
            return
        threshold, num_reached = self.threshold.find(self.scores, self.num_kept)
        for scores, factors in aligned_chunks(self.scores, self.factors):
            torch.ge(scores.abs(), threshold, out=factors)
        if num_reached > self.num_kept:
            self._break_ties(threshold, num_reached - self.num_kept)

    def backward(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """Compute ∂L/∂s = g w sign(s).

        Args:
            upstream: The gradient of the loss with respect to the effective weights, g.
            effective: Not used.
            out: The tensor that the gradient of the scores is written to; what it holds is overwritten.
        """
        for outer, weight, scores, gradient in aligned_chunks(upstream, self.weight, self.scores, out):
            torch.mul(outer, weight, out=gradient).mul_(torch.sign(scores))

    def _break_ties(self, threshold: float, surplus: int) -> None:
        """Remove the last weights, in row-major order, of those whose score equals the threshold."""
        tied = torch.nonzero(self.scores.detach().abs().reshape(-1) == threshold).squeeze(1)
        mask = self.factors.reshape(-1).clone()
        mask[tied[-surplus:]] = 0.0
        self.factors.copy_(mask.view(self.factors.shape))


@dataclass(frozen=True)
class Signed:
    """Every weight is kept, kept with the opposite sign, or pruned.

        w' = w · m,  m = +1 where s > τ, -1 where s < -τ, else 0,  ∂m/∂s := 1

    Source: Koster, Grothe, Rettinger 2022, "Signing the Supermask: Keep, Hide, Invert", and the authors' code: scores
    uniform on ±sqrt(6 / (fan_in + fan_out)), one threshold for all layers, signed constants as weights, SGD with
    Nesterov's momentum 0.9, learning rate 0.05 decreasing, decoupled weight decay 5e-4 on the scores, which reduces the
    density of the mask, 100 epochs of batches of 128.

    Differences: Their networks have ELU, no biases, and weights scaled for it; here the network is the given one. τ is
    0.01, the default of their layers. Their configurations say 0.4 of the largest score, but the line that would set it
    compares text by `is`, so it is unverified which of the two their figures used.
    """

    kind: ClassVar[str] = "signed"
    random: ClassVar[bool] = False
    density: ClassVar[None] = None

    threshold: float = 0.01
    """τ."""

    def check(self) -> None:
        """Raise SpecError if the threshold is out of range."""
        if not self.threshold >= 0:
            raise SpecError(f"Expected a threshold of at least 0, got {self.threshold}.")

    def layer(self, weight: Tensor, seed: int) -> "SignedLayer":
        """Return the mask of a tensor.

        Args:
            weight: The fixed weights of the tensor [O, I, K...]; not modified.
            seed: The seed of the scores.

        Returns:
            The mask, with scores that are uniform on ±sqrt(6 / (fan_in + fan_out)).

        Raises:
            SpecError: `threshold` is out of range.
        """
        self.check()
        scores = uniform_scores(weight, sqrt(6 / sum(fan_in_fan_out(weight))), seed)
        return SignedLayer(scores, weight, self.threshold)


class SignedLayer(SupermaskLayer):
    """The mask of one tensor, with the signs of the scores beyond a threshold."""

    def __init__(self, scores: Tensor, weight: Tensor, threshold: float) -> None:
        super().__init__(scores, weight)
        self.threshold = threshold

    def draw(self, index: int) -> None:
        """Set the factors to the mask of the scores, which is not random."""
        for scores, factors in aligned_chunks(self.scores, self.factors):
            torch.gt(scores, self.threshold, out=factors)
            factors.sub_((scores < -self.threshold).to(factors.dtype))

    def backward(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """Compute ∂L/∂s = g w.

        Args:
            upstream: The gradient of the loss with respect to the effective weights, g.
            effective: Not used.
            out: The tensor that the gradient of the scores is written to; what it holds is overwritten.
        """
        torch.mul(upstream, self.weight, out=out)


SupermaskType = Bernoulli | EdgePopup | Signed
"""The settings of a kind of mask; `layer` makes the mask of one tensor while it is learned."""
