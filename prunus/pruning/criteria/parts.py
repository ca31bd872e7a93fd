"""What criteria are made of: evidence that must be there, signs, ranks, and derivatives by the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.errors import StatisticsError
from prunus.masks import all_kept
from prunus.pruning.calibration_checks import check_nonzero, unreached_error
from prunus.pruning.masks import check_finite
from prunus.types import MaskDict, Params, ScoringBatch, Statistics


def require_start_weights(evidence: Statistics, criterion: str) -> Params:
    """The initial weights, without their history; StatisticsError where there are none of the weights' shapes."""
    if evidence.initial is None:
        raise StatisticsError(
            f"The criterion {criterion!r} looks at the weights that training started from, and the evidence "
            "has none; pass them as Statistics(weights, initial=...)."
        )
    check_same_shapes(evidence, evidence.initial, "initial weights", criterion)
    return {name: evidence.initial[name].detach() for name in evidence.weights}


def masks_or_ones(evidence: Statistics, criterion: str) -> MaskDict:
    """The masks of earlier rounds, all True where there were none; StatisticsError where they do not fit."""
    if evidence.masks is None:
        return all_kept(evidence.weights)
    check_same_shapes(evidence, evidence.masks, "masks", criterion)
    return {name: evidence.masks[name].bool() for name in evidence.weights}


def require_scoring_batch(evidence: Statistics, criterion: str) -> ScoringBatch:
    """The probe; StatisticsError where there is none."""
    if evidence.probe is None:
        raise StatisticsError(
            f"The criterion {criterion!r} asks the network how it answers, and the evidence has no probe; "
            "pass Evidence(weights, initial=..., probe=prunus.pruning.scoring_batch.probe(model, inputs, labels))."
        )
    return evidence.probe


def same_sign_masks(evidence: Statistics, criterion: str) -> MaskDict:
    """Where a weight has the sign it started with; zero has a sign of its own. NonFiniteError."""
    initial = require_start_weights(evidence, criterion)
    # A NaN has no sign: it would turn into a plain disagreement, and its score into a harmless zero.
    check_finite(initial, "The initial weight")
    check_finite(evidence.weights, "The weight")
    return {name: initial[name].sign() == w.detach().sign() for name, w in evidence.weights.items()}


def min_ranks(one: Params, other: Params, masks: MaskDict) -> Params:
    """The lower of a weight's two ranks in its tensor, 0 where `masks` is False; NonFiniteError."""
    check_finite(one, "The initial weight")
    check_finite(other, "The weight")
    return {
        name: torch.minimum(_ranks(one[name], mask), _ranks(other[name], mask))
        for name, mask in masks.items()
    }


def detached_leaves(weights: Params) -> Params:
    """Copies that derivatives can be taken by."""
    return {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}


def loss(probe: ScoringBatch, weights: Params) -> Tensor:
    """The mean cross-entropy of the probe's answer, in nats."""
    return F.cross_entropy(probe.answer(weights, probe.inputs), probe.labels)


def gradients_wrt(value: Tensor, weights: Params, graph: bool = False) -> Params:
    """The derivative of `value` by each of `weights`; on request with the graph of a second derivative.

    Raises StatisticsError where it depends on none, ModelError naming the first on which it does not.
    """
    if not value.requires_grad:
        raise StatisticsError(
            f"The probe's answer does not depend on the weights {list(weights)} it is given; its `answer` must "
            "use them, and be differentiable."
        )
    slopes = torch.autograd.grad(value, list(weights.values()), create_graph=graph, allow_unused=True)
    found = {}
    for name, slope in zip(weights, slopes, strict=True):
        if slope is None:
            raise unreached_error(name)
        found[name] = slope
    return found


@torch.enable_grad()
def loss_gradient(evidence: Statistics, criterion: str) -> Params:
    """The gradient of the probe's loss at the initial weights; StatisticsError where it is zero by a whole layer."""
    weights = detached_leaves(require_start_weights(evidence, criterion))
    slopes = gradients_wrt(loss(require_scoring_batch(evidence, criterion), weights), weights)
    check_nonzero(slopes, masks_or_ones(evidence, criterion), "The gradient by")
    return slopes


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """(1 + the number of smaller values) / the number of values, among those that `mask` leaves; else 0.

    Equal values have equal ranks. In float64, so that no two ranks of a large layer are rounded to one.
    """
    _, which, counts = torch.unique(values[mask], return_inverse=True, return_counts=True)
    smaller = counts.cumsum(0) - counts
    ranks = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    ranks[mask] = (smaller[which] + 1).double() / len(which)
    return ranks


def check_same_shapes(evidence: Statistics, tensors: Mapping[str, Tensor], what: str, criterion: str) -> None:
    """Raise StatisticsError unless `tensors` have the names and shapes of the weights."""
    wanted = {name: tuple(weight.shape) for name, weight in evidence.weights.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if wrong:
        asked, given = ({name: shapes.get(name) for name in wrong} for shapes in (wanted, found))
        raise StatisticsError(
            f"The criterion {criterion!r} needs {what} of the names and shapes of the weights, {asked}, but the "
            f"evidence has {given}; pass both of the same network and selection."
        )
