"""Filter criteria: one score per channel of each group; the channels with the highest scores are kept.

    l1, l2               Σ |w|, (Σ w²)^½ over all coupled parameters (Li et al. 2017: of the filter alone)
    bn_scale             mean |γ| over the coupled BatchNorm channels (Liu et al. 2017, Network Slimming)
    taylor               mean over batches of (Σ g w)², g = dL/dw, over all coupled parameters (Molchanov et al. 2019)
    geometric_median     Σ_j |F - F_j|, the distances to all other filters of the group (He et al. 2019, eq. 4)
    activation, apoz     mean |x|, and the fraction of x that is not 0, x the inputs of the next layers (Hu et al. 2016)
    thinet               the position in a greedy removal (Luo et al. 2017, algorithm 1), see `_thinet`
    lasso                the largest penalty at which the channel is used (He et al. 2017, eq. 2), see `_lasso`
    obs                  the least error of the next layers without it (Hassibi & Stork 1993), see `_obs`
    obd_hutchinson       Σ h w² / 2 over all coupled kernels (LeCun et al. 1990), h estimated for any network
    random               U(0, 1)

Kernels are the weights of two or more dimensions; the other parameters are biases and those of normalizations. Any
criterion for weights, such as `obd`, can be used for filters: its scores are summed over all coupled kernels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
from prunus.pruning.statistics import DERIVATIVES, Criterion, Statistics, as_criterion, collect
from prunus.pruning.structured.graph import require_tensor
from prunus.pruning.structured.groups import Group, GroupMember
from prunus.pruning.views import LayerView, layer_view
from prunus.registry import import_object, lookup
from prunus.seeds import make_generator
from prunus.training.losses import AnyLoss
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
    loss: str | AnyLoss | None = None
    seed: int = 0

    @cached_property
    def examples(self) -> Examples:
        """The calibration examples. Raises StatisticsError where there are none."""
        if self.calibration is None:
            raise StatisticsError(
                "Expected calibration examples for this filter criterion or for refit, got none; pass calibration=."
            )
        return as_examples(self.calibration)

    def collect(
        self, weights: dict[str, Tensor], requires: Collection[str], examples: Examples
    ) -> Statistics:
        """Statistics of weights on examples, with the forward, the loss and the seed of these statistics.

        Args:
            weights: The weights by name.
            requires: The names of the statistics.
            examples: The examples.

        Returns:
            The statistics.
        """
        forward, loss = self.forward, self.loss
        return collect(self.model, weights, requires, examples, forward=forward, loss=loss, seed=self.seed)

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
    def reader_weights(self) -> dict[str, Tensor]:
        """The weights of the layers in `readers`."""
        return {name: require_tensor(self.model, name).detach() for name in self.readers}

    @cached_property
    def reader_view(self) -> LayerView:
        """The model with a forward pass that calls all layers in `readers`, as that of MultiheadAttention does not."""
        return layer_view(self.model, self.reader_weights)

    @cached_property
    def hessians(self) -> dict[str, LayerHessian]:
        """H = 2 X Xᵀ / N of the inputs of the layers in `readers`. Raises StatisticsError without examples."""
        view = self.reader_view
        with view.names_of_model():
            hessians = layer_hessians(
                view.model, view.weights(self.reader_weights), self.examples, forward=self.forward
            )
        return {view.model_names[name]: hessian for name, hessian in hessians.items()}


@dataclass(frozen=True)
class FilterCriterion:
    """A function of statistics that returns one score per channel, [channels] by name of the group."""

    function: Callable[[FilterStatistics], Scores]
    """The first line of its docstring describes the criterion."""
    needs_examples: bool = False
    uses_loss: bool = False
    """Whether it differentiates a loss, so that `loss` has an effect."""
    is_comparable: bool = False
    """Whether scores of different groups are comparable; others are divided by their mean for a global ranking."""
    reason_for_none: str = ""
    """Why a group may have no scores, for the error."""

    @property
    def description(self) -> str:
        """One line about the criterion."""
        if isinstance(self.function, partial):  # of `_summed`, for a criterion for weights
            return f"The sum of {self.function.args[0].name} over all coupled kernels."
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, statistics: FilterStatistics) -> Scores:
        """The scores. Raises StatisticsError unless there is a finite number for each channel of each group."""
        scores = self.function(statistics)
        for group in statistics.groups:
            values = scores.get(group.name)
            if values is None or values.shape != (group.channels,) or not values.isfinite().all():
                got = f"none{self.reason_for_none and f', as {self.reason_for_none}'}"
                if values is not None:
                    got = f"shape {list(values.shape)}, finite: {bool(values.isfinite().all())}"
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
        criterion: A key of FILTER_CRITERIA or CRITERIA, "package.module:name" of a criterion, a value of these, a
            function of `Statistics`, or scores by parameter name.

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
    if isinstance(criterion, str) and ":" in criterion:
        return filter_criterion(import_object(criterion, FilterCriterion))
    if isinstance(criterion, str):
        table: dict[str, Any] = {**CRITERIA, **FILTER_CRITERIA}
        return filter_criterion(lookup("criterion", table, criterion))
    if not (callable(criterion) or isinstance(criterion, Mapping)):
        raise StatisticsError(
            f"Expected a criterion, its name, or scores by parameter name, got a {type(criterion).__name__}."
        )
    of_weights = as_criterion(criterion)
    uses_loss = bool(of_weights.requires & DERIVATIVES.keys())
    return FilterCriterion(partial(_summed, of_weights), of_weights.needs_examples, uses_loss)


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
    norms = _batch_norm_weights(model)
    if not norms:
        raise StatisticsError(f"Expected BatchNorm layers with a scale in {type(model).__name__}, got none.")
    return torch.stack([weight.abs().sum() for weight in norms]).sum()


def _batch_norm_weights(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]


# --- weights and gradients ----------------------------------------------------------------------------------------


def _l1(stats: FilterStatistics) -> Scores:
    """The L1 norm of all coupled parameters."""
    magnitudes = {name: weight.abs() for name, weight in stats.weights.items()}
    return {group.name: group.reduce(magnitudes) for group in stats.groups}


def _l2(stats: FilterStatistics) -> Scores:
    """The L2 norm of all coupled parameters."""
    squares = {
        name: weight.to(torch.promote_types(weight.dtype, torch.float32)).square()
        for name, weight in stats.weights.items()
    }
    return {group.name: group.reduce(squares).sqrt() for group in stats.groups}


def _random(stats: FilterStatistics) -> Scores:
    """Random scores, the control."""
    return {
        group.name: torch.rand(group.channels, generator=make_generator(stats.seed, "slim", group.name))
        for group in stats.groups
    }


def _bn_scale(stats: FilterStatistics) -> Scores:
    """The BatchNorm scales (Network Slimming)."""
    norms = {id(weight) for weight in _batch_norm_weights(stats.model)}
    names = {name for name, weight in stats.model.named_parameters() if id(weight) in norms}
    scales = {name: weight.abs() for name, weight in stats.weights.items() if name in names}
    ones = {name: torch.ones_like(scale) for name, scale in scales.items()}
    groups = [g for g in stats.groups if any(member.name in scales for member in g.members)]
    return {group.name: group.reduce(scales) / group.reduce(ones) for group in groups}


def _taylor(stats: FilterStatistics) -> Scores:
    """The squared first-order change of the loss."""
    weights, examples = stats.weights, stats.examples
    totals = {group.name: torch.zeros(group.channels, dtype=torch.float64) for group in stats.groups}
    batches = examples.equal_batches(TAYLOR_BATCH)
    for batch in batches:
        gradients = stats.collect(weights, {"gradients"}, Examples(batch)).gradients
        products = {name: weight * gradients[name] for name, weight in weights.items()}
        for group in stats.groups:
            totals[group.name] += group.reduce(products).double().cpu().square() / len(batches)
    return totals


def _summed(criterion: Criterion, stats: FilterStatistics) -> Scores:
    weights = {name: weight for name, weight in stats.weights.items() if weight.dim() > 1}
    collected = Statistics(weights, stats.seed)
    if criterion.needs_examples:
        collected = stats.collect(weights, criterion.requires, stats.examples)
    scores = criterion(collected)
    return {group.name: group.reduce(scores) for group in stats.groups}


def _obd_hutchinson(stats: FilterStatistics) -> Scores:
    """The second-order change of the loss, by an estimated diagonal."""
    weights = {name: weight for name, weight in stats.weights.items() if weight.dim() > 1}
    objective = make_objective(stats.model, weights, stats.examples, loss=stats.loss, forward=stats.forward)
    diagonal = DIAGONALS["hutchinson"](objective, seed=stats.seed)
    scores = obd(Statistics(weights, hessian_diagonal=diagonal))
    return {group.name: group.reduce(scores) for group in stats.groups}


def _geometric_median(stats: FilterStatistics) -> Scores:
    """The distances to the other filters of the group."""
    weights, scores = stats.weights, {}
    for group in stats.groups:
        members = [m for m in group.members if m.name in weights]
        rows = [m for m in members if m.dim == 0 and weights[m.name].dim() > 1] or members
        filters = torch.cat([group.member_values(m, weights[m.name]) for m in rows], 1)
        filters = filters.to(torch.promote_types(filters.dtype, torch.float32))
        scores[group.name] = torch.cdist(filters, filters).sum(1)
    return scores


# --- inputs of the next layers ------------------------------------------------------------------------------------


def _activation(stats: FilterStatistics) -> Scores:
    """The mean magnitude of the inputs of the next layers."""
    return _mean_of_inputs(torch.abs, stats)


def _apoz(stats: FilterStatistics) -> Scores:
    """The fraction of the inputs of the next layers that is not zero."""
    return _mean_of_inputs(lambda x: x != 0, stats)


def _mean_of_inputs(function: Callable[[Tensor], Tensor], stats: FilterStatistics) -> Scores:
    """The mean of a function of the inputs of the next layers."""
    weights = stats.reader_weights
    totals: dict[str, Any] = dict.fromkeys(weights, 0.0)
    counts = dict.fromkeys(weights, 0)

    def add(name: str, inputs: Tensor) -> None:
        axis = inputs.dim() + 1 - weights[name].dim()  # of the channels; there may be no axis of examples
        values = function(inputs).double().movedim(axis, 0).flatten(1)
        totals[name] = totals[name] + values.sum(1)
        counts[name] += values.shape[1]

    view = stats.reader_view
    adders = {name: partial(add, view.model_names[name]) for name in view.weights(weights)}
    with view.names_of_model():
        pass_layer_inputs(view.model, view.weights(weights), stats.examples, adders, forward=stats.forward)
    scores: dict[str, Any] = {}
    for name, groups_read in stats.readers.items():
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
    grams: dict[str, Any] = {}
    for name, groups_read in stats.readers.items():
        weight = stats.reader_weights[name]
        matrix = to_matrix(weight).double()
        products = matrix.T @ matrix * stats.hessians[name].hessian[0] / 2
        for group, member in groups_read:
            columns = input_columns(weight, member)
            order = columns.flatten().to(products.device)
            blocks = products[order][:, order].reshape(*columns.shape, *columns.shape)
            grams[group.name] = grams.get(group.name, 0.0) + blocks.sum((1, 3))
    return grams


def _thinet(stats: FilterStatistics) -> Scores:
    """Greedy reconstruction of the next layers.

    The score is the position of a channel in a greedy removal of the channel that changes the next layers least. The
    change is |Σ x_c|² over the channels that are removed so far and the candidate.
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
    """The least error of the next layers without the channel.

    The score is the squared error of the layers' outputs after the channel is removed and the remaining weights are
    refitted: Σ_o w_oC ([H⁻¹]_CC)⁻¹ w_oCᵀ / 2, with H = 2 X Xᵀ / N and the columns C of the channel. This is eq. 5 of
    Hassibi & Stork 1993 for all weights of a channel at once.
    """
    scores: dict[str, Any] = {}
    for name, groups_read in stats.readers.items():
        weight = stats.reader_weights[name]
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
    """Lasso regression of the next layers' outputs.

    The score is the largest λ at which β_c > 0 in min |Σ x_c - Σ β_c x_c|² / 2 + λ Σ β_c, β ≥ 0, as a fraction of
    the largest Σ_d <x_c, x_d>, from which on no channel is used. Channels that are never used are ranked below, by
    |x_c|².
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


_UNREAD = "no Linear or convolution without groups reads them"

FILTER_CRITERIA: dict[str, FilterCriterion] = {
    "l1": FilterCriterion(_l1),
    "l2": FilterCriterion(_l2),
    "bn_scale": FilterCriterion(
        _bn_scale, is_comparable=True, reason_for_none="no BatchNorm with a scale normalizes them"
    ),
    "taylor": FilterCriterion(_taylor, needs_examples=True, uses_loss=True, is_comparable=True),
    "geometric_median": FilterCriterion(_geometric_median),
    "activation": FilterCriterion(_activation, needs_examples=True, reason_for_none=_UNREAD),
    "apoz": FilterCriterion(_apoz, needs_examples=True, reason_for_none=_UNREAD),
    "thinet": FilterCriterion(_thinet, needs_examples=True, reason_for_none=_UNREAD),
    "lasso": FilterCriterion(_lasso, needs_examples=True, reason_for_none=_UNREAD),
    "obs": FilterCriterion(_obs, needs_examples=True, reason_for_none=_UNREAD),
    "obd_hutchinson": FilterCriterion(
        _obd_hutchinson, needs_examples=True, uses_loss=True, is_comparable=True
    ),
    "random": FilterCriterion(_random, is_comparable=True),
}
