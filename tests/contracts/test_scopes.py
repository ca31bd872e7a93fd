"""Laws of every scope: exact counts, seeded ties, nesting, order invariance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import DensityError, EmptiedLayerWarning, NotFiniteError
from prunus.nouns import Scores, density_of
from prunus.pruning.masks import are_nested, count, top_k
from prunus.pruning.scopes import SCOPES, layer, threshold
from prunus.seeds import generator

each_scope = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)


def scores(seed: int = 0, levels: int | None = None) -> Scores:
    """Three tensors; with `levels`, so few different scores that most are tied."""
    draw = generator(seed, "scores")
    shapes = {"a": (7, 11), "b": (4, 3, 2, 2), "c": (20,)}
    result = {name: torch.rand(shape, generator=draw) + 0.1 for name, shape in shapes.items()}
    return {n: torch.ceil(s * levels) for n, s in result.items()} if levels else result


def kept(masks: dict[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@each_scope
@pytest.mark.parametrize("levels", [None, 1, 3], ids=["distinct", "all-equal", "tied"])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.77, 1.0])
def test_the_count_is_exact(scope, density, levels):
    given_scores = scores(levels=levels)
    masks = scope(given_scores, density)
    if scope is layer:
        assert [int(m.sum()) for m in masks.values()] == [
            count(density, s.numel()) for s in given_scores.values()
        ]
    else:
        assert kept(masks) == count(density, 77 + 48 + 20)


@each_scope
def test_everything_kept_scores_at_least_what_is_pruned(scope):
    given_scores = scores(levels=4)
    masks = scope(given_scores, 0.6)
    groups = [[n] for n in given_scores] if scope is layer else [list(given_scores)]
    for group in groups:
        inside = torch.cat([given_scores[n][masks[n]] for n in group])
        outside = torch.cat([given_scores[n][~masks[n]] for n in group])
        assert not len(outside) or inside.min() >= outside.max()


@each_scope
def test_ties_are_drawn_by_the_seed_and_by_nothing_else(scope):
    tied = scores(levels=1)
    first, again, other = scope(tied, 0.5, seed=1), scope(tied, 0.5, seed=1), scope(tied, 0.5, seed=2)
    assert all(torch.equal(first[n], again[n]) for n in tied)
    assert any(not torch.equal(first[n], other[n]) for n in tied)


@each_scope
@given(seed=st.integers(0, 10_000))
def test_masks_are_nested_in_those_before(scope, seed):
    outer = scope(scores(seed), 0.8, seed=seed)
    inner = scope(scores(seed + 1), 0.5, within=outer, seed=seed)
    assert are_nested(inner, outer)


@each_scope
def test_a_monotone_change_of_the_scores_changes_nothing(scope):
    before = scores(3)
    after = {name: torch.exp(3 * score) for name, score in before.items()}
    masks = scope(before, 0.6), scope(after, 0.6)
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in before)


@each_scope
@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, 2, math.nan])
def test_a_density_out_of_range_is_refused(scope, density):
    with pytest.raises(DensityError, match="above 0 and at most 1"):
        scope(scores(), density)


@each_scope
def test_pruned_weights_do_not_come_back(scope):
    outer = scope(scores(), 0.5)
    with pytest.raises(DensityError, match="does not come back"):
        scope(scores(), 0.9, within=outer)


@each_scope
def test_nan_is_named(scope):
    bad = scores()
    bad["b"][0, 0, 0, 0], bad["b"][1, 0, 0, 0] = math.nan, math.inf
    with pytest.raises(NotFiniteError, match="'b' holds 2 of 48"):
        scope(bad, 0.5)


def test_a_density_a_layer_names_every_layer():
    with pytest.raises(DensityError, match="'c'"):
        layer(scores(), {"a": 0.5, "b": 0.5})


def test_an_emptied_layer_is_named():
    with pytest.warns(EmptiedLayerWarning, match="'b'"):
        assert not layer({"a": torch.ones(100), "b": torch.ones(1)}, 0.1)["b"].any()


def test_an_empty_layer_stays_empty():
    masks = layer({"a": torch.zeros(0, 3), "b": torch.ones(2)}, 0.5)
    assert masks["a"].shape == (0, 3)


def test_top_k_agrees_with_a_stable_sort():
    values = torch.rand(1000, generator=generator(0, "x"))
    for k in (0, 1, 17, 999, 1000):
        expected = torch.zeros(1000, dtype=torch.bool)
        expected[values.argsort(descending=True)[:k]] = True
        assert torch.equal(top_k(values, k, generator(0)), expected)


def test_threshold_means_the_weights_beyond_a_multiple_of_the_deviation():
    weights = {"a": torch.randn(50, 40, generator=generator(0, "w"))}
    masks = layer({"a": weights["a"].abs()}, threshold(weights, 0.7))
    assert torch.equal(masks["a"], weights["a"].abs() > 0.7 * weights["a"].std(correction=0))
    assert density_of(masks) == threshold(weights, 0.7)["a"]


@pytest.mark.parametrize("quality", [-1.0, 100.0])
def test_a_quality_that_makes_no_sense_is_refused(quality):
    with pytest.raises(DensityError):
        threshold({"a": torch.randn(10, generator=generator(0))}, quality)
