"""Properties of every criterion: shapes, determinism, purity, requirements; and the mathematics of each by hand.

How statistics are collected is tested in test_statistics.py, against finite differences.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import NonFiniteError, StatisticsError
from prunus.masks import are_nested
from prunus.models.initialization import glorot_normal
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.density import densities_from_threshold, num_to_keep
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, Global, Layer, parse_scope
from prunus.pruning.statistics import DERIVATIVES, Statistics, as_criterion, collect, criterion
from prunus.seeds import make_generator
from prunus.types import MaskDict, Split

each_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
each_name = pytest.mark.parametrize("name", CRITERIA)
each_scope = pytest.mark.parametrize("scope", [Layer(), Global()])
"""Those that take any density."""
PATTERNS = {"2:4": "3:4", "4:8": "6:8", "1x4": "1x4"}
"""The others, and what may have pruned before them at a density of 0.75."""


def network() -> nn.Module:
    """A convolution and two linear layers with biases, seeded; [B, 2, 3, 3] -> [B, 4]."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
    )
    draw = make_generator(0, "network")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5, generator=draw)
    return model


def statistics(seed: int = 0, model: nn.Module | None = None, channels: int = 2) -> Statistics:
    """All statistics, at the parameters of a network, with masks of density 0.5."""
    model, draw = model or network(), make_generator(0, "evidence")
    weights = prunable_weights(model)
    noise = {name: torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}
    initial = {name: weight.detach() + 0.5 * noise[name] for name, weight in weights.items()}
    masks = {name: torch.rand(weight.shape, generator=draw) < 0.5 for name, weight in weights.items()}
    inputs = torch.randn(7, channels, 3, 3, generator=draw)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    diagonal = {name: torch.rand(weight.shape, generator=draw) for name, weight in weights.items()}
    requires = {"gradients", "hessian_gradients", "output_sum_gradients", "input_norms"}
    stats = collect(model, weights, requires, Split(inputs, labels), initial=initial, masks=masks, seed=seed)
    return replace(stats, hessian_diagonal=diagonal)


def every_tensor(stats: Statistics) -> Iterator[Tensor]:
    for field in fields(stats):
        value = getattr(stats, field.name)
        yield from value.values() if isinstance(value, dict) else ()


@each_criterion
def test_scores_have_the_shapes_of_the_weights_and_nothing_is_changed(criterion):
    model = network()
    stats = statistics(model=model)
    before = [tensor.detach().clone() for tensor in every_tensor(stats)]
    state, random_state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    first, again = criterion(stats), criterion(stats)
    assert list(first) == list(stats.weights)
    for name, weight in stats.weights.items():
        assert first[name].shape == weight.shape
        assert torch.equal(first[name], again[name])
        assert not first[name].requires_grad
        assert first[name].isfinite().all()
        assert first[name].data_ptr() not in {weight.data_ptr(), stats.initial[name].data_ptr()}
    assert all(torch.equal(was, now) for was, now in zip(before, every_tensor(stats), strict=True))
    assert all(torch.equal(was, model.state_dict()[name]) for name, was in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(random_state, torch.get_rng_state())


@each_criterion
def test_scores_do_not_depend_on_no_grad(criterion):
    stats = statistics()
    with torch.no_grad():
        quiet = criterion(stats)
    assert all(torch.equal(score, quiet[name]) for name, score in criterion(stats).items())


@each_name
def test_scores_of_a_tensor_do_not_depend_on_the_other_tensors(name):
    stats, last = statistics(), "6.weight"
    only = {
        field.name: {last: value[last]} if isinstance(value := getattr(stats, field.name), dict) else value
        for field in fields(stats)
    }
    assert torch.equal(CRITERIA[name](Statistics(**only))[last], CRITERIA[name](stats)[last])


@each_name
def test_criterion_names_a_statistic_that_is_missing_or_does_not_fit(name):
    stats, tested = statistics(), CRITERIA[name]
    bare = Statistics(stats.weights, masks=stats.masks)
    needed = {required: getattr(stats, required) for required in tested.requires}
    tested(replace(bare, **needed))  # nothing else is used
    for required, tensors in needed.items():
        others = {other: value for other, value in needed.items() if other != required}
        with pytest.raises(
            StatisticsError, match=f"Expected the statistic '{required}' for the criterion '{name}'"
        ):
            tested(replace(bare, **others))
        short = {n: t for n, t in tensors.items() if n != "0.weight"}
        turned = {n: t.mT if n == "6.weight" else t for n, t in tensors.items()}
        for wrong, message in ((short, "{'0.weight': None}"), (turned, r"{'6.weight': \(4, 5\)}")):
            with pytest.raises(StatisticsError, match=rf"'{required}' for .*'{name}'.*{message}"):
                tested(replace(stats, **{required: wrong}))
    tested(replace(stats, masks=None))
    with pytest.raises(StatisticsError, match=f"masks for the criterion '{name}'"):
        tested(replace(stats, masks={}))


@pytest.mark.parametrize(
    "name",
    [name for name, scorer in CRITERIA.items() if scorer.requires & set(DERIVATIVES)],
)
def test_derivative_that_is_zero_for_a_whole_layer_is_refused(name):
    (required,) = CRITERIA[name].requires
    stats = statistics()
    zero = {n: torch.zeros_like(t) if n == "4.weight" else t for n, t in getattr(stats, required).items()}
    with pytest.raises(StatisticsError, match=r"by '4\.weight' is zero on all calibration examples"):
        CRITERIA[name](replace(stats, **{required: zero}))
    pruned = {n: mask & (n != "4.weight") for n, mask in stats.masks.items()}
    CRITERIA[name](replace(stats, masks=pruned, **{required: zero}))


def test_access_to_a_statistic_that_was_not_collected_is_an_error():
    def user_criterion(stats):
        return {name: stats.gradients[name] for name in stats.weights}

    with pytest.raises(
        StatisticsError, match=r"'gradients' .*collect\(model, weights, {'gradients'}, calibration"
    ):
        as_criterion(user_criterion)(Statistics({"a": torch.ones(2)}))


def test_function_and_a_dict_of_scores_are_criteria():
    weights = {"a": torch.tensor([1.0, -3.0])}
    negative = as_criterion(lambda stats: {name: -weight for name, weight in stats.weights.items()})
    assert negative(Statistics(weights))["a"].tolist() == [-1, 3]
    scores = {"a": torch.tensor([5.0, 6.0])}
    assert as_criterion(scores)(Statistics(weights))["a"].tolist() == [5, 6]
    with pytest.raises(StatisticsError, match=r"Expected scores .*{'a': \(2,\)}, got {'a': \(1,\)}"):
        as_criterion({"a": torch.ones(1)})(Statistics(weights))


def test_criterion_that_requires_an_unknown_statistic_is_refused():
    with pytest.raises(StatisticsError, match=r"got \['gradient'\]"):
        criterion(requires={"gradient"})(lambda stats: stats.weights)


def test_criteria_of_the_initial_weights_declare_it():
    at_start = {name for name, scorer in CRITERIA.items() if scorer.defined_at == "initialization"}
    assert at_start == {"snip", "gradient", "grasp", "synflow"}


@each_scope
@each_criterion
@pytest.mark.filterwarnings("ignore::prunus.errors.EmptyLayerWarning")
@pytest.mark.parametrize("density", [0.2, 0.3, 0.4])
def test_pruned_weights_are_never_selected(criterion, scope, density):
    stats = statistics()
    masks = scope.select(criterion(stats), density, within=stats.masks, seed=1)
    assert are_nested(masks, stats.masks)
    groups = [[n] for n in masks] if scope == Layer() else [list(masks)]
    for group in groups:
        num_kept = sum(int(masks[n].sum()) for n in group)
        assert num_kept == num_to_keep(density, sum(masks[n].numel() for n in group))


@each_criterion
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruned_weights_are_never_selected_in_a_pattern(criterion, pattern):
    assert {"layer", "global", *PATTERNS} == set(SCOPES)
    model = nn.Sequential(
        nn.Conv2d(8, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    glorot_normal(model, seed=0)
    stats = statistics(model=model, channels=8)
    random_scores = {n: torch.rand(w.shape, generator=make_generator(1, n)) for n, w in stats.weights.items()}
    stats = replace(stats, masks=parse_scope(PATTERNS[pattern]).select(random_scores, 0.75))
    masks = SCOPES[pattern].select(criterion(stats), 0.5, within=stats.masks, seed=1)
    assert are_nested(masks, stats.masks)
    assert [int(mask.sum()) for mask in masks.values()] == [32, 64, 32]


@each_name
@pytest.mark.parametrize("statistic", ["weights", "initial", "hessian_diagonal", "gradients"])
def test_nan_is_an_error_wherever_a_criterion_uses_it(name, statistic):
    """Neither a rank, nor a sign, nor a mask of the scores may hide it."""
    stats, score = statistics(), CRITERIA[name]
    tensors = {n: tensor.clone() for n, tensor in getattr(stats, statistic).items()}
    tensors["4.weight"][tuple(stats.masks["4.weight"].nonzero()[0])] = torch.nan
    uses_weights = name not in {"large_init", "small_init", "random", "gradient"}
    is_used = uses_weights if statistic == "weights" else statistic in score.requires
    with pytest.raises(NonFiniteError) if is_used else nullcontext():
        Layer().select(score(replace(stats, **{statistic: tensors})), 0.2, within=stats.masks)


BEFORE, AFTER = [1.0, -2.0, 0.5, -0.5, 0.0, 4.0], [-3.0, -1.0, 2.0, 0.0, 1.0, 4.0]
BY_HAND = {
    "magnitude": [3, 1, 2, 0, 1, 4],
    "large_final": [3, 1, 2, 0, 1, 4],
    "small_final": [-3, -1, -2, 0, -1, -4],
    "large_init": [1, 2, 0.5, 0.5, 0, 4],
    "small_init": [-1, -2, -0.5, -0.5, 0, -4],
    "magnitude_increase": [2, -1, 1.5, -0.5, 1, 0],
    "movement": [4, 1, 1.5, 0.5, 1, 0],
    "large_final_same_sign": [0, 1, 2, 0, 0, 4],
    "large_final_diff_sign": [3, 0, 0, 0, 1, 0],
    "magnitude_increase_same_sign": [0, -1, 1.5, 0, 0, 0],
    "magnitude_increase_diff_sign": [2, 0, 0, -0.5, 1, 0],
    # ranks by |w_i| 4 5 2 2 1 6, by |w_f| 5 2 4 1 2 6, of six
    "large_init_large_final": [4 / 6, 2 / 6, 2 / 6, 1 / 6, 1 / 6, 6 / 6],
    # ranks by -|w_i| 3 2 4 4 6 1, by -|w_f| 2 4 3 6 4 1, of six
    "small_init_small_final": [2 / 6, 2 / 6, 3 / 6, 4 / 6, 4 / 6, 1 / 6],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_equal_values_computed_by_hand(name):
    weights, initial = ({"a": torch.tensor([values])} for values in (AFTER, BEFORE))
    assert CRITERIA[name](Statistics(weights, initial=initial))["a"].tolist() == [BY_HAND[name]]


def test_every_criterion_has_a_test_of_its_mathematics():
    others = {"random", "scaled_magnitude", "obd", "snip", "gradient", "grasp", "synflow", "wanda"}
    assert set(BY_HAND) | others == set(CRITERIA)


def test_random_depends_on_its_seed():
    first, other = (CRITERIA["random"](statistics(seed)) for seed in (0, 1))
    assert not torch.equal(first["4.weight"], other["4.weight"])


def test_obd_of_small_float16_weights_is_not_zero():
    weights = {"w": torch.tensor([1e-4, 2e-4], dtype=torch.float16)}  # their squares are zero in float16
    scores = CRITERIA["obd"](Statistics(weights, hessian_diagonal={"w": torch.ones(2)}))["w"]
    torch.testing.assert_close(scores, torch.tensor([0.5e-8, 2e-8]), rtol=1e-2, atol=0)


def test_obd_is_half_the_hessian_diagonal_times_the_squared_weight():
    diagonal = {"a": torch.tensor([[0.0, 1.0, -4.0, 3.0]])}
    scores = CRITERIA["obd"](
        Statistics({"a": torch.tensor([[5.0, -2.0, 1.0, 0.0]])}, hessian_diagonal=diagonal)
    )
    assert scores["a"].tolist() == [[0, 2, -2, 0]]


def test_scaled_magnitude_selects_what_hans_threshold_keeps():
    weights = statistics().weights
    scores = CRITERIA["scaled_magnitude"](Statistics(weights))
    densities = densities_from_threshold(weights, 0.8)
    num_kept = sum(density * weights[name].numel() for name, density in densities.items())
    masks = Global().select(scores, num_kept / sum(weight.numel() for weight in weights.values()))
    for name, weight in weights.items():
        assert torch.equal(masks[name], weight.abs() > 0.8 * weight.std(correction=0))


def bisected(first: Tensor, other: Tensor, remaining: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Zhou et al.'s rule: the fewest >= `wanted`, and the most below, that pass one share of both orders."""

    def passing(share: float) -> Tensor:
        lines = [
            float(np.quantile(values[remaining].numpy(), share, method="higher")) for values in (first, other)
        ]
        return remaining & (first >= lines[0]) & (other >= lines[1])

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passing(middle).sum() >= count else (low, middle)
    return passing(low), passing(high)


@pytest.mark.parametrize("earlier", [False, True], ids=["first round", "later round"])
@pytest.mark.parametrize(
    ("name", "sign"), [("large_init_large_final", 1), ("small_init_small_final", -1)], ids=["large", "small"]
)
def test_lower_rank_orders_weights_as_the_published_bisection(name, sign, earlier):
    draw = make_generator(0, "bisection")
    start, end = (torch.randn(6, 15, generator=draw, dtype=torch.float64) for _ in range(2))
    remaining = torch.rand(6, 15, generator=draw) < (0.6 if earlier else 2)
    masks: MaskDict = {"a": remaining}
    scores = CRITERIA[name](Statistics({"a": end}, initial={"a": start}, masks=masks if earlier else None))
    for count in range(1, int(remaining.sum())):
        outer, inner = bisected(sign * start.abs(), sign * end.abs(), remaining, count)
        exact = Layer().select(scores, count / 90, within=masks)["a"]
        assert are_nested({"a": inner & remaining}, {"a": exact})
        assert are_nested({"a": exact}, {"a": outer})
        assert int(outer.sum()) - count in (0, 1)
        assert torch.equal(Layer().select(scores, int(outer.sum()) / 90, within=masks)["a"], outer)


@pytest.mark.parametrize("name", ["large_init_large_final", "small_init_small_final"])
def test_ranks_do_not_depend_on_pruned_weights(name):
    stats = statistics()
    masks = stats.masks
    changed = [
        {n: torch.where(masks[n], w.detach(), 1e6 * w.detach()) for n, w in tensors.items()}
        for tensors in (stats.weights, stats.initial)
    ]
    scores, same = (
        CRITERIA[name](stats),
        CRITERIA[name](replace(stats, weights=changed[0], initial=changed[1])),
    )
    for n, mask in masks.items():
        assert torch.equal(scores[n], same[n])
        assert not scores[n][~mask].any()
        assert scores[n][mask].min() == 1 / int(mask.sum())


def test_ranks_are_zero_when_all_weights_are_pruned():
    stats = statistics()
    empty = {n: torch.zeros_like(mask) for n, mask in stats.masks.items()}
    scores = CRITERIA["large_init_large_final"](replace(stats, masks=empty))
    assert not any(score.any() for score in scores.values())
