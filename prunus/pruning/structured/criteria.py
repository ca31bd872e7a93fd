"""Filter criteria: one score per channel of each group; the channels with the highest scores are kept.

    l1, l2               Σ |w|, (Σ w²)^½ over all coupled weights (Li et al. 2017: of the filter alone)
    bn_scale             mean |γ| over the coupled BatchNorm channels (Liu et al. 2017, Network Slimming)
    taylor               mean over batches of (Σ g w)², g = dL/dw, over all coupled weights (Molchanov et al. 2019)
    geometric_median     Σ_j |F - F_j|, the distances to all other filters of the group (He et al. 2019, eq. 4)
    activation, apoz     mean |x|, and the fraction of x that is not 0, x the inputs of the next layers (Hu et al. 2016)
    thinet               the position in a greedy removal (Luo et al. 2017, algorithm 1), see `_thinet`
    lasso                the largest penalty at which the channel is used (He et al. 2017, eq. 2), see `_lasso`
    obs                  the least error of the next layers without it (Hassibi & Stork 1993), see `_obs`
    obd_hutchinson       Σ h w² / 2 over all coupled weights (LeCun et al. 1990), h estimated for any network
    random               U(0, 1)

Any criterion for weights, such as `obd`, can be used for filters: its scores are summed over all coupled weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.examples import Calibration, Examples, as_examples
from prunus.errors import StatisticsError
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.criteria.gradients import obd
from prunus.pruning.matrix import to_matrix
from prunus.pruning.obs.diagonals import DIAGONALS
from prunus.pruning.obs.hessian import LayerHessian, layer_hessians
from prunus.pruning.obs.layer_inputs import pass_layer_inputs
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.statistics import Criterion, Statistics, as_criterion, collect
from prunus.pruning.structured.graph import resolve
from prunus.pruning.structured.groups import Group, GroupMember
from prunus.registry import lookup
from prunus.seeds import make_generator
from prunus.training.losses import Loss, LossFunction
from prunus.training.outputs import Forward
from prunus.types import Scores

TAYLOR_BATCH = 32
"""Examples per batch of `taylor`."""


@dataclass(frozen=True)
class FilterStatistics:
    """The input of a filter criterion."""

    model: nn.Module
    groups: Sequence[Group]
    """The groups to score."""
    calibration: Calibration | None = None
    forward: Forward | None = None
    loss: str | Loss | LossFunction | None = None
    seed: int = 0

    @property
    def examples(self) -> Examples:
        """The calibration examples. Raises StatisticsError where there are none."""
        if self.calibration is None:
            raise StatisticsError(
                "Expected calibration examples for this filter criterion or for refit, got none; pass calibration=."
            )
        return as_examples(self.calibration)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters of the groups, by name."""
        names = {member.name for group in self.groups for member in group.members}
        return {name: p.detach() for name, p in self.model.named_parameters() if name in names}

    @cached_property
    def readers(self) -> dict[str, list[tuple[Group, GroupMember]]]:
        """The groups whose channels a linear or convolutional layer reads, by name of its weight."""
        readers: dict[str, list[tuple[Group, GroupMember]]] = {}
        for group in self.groups:
            for member in group.members:
                path, _, last = member.name.rpartition(".")
                module = self.model.get_submodule(path) if last == "weight" and member.dim == 1 else None
                is_layer = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
                if is_layer and getattr(module, "groups", 1) == 1:
                    readers.setdefault(member.name, []).append((group, member))
        return readers

    @cached_property
    def hessians(self) -> dict[str, LayerHessian]:
        """H = 2 X Xᵀ / N of the inputs of the layers in `readers`. Raises StatisticsError without examples."""
        weights = {name: resolve(self.model, name).detach() for name in self.readers}
        return layer_hessians(self.model, weights, self.examples, forward=self.forward)


@dataclass(frozen=True)
class FilterCriterion:
    """A function of statistics that returns one score per channel, [channels] by name of the group."""

    function: Callable[[FilterStatistics], Scores]
    description: str
    needs_examples: bool = False
    is_comparable: bool = False
    """Whether scores of different groups are comparable; others are divided by their mean for a global ranking."""

    def __call__(self, statistics: FilterStatistics) -> Scores:
        """The scores. Raises StatisticsError unless there is a finite number for each channel of each group."""
        scores = self.function(statistics)
        for group in statistics.groups:
            values = scores.get(group.name)
            if values is None or values.shape != (group.channels,) or not values.isfinite().all():
                got = (
                    "none"
                    if values is None
                    else f"shape {list(values.shape)}, finite: {bool(values.isfinite().all())}"
                )
                raise StatisticsError(
                    f"Expected {group.channels} finite scores for the channels of {group.name!r}, got {got}; choose "
                    "another criterion, or exclude it."
                )
        return {group.name: scores[group.name].detach().double().cpu() for group in statistics.groups}


def filter_criterion(
    criterion: "str | FilterCriterion | Criterion | Mapping[str, Tensor]",
) -> FilterCriterion:
    """A filter criterion by name, or from a criterion for weights.

    Args:
        criterion: A key of FILTER_CRITERIA or CRITERIA, a value of these, a function of `Statistics`, or scores by
            parameter name.

    Returns:
        The filter criterion.

    Raises:
        UnknownNameError: There is no such name.
        StatisticsError: It is neither a criterion nor scores.

    >>> filter_criterion("obd").needs_examples
    True
    """
    if isinstance(criterion, FilterCriterion):
        return criterion
    if isinstance(criterion, str):
        table: dict[str, Any] = {**CRITERIA, **FILTER_CRITERIA}
        return filter_criterion(lookup("criterion", table, criterion))
    if not (callable(criterion) or isinstance(criterion, Mapping)):
        raise StatisticsError(
            f"Expected a criterion, its name, or scores by parameter name, got a {type(criterion).__name__}."
        )
    of_weights = as_criterion(criterion)
    text = f"The sum of {of_weights.name} over all coupled weights."
    return FilterCriterion(partial(_summed, of_weights), text, of_weights.needs_examples)


def batch_norm_scales(model: nn.Module) -> Tensor:
    """The penalty of Network Slimming, Σ |γ| over all BatchNorm scales; add a multiple of it to the training loss.

    Source: Liu et al. 2017, "Network slimming", eq. 1; the authors multiply it by 1e-4 (VGG) or 1e-5.

    Args:
        model: Any module with BatchNorm layers.

    Returns:
        A scalar with a gradient.

    Raises:
        StatisticsError: The model has no BatchNorm scale.

    >>> batch_norm_scales(nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))).item()
    3.0
    """
    norms = [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    if not norms:
        raise StatisticsError(f"Expected BatchNorm layers with a scale in {type(model).__name__}, got none.")
    return torch.stack([weight.abs().sum() for weight in norms]).sum()


# --- weights and gradients ----------------------------------------------------------------------------------------


def _l1(stats: FilterStatistics) -> Scores:
    magnitudes = {name: weight.abs() for name, weight in stats.weights.items()}
    return {group.name: group.reduce(magnitudes) for group in stats.groups}


def _l2(stats: FilterStatistics) -> Scores:
    squares = {name: weight.square() for name, weight in stats.weights.items()}
    return {group.name: group.reduce(squares).sqrt() for group in stats.groups}


def _random(stats: FilterStatistics) -> Scores:
    return {
        group.name: torch.rand(group.channels, generator=make_generator(stats.seed, "slim", group.name))
        for group in stats.groups
    }


def _bn_scale(stats: FilterStatistics) -> Scores:
    norms = {
        f"{path}.weight" if path else "weight"
        for path, module in stats.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }
    scales = {name: weight.abs() for name, weight in stats.weights.items() if name in norms}
    return {
        group.name: group.reduce(scales)
        / group.reduce({name: torch.ones_like(scale) for name, scale in scales.items()})
        for group in stats.groups
        if any(member.name in scales for member in group.members)
    }


def _taylor(stats: FilterStatistics) -> Scores:
    weights, examples = stats.weights, stats.examples
    totals = {group.name: torch.zeros(group.channels, dtype=torch.float64) for group in stats.groups}
    batches = examples.equal_batches(TAYLOR_BATCH)
    for batch in batches:
        collected = collect(
            stats.model, weights, {"gradients"}, Examples(batch),
            forward=stats.forward, loss=stats.loss, seed=stats.seed,
        )  # fmt: skip
        products = {name: weight * collected.gradients[name] for name, weight in weights.items()}
        for group in stats.groups:
            totals[group.name] += group.reduce(products).double().cpu().square() / len(batches)
    return totals


def _summed(criterion: Criterion, stats: FilterStatistics) -> Scores:
    weights = {name: weight for name, weight in stats.weights.items() if weight.dim() > 1}
    if criterion.needs_examples:
        collected = collect(
            stats.model, weights, criterion.requires, stats.examples, forward=stats.forward, loss=stats.loss,
            seed=stats.seed,
        )  # fmt: skip
    else:
        collected = Statistics(weights, stats.seed)
    scores = criterion(collected)
    return {group.name: group.reduce(scores) for group in stats.groups}


def _obd_hutchinson(stats: FilterStatistics) -> Scores:
    weights = {name: weight for name, weight in stats.weights.items() if weight.dim() > 1}
    objective = make_objective(stats.model, weights, stats.examples, loss=stats.loss, forward=stats.forward)
    diagonal = DIAGONALS["hutchinson"](objective, seed=stats.seed)
    scores = obd(Statistics(weights, hessian_diagonal=diagonal))
    return {group.name: group.reduce(scores) for group in stats.groups}


def _geometric_median(stats: FilterStatistics) -> Scores:
    weights, scores = stats.weights, {}
    for group in stats.groups:
        members = [m for m in group.members if m.name in weights]
        rows = [m for m in members if m.dim == 0 and weights[m.name].dim() > 1] or members
        filters = torch.cat([group.member_values(m, weights[m.name]) for m in rows], 1)
        scores[group.name] = torch.cdist(filters, filters).sum(1)
    return scores


# --- inputs of the next layers ------------------------------------------------------------------------------------


def _activations(function: Callable[[Tensor], Tensor], stats: FilterStatistics) -> Scores:
    """The mean of a function of the inputs of the next layers."""
    readers = stats.readers
    totals: dict[str, Any] = dict.fromkeys(readers, 0.0)
    counts = dict.fromkeys(readers, 0)

    def add(name: str, inputs: Tensor) -> None:
        is_linear = resolve(stats.model, name).dim() == 2
        values = function(inputs).double().movedim(-1 if is_linear else 1, 0).flatten(1)
        totals[name] = totals[name] + values.sum(1)
        counts[name] += values.shape[1]

    weights = {name: resolve(stats.model, name).detach() for name in readers}
    adders = {name: partial(add, name) for name in readers}
    pass_layer_inputs(stats.model, weights, stats.examples, adders, forward=stats.forward)
    scores: dict[str, Any] = {}
    for name, groups_read in readers.items():
        for group, member in groups_read:
            values = (totals[name] / counts[name])[member.indices.to(totals[name].device)].mean(1)
            scores[group.name] = scores.get(group.name, 0.0) + values
    return scores


def input_columns(weight: Tensor, member: GroupMember) -> Tensor:
    """The columns of a layer's matrix (`to_matrix`) that are multiplied with each channel.

    Args:
        weight: Of a linear or convolutional layer, [O, I, ...].
        member: Dimension 1 of this weight.

    Returns:
        [channels, columns of each].
    """
    offsets = torch.arange(0, weight[0].numel(), weight.shape[1])  # the channels come last in a column
    return (member.indices[..., None] + offsets).flatten(1)


def _contributions(stats: FilterStatistics) -> dict[str, Tensor]:
    """A = Σ x_c x_dᵀ by group, [C, C]: x_c is what channel c adds to all outputs of the next layers.

    With H = 2 X Xᵀ / N of the layer's inputs, an entry is the sum of the block of channels c, d of (Wᵀ W) ∘ H / 2.
    """
    grams: dict[str, Tensor] = {}
    for name, groups_read in stats.readers.items():
        weight = resolve(stats.model, name).detach()
        matrix = to_matrix(weight).double()
        products = matrix.T @ matrix * stats.hessians[name].hessian[0] / 2
        for group, member in groups_read:
            columns = input_columns(weight, member)
            order = columns.flatten().to(products.device)
            blocks = products[order][:, order].reshape(*columns.shape, *columns.shape)
            gram = blocks.sum((1, 3))
            grams[group.name] = grams[group.name] + gram if group.name in grams else gram
    return grams


def _thinet(stats: FilterStatistics) -> Scores:
    """The position of each channel in a greedy removal of the channel that changes the next layers least.

    The change is |Σ x_c|² over the channels that are removed so far and the candidate.
    """
    scores = {}
    for name, gram in _contributions(stats).items():
        position = torch.zeros(len(gram), dtype=torch.float64)
        sums, is_left = torch.zeros_like(gram[0]), torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        for number in range(len(gram)):
            cost = torch.where(is_left, 2 * sums + gram.diagonal(), torch.inf)
            channel = int(cost.argmin())
            position[channel] = (number + 1) / len(gram)
            is_left[channel] = False
            sums = sums + gram[channel]
        scores[name] = position
    return scores


def _obs(stats: FilterStatistics) -> Scores:
    """The least error of the next layers' outputs without a channel, if their other weights are refitted.

    With H = 2 X Xᵀ / N and the columns C of the channel, it is Σ_o w_oC ([H⁻¹]_CC)⁻¹ w_oCᵀ / 2: eq. 5 of the paper for
    all weights of the channel at once, and for the layer's squared error.
    """
    scores: dict[str, Any] = {}
    for name, groups_read in stats.readers.items():
        weight = resolve(stats.model, name).detach()
        matrix, inverse = to_matrix(weight).double(), torch.linalg.inv(stats.hessians[name].damped()[0])
        for group, member in groups_read:
            columns = input_columns(weight, member).to(weight.device)
            blocks = inverse[columns[:, :, None], columns[:, None, :]]  # [channels, K, K]
            parts = matrix.T[columns]  # [channels, K, O]
            errors = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2)) / 2
            scores[group.name] = scores.get(group.name, 0.0) + errors
    return scores


LASSO_PENALTIES = 60
"""Penalties of `lasso`, each 0.85 of the one before."""
LASSO_ITERATIONS = 50
"""Steps of proximal gradient descent for each penalty."""


def _lasso(stats: FilterStatistics) -> Scores:
    """The largest λ at which β_c > 0 in min |Σ x_c - Σ β_c x_c|² / 2 + λ Σ β_c, β ≥ 0, as a fraction of the first λ.

    Channels that are never used are ranked below, by |x_c|².
    """
    scores = {}
    for name, gram in _contributions(stats).items():
        target, largest = gram.sum(1), gram.diagonal().max()
        rate = 1 / torch.linalg.eigvalsh(gram)[-1].clamp(min=1e-300)
        beta, score = torch.zeros_like(target), torch.zeros_like(target)
        for number in range(LASSO_PENALTIES):
            fraction = 0.85 ** (number + 1)
            for _ in range(LASSO_ITERATIONS):
                beta = (beta - rate * (gram @ beta - target + fraction * target.max())).clamp(min=0)
            score = torch.where((score == 0) & (beta > 0), fraction, score)
        scores[name] = score + 1e-6 * gram.diagonal() / largest.clamp(min=1e-300)
    return scores


FILTER_CRITERIA: dict[str, FilterCriterion] = {
    "l1": FilterCriterion(_l1, "The L1 norm of all coupled weights."),
    "l2": FilterCriterion(_l2, "The L2 norm of all coupled weights."),
    "bn_scale": FilterCriterion(_bn_scale, "The BatchNorm scales (Network Slimming).", is_comparable=True),
    "taylor": FilterCriterion(
        _taylor, "The squared first-order change of the loss.", needs_examples=True, is_comparable=True
    ),
    "geometric_median": FilterCriterion(
        _geometric_median, "The distances to the other filters of the group."
    ),
    "activation": FilterCriterion(
        partial(_activations, torch.abs),
        "The mean magnitude of the inputs of the next layers.",
        needs_examples=True,
    ),
    "apoz": FilterCriterion(
        partial(_activations, lambda x: x != 0),
        "The fraction of the inputs of the next layers that is not zero.",
        needs_examples=True,
    ),
    "thinet": FilterCriterion(_thinet, "Greedy reconstruction of the next layers.", needs_examples=True),
    "lasso": FilterCriterion(_lasso, "Lasso regression of the next layers' outputs.", needs_examples=True),
    "obs": FilterCriterion(
        _obs, "The least error of the next layers without the channel.", needs_examples=True
    ),
    "obd_hutchinson": FilterCriterion(
        _obd_hutchinson,
        "The second-order change of the loss, by an estimated diagonal.",
        needs_examples=True,
        is_comparable=True,
    ),
    "random": FilterCriterion(_random, "Random scores, the control.", is_comparable=True),
}
