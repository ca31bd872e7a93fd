"""Laws of every criterion: shapes, determinism, purity, what must be given; and the mathematics of each by hand.

Those that ask a probe have their mathematics in test_probe.py; curvature comes from test_second_order.py.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import NonFiniteError, StatisticsError
from prunus.masks import are_nested
from prunus.models.initialization import glorot_normal
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.masks import num_to_keep
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, densities_from_threshold, get_scope, global_, layer
from prunus.pruning.scoring_batch import make_scoring_batch
from prunus.seeds import make_generator
from prunus.types import MaskDict, Statistics

PROBED = {"snip", "gradient", "grasp", "synflow"}
"""Ask the network, so that every layer's scores depend on the other layers."""
FINAL_ONLY = {"magnitude", "large_final", "small_final", "scaled_magnitude", "random", "obd"}
"""Need no initial weights."""

each_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
each_name = pytest.mark.parametrize("name", CRITERIA)
each_scope = pytest.mark.parametrize("scope", [layer, global_])
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


def evidence(seed: int = 0, model: nn.Module | None = None, channels: int = 2) -> Statistics:
    """Everything a criterion may look at: parameters as weights, initial ones, masks of a half, a probe."""
    model, draw = model or network(), make_generator(0, "evidence")
    weights = prunable_weights(model)
    noise = {name: torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}
    initial = {name: weight.detach() + 0.5 * noise[name] for name, weight in weights.items()}
    masks = {name: torch.rand(weight.shape, generator=draw) < 0.5 for name, weight in weights.items()}
    inputs = torch.randn(7, channels, 3, 3, generator=draw)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    curvature = {name: torch.rand(weight.shape, generator=draw) for name, weight in weights.items()}
    return Statistics(weights, seed, initial, masks, make_scoring_batch(model, inputs, labels), curvature)


def every_tensor(given: Statistics) -> Iterator[Tensor]:
    assert given.initial is not None
    assert given.masks is not None
    assert given.probe is not None
    assert given.curvature is not None
    for tensors in (given.weights, given.initial, given.masks, given.curvature):
        yield from tensors.values()
    yield from (given.probe.inputs, given.probe.labels)


@each_criterion
def test_a_score_a_weight_the_same_every_time_and_nothing_mutated(criterion):
    model = network()
    given = evidence(model=model)
    before = [tensor.detach().clone() for tensor in every_tensor(given)]
    state, drawn = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    first, again = criterion(given), criterion(given)
    assert list(first) == list(given.weights)
    for name, weight in given.weights.items():
        assert first[name].shape == weight.shape
        assert torch.equal(first[name], again[name])
        assert not first[name].requires_grad
        assert first[name].isfinite().all()
        assert first[name].data_ptr() not in {weight.data_ptr(), given.initial[name].data_ptr()}
    assert all(torch.equal(was, now) for was, now in zip(before, every_tensor(given), strict=True))
    assert all(torch.equal(was, model.state_dict()[name]) for name, was in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(drawn, torch.get_rng_state())


@each_criterion
def test_a_caller_without_gradients_gets_the_same(criterion):
    given = evidence()
    with torch.no_grad():
        quiet = criterion(given)
    assert all(torch.equal(score, quiet[name]) for name, score in criterion(given).items())


@each_name
def test_a_tensor_is_scored_alone_unless_the_network_is_asked(name):
    """Whatever the other layers are, or whether they are there; a probed criterion must see them instead."""
    given, last = evidence(), "6.weight"
    scores = CRITERIA[name](given)[last]
    others = {n: w if n == last else 2 * w for n, w in given.initial.items()}
    scaled = {n: w if n == last else 2 * w.detach() for n, w in given.weights.items()}
    changed = CRITERIA[name](replace(given, weights=scaled, initial=others))[last]
    assert torch.equal(changed, scores) == (name not in PROBED)
    if name not in PROBED:
        parts = (given.weights, given.initial, given.masks, given.curvature)
        only = [{last: tensors[last]} for tensors in parts]
        alone = CRITERIA[name](Statistics(only[0], given.seed, only[1], only[2], curvature=only[3]))
        assert torch.equal(alone[last], scores)


@each_name
def test_what_is_needed_and_not_given_is_named(name):
    def wants(given: Statistics) -> str:
        try:
            CRITERIA[name](given)
        except StatisticsError as error:
            return str(error) if repr(name) in str(error) else "somebody"
        return ""

    given = evidence()
    assert ("pass them as Statistics(weights, initial=...)" in wants(replace(given, initial=None))) == (
        name not in FINAL_ONLY
    )
    assert ("probe=prunus.pruning.scoring_batch.probe(model" in wants(replace(given, probe=None))) == (
        name in PROBED
    )
    assert ("curvature=prunus" in wants(replace(given, curvature=None))) == (name == "obd")
    assert not wants(replace(given, masks=None))
    short = {n: w for n, w in given.initial.items() if n != "0.weight"}
    assert ("{'0.weight': None}" in wants(replace(given, initial=short))) == (name not in FINAL_ONLY)
    turned = {n: w.mT if n == "6.weight" else w for n, w in given.initial.items()}
    assert ("{'6.weight': (4, 5)}" in wants(replace(given, initial=turned))) == (name not in FINAL_ONLY)
    odd = {n: h.mT if n == "6.weight" else h for n, h in given.curvature.items()}
    assert ("{'6.weight': (4, 5)}" in wants(replace(given, curvature=odd))) == (name == "obd")
    derived = {"snip", "gradient", "grasp", "synflow", "obd"}
    masked = name in {"large_init_large_final", "small_init_small_final"} | derived
    assert ("masks" in wants(replace(given, masks={}))) == masked


@each_scope
@each_criterion
@pytest.mark.parametrize("density", [0.2, 0.3, 0.4])
def test_pruned_places_never_count(criterion, scope, density):
    given = evidence()
    masks = scope(criterion(given), density, within=given.masks, seed=1)
    assert are_nested(masks, given.masks)
    groups = [[n] for n in masks] if scope is layer else [list(masks)]
    for group in groups:
        kept = sum(int(masks[n].sum()) for n in group)
        assert kept == num_to_keep(density, sum(masks[n].numel() for n in group))


@each_criterion
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruned_places_never_count_in_a_pattern(criterion, pattern):
    assert {"layer", "global", *PATTERNS} == set(SCOPES)
    model = nn.Sequential(
        nn.Conv2d(8, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    glorot_normal(model, seed=0)
    given = evidence(model=model, channels=8)
    drawn = {n: torch.rand(w.shape, generator=make_generator(1, n)) for n, w in given.weights.items()}
    given = replace(given, masks=get_scope(PATTERNS[pattern])(drawn, 0.75))
    masks = SCOPES[pattern](criterion(given), 0.5, within=given.masks, seed=1)
    assert are_nested(masks, given.masks)
    assert [int(mask.sum()) for mask in masks.values()] == [32, 64, 32]


@each_name
@pytest.mark.parametrize("spoilt", ["weights", "initial", "curvature"])
def test_a_nan_never_passes_in_silence(name, spoilt):
    """Neither a rank, nor a sign, nor a mask of the scores may hide one."""
    given = evidence()
    tensors = {n: tensor.detach().clone() for n, tensor in getattr(given, spoilt).items()}
    tensors["4.weight"][tuple(given.masks["4.weight"].nonzero()[0])] = torch.nan
    bad = replace(given, **{spoilt: tensors})
    looked_at = {
        "weights": name not in PROBED | {"large_init", "small_init", "random"},
        "initial": name not in FINAL_ONLY,
        "curvature": name == "obd",
    }[spoilt]
    with pytest.raises(NonFiniteError) if looked_at else nullcontext():
        layer(CRITERIA[name](bad), 0.2, within=given.masks)


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
def test_by_hand(name):
    weights, initial = ({"a": torch.tensor([values])} for values in (AFTER, BEFORE))
    assert CRITERIA[name](Statistics(weights, initial=initial))["a"].tolist() == [BY_HAND[name]]


def test_every_criterion_has_its_mathematics():
    assert set(BY_HAND) | PROBED | {"random", "scaled_magnitude", "obd"} == set(CRITERIA)


def test_random_depends_on_its_seed():
    one, other = (CRITERIA["random"](evidence(seed)) for seed in (0, 1))
    assert not torch.equal(one["4.weight"], other["4.weight"])


def test_obd_is_half_the_curvature_times_the_square():
    curvature = {"a": torch.tensor([[0.0, 1.0, -4.0, 3.0]])}
    scores = CRITERIA["obd"](Statistics({"a": torch.tensor([[5.0, -2.0, 1.0, 0.0]])}, curvature=curvature))
    assert scores["a"].tolist() == [[0, 2, -2, 0]]


def test_scaled_magnitude_is_hans_threshold():
    weights = evidence().weights
    scores = CRITERIA["scaled_magnitude"](Statistics(weights))
    densities = densities_from_threshold(weights, 0.8)
    kept = sum(density * weights[name].numel() for name, density in densities.items())
    masks = global_(scores, kept / sum(weight.numel() for weight in weights.values()))
    for name, weight in weights.items():
        assert torch.equal(masks[name], weight.abs() > 0.8 * weight.std(correction=0))


def bisected(one: Tensor, other: Tensor, left: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Zhou et al.'s rule: the fewest >= `wanted`, and the most below, that pass one share of both orders."""

    def passing(share: float) -> Tensor:
        lines = [float(np.quantile(values[left].numpy(), share, method="higher")) for values in (one, other)]
        return left & (one >= lines[0]) & (other >= lines[1])

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passing(middle).sum() >= wanted else (low, middle)
    return passing(low), passing(high)


@pytest.mark.parametrize("earlier", [False, True], ids=["first round", "later round"])
@pytest.mark.parametrize(
    ("name", "sign"), [("large_init_large_final", 1), ("small_init_small_final", -1)], ids=["large", "small"]
)
def test_the_lower_rank_is_the_published_bisection(name, sign, earlier):
    draw = make_generator(0, "bisection")
    start, end = (torch.randn(6, 15, generator=draw, dtype=torch.float64) for _ in range(2))
    left = torch.rand(6, 15, generator=draw) < (0.6 if earlier else 2)
    masks: MaskDict = {"a": left}
    scores = CRITERIA[name](Statistics({"a": end}, initial={"a": start}, masks=masks if earlier else None))
    for wanted in range(1, int(left.sum())):
        outer, inner = bisected(sign * start.abs(), sign * end.abs(), left, wanted)
        exact = layer(scores, wanted / 90, within=masks)["a"]
        assert are_nested({"a": inner & left}, {"a": exact})
        assert are_nested({"a": exact}, {"a": outer})
        assert int(outer.sum()) - wanted in (0, 1)
        assert torch.equal(layer(scores, int(outer.sum()) / 90, within=masks)["a"], outer)


@pytest.mark.parametrize("name", ["large_init_large_final", "small_init_small_final"])
def test_pruned_weights_have_no_say_in_the_ranks(name):
    given = evidence()
    masks = given.masks
    wild = [
        {n: torch.where(masks[n], w.detach(), 1e6 * w.detach()) for n, w in tensors.items()}
        for tensors in (given.weights, given.initial)
    ]
    scores, same = CRITERIA[name](given), CRITERIA[name](replace(given, weights=wild[0], initial=wild[1]))
    for n, mask in masks.items():
        assert torch.equal(scores[n], same[n])
        assert not scores[n][~mask].any()
        assert scores[n][mask].min() == 1 / int(mask.sum())


def test_where_nothing_is_left_there_is_nothing_to_rank():
    given = evidence()
    empty = {n: torch.zeros_like(mask) for n, mask in given.masks.items()}
    scores = CRITERIA["large_init_large_final"](replace(given, masks=empty))
    assert not any(score.any() for score in scores.values())
