"""Laws of every scope: exact counts, whole holes, seeded ties, nesting, order invariance; patterns and their names."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import DensityError, EmptyLayerWarning, NonFiniteError, UnknownNameError
from prunus.masks import are_nested, mask_density
from prunus.pruning.masks import num_to_keep, top_k
from prunus.pruning.schedules import cubic, iterative, one_shot
from prunus.pruning.scopes import (
    SCOPES,
    block,
    check_densities_reachable,
    densities_from_threshold,
    get_scope,
    layer,
    n_m,
    weights_per_block,
)
from prunus.seeds import make_generator
from prunus.types import MaskDict, Scores

Index = tuple[int, ...]
Key = Callable[[str, Index], Hashable]


def tile(rows: int, columns: int) -> Key:
    """Which rows × columns of the layer's matrix a weight lies in: outputs, inputs, and one place of the kernel."""

    def key(name: str, index: Index) -> Hashable:
        o, i, *place = index if len(index) > 1 else (0, *index)
        return name, o // rows, i // columns, *place

    return key


def own(name: str, index: Index) -> Hashable:
    return name, index


def its_tensor(name: str, index: Index) -> Hashable:
    return name


@dataclass(frozen=True)
class Law:
    """What a scope promises: what is ranked together (a pool), what goes together (a hole)."""

    pool: Key
    hole: Key
    densities: tuple[float, ...] = (0.3, 0.5, 0.77, 1.0)
    wide: tuple[str, float] | None = ("", 0.8)
    """A scope and a density whose masks have more left than the middle density; "": the same scope."""
    narrow: tuple[str, float] = ("", 0.3)
    """One whose masks have less left."""

    @property
    def middle(self) -> float:
        return self.densities[len(self.densities) // 3]


LAWS = {
    "layer": Law(its_tensor, own),
    "global": Law(lambda name, index: None, own),
    "2:4": Law(tile(1, 4), own, (0.5,), ("3:4", 0.75), ("1:4", 0.25)),
    "4:8": Law(tile(1, 8), own, (0.5,), ("6:8", 0.75), ("1:4", 0.25)),
    "1x4": Law(its_tensor, tile(1, 4)),
    "1:3": Law(tile(1, 3), own, (1 / 3,), ("2:3", 2 / 3), ("1:6", 1 / 6)),
    "3:4": Law(tile(1, 4), own, (0.75,), ("1x4", 1.0), ("1:2", 0.5)),
    "4x3": Law(its_tensor, tile(4, 3)),
    "2x1": Law(its_tensor, tile(2, 1)),
}
each_scope = pytest.mark.parametrize("name", LAWS)


def test_every_scope_has_its_law():
    assert set(SCOPES) <= set(LAWS)


def scores(name: str, seed: int = 0, levels: int | None = None) -> Scores:
    """Three tensors; with `levels`, so few different scores that most are tied."""
    draw = make_generator(seed, "scores")
    shapes = {"a": (8, 24), "b": (4, 24, 2, 1), "c": (24,)}
    if name in {"4x3", "2x1"}:
        del shapes["c"]  # one row
    result = {name: torch.rand(shape, generator=draw) + 0.1 for name, shape in shapes.items()}
    return {n: torch.ceil(s * levels) for n, s in result.items()} if levels else result


def masks_from(name: str, pair: tuple[str, float], seed: int = 0) -> MaskDict:
    return get_scope(pair[0] or name)(scores(name, seed), pair[1], seed=seed)


def pools(name: str, given_scores: Scores, masks: MaskDict) -> Iterator[list[tuple[float, set[bool]]]]:
    """For each pool its holes: their scores, and whether they are kept; weight by weight, by hand."""
    found: dict[Hashable, dict[Hashable, tuple[list[float], set[bool]]]] = defaultdict(dict)
    for n, score in given_scores.items():
        for index in product(*map(range, score.shape)):
            holes = found[LAWS[name].pool(n, index)]
            values, kept = holes.setdefault(LAWS[name].hole(n, index), ([], set()))
            values.append(float(score[index]))
            kept.add(bool(masks[n][index]))
    for holes in found.values():
        yield [(math.fsum(values), kept) for values, kept in holes.values()]


@pytest.mark.parametrize("levels", [None, 1, 3], ids=["distinct", "all-equal", "tied"])
@pytest.mark.parametrize(
    ("name", "density"), [(name, density) for name, law in LAWS.items() for density in law.densities]
)
def test_every_pool_keeps_exactly_its_count_and_the_best(name, density, levels):
    given_scores = scores(name, levels=levels)
    masks = get_scope(name)(given_scores, density)
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in given_scores.items()}
    for holes in pools(name, given_scores, masks):
        assert all(len(kept) == 1 for _, kept in holes), "a hole is whole"
        inside = [score for score, kept in holes if kept == {True}]
        outside = [score for score, kept in holes if kept == {False}]
        assert len(inside) == num_to_keep(density, len(holes))
        assert not outside or min(inside) >= max(outside) - 1e-9


@each_scope
def test_ties_are_drawn_by_the_seed_and_by_nothing_else(name):
    tied, scope, density = scores(name, levels=1), get_scope(name), LAWS[name].middle
    first, again, other = (scope(tied, density, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in tied)
    assert any(not torch.equal(first[n], other[n]) for n in tied)


@each_scope
def test_two_layers_of_one_shape_draw_their_ties_apart(name):
    tied = {n: torch.ones(8, 24) for n in ("a", "b")}
    masks = get_scope(name)(tied, LAWS[name].middle)
    assert not torch.equal(masks["a"], masks["b"])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4)])
def test_tied_weights_of_a_group_are_kept_equally_often(n, m):
    """All C(M, N) choices; what would prefer one is seen at six deviations."""
    groups = 6000
    masks = n_m(n, m)({"a": torch.zeros(groups, m)}, n / m)
    seen = Counter(map(tuple, masks["a"].tolist()))
    ways = math.comb(m, n)
    assert len(seen) == ways
    deviation = math.sqrt(groups / ways * (1 - 1 / ways))
    assert all(abs(times - groups / ways) < 6 * deviation for times in seen.values())


@each_scope
@given(seed=st.integers(0, 10_000))
def test_masks_are_nested_in_those_before(name, seed):
    outer = masks_from(name, LAWS[name].wide, seed)
    inner = get_scope(name)(scores(name, seed + 1), LAWS[name].middle, within=outer, seed=seed)
    assert are_nested(inner, outer)
    assert mask_density(inner) == pytest.approx(LAWS[name].middle, abs=0.05)


@each_scope
def test_a_monotone_change_of_the_scores_changes_nothing(name):
    """Of a score that stands alone; where scores are added, only a factor."""
    alone = LAWS[name].hole is own
    before = scores(name, 3)
    after = {n: torch.exp(3 * score) if alone else 8 * score for n, score in before.items()}
    masks = (get_scope(name)(given_scores, LAWS[name].middle) for given_scores in (before, after))
    first, second = masks
    assert all(torch.equal(first[n], second[n]) for n in before)


@each_scope
def test_what_is_given_is_left_alone(name):
    given_scores, within = scores(name), masks_from(name, LAWS[name].wide)
    copies = [{n: t.clone() for n, t in tensors.items()} for tensors in (given_scores, within)]
    get_scope(name)(given_scores, LAWS[name].middle, within=within)
    for before, after in zip(copies, (given_scores, within), strict=True):
        assert all(torch.equal(before[n], after[n]) for n in before)


@each_scope
def test_scores_below_zero_are_above_what_is_pruned(name):
    low = {n: score - 1000 for n, score in scores(name, 5).items()}
    outer = masks_from(name, LAWS[name].wide)
    inner = get_scope(name)(low, LAWS[name].middle, within=outer)
    assert are_nested(inner, outer)


@each_scope
@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, 2, math.nan])
def test_a_density_out_of_range_is_refused(name, density):
    with pytest.raises(DensityError, match="above 0 and at most 1"):
        get_scope(name)(scores(name), density)


@each_scope
def test_pruned_weights_do_not_come_back(name):
    outer = masks_from(name, LAWS[name].narrow)
    with pytest.raises(DensityError, match="does not come back"):
        get_scope(name)(scores(name), LAWS[name].middle, within=outer)


@each_scope
def test_nan_is_named(name):
    bad = scores(name)
    bad["b"][0, 0, 0, 0], bad["b"][1, 0, 0, 0] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match="'b' holds 2 of 192"):
        get_scope(name)(bad, LAWS[name].middle)


@each_scope
def test_an_empty_layer_stays_empty(name):
    masks = get_scope(name)(
        {"a": torch.zeros(0, 24), "b": torch.ones(4, 24), "d": torch.zeros(4, 0)}, LAWS[name].middle
    )
    assert (masks["a"].shape, masks["d"].shape) == ((0, 24), (4, 0))
    assert masks["b"].any()


def test_a_density_a_layer_names_every_layer():
    for scope in (layer, n_m(2, 4), block(1, 4)):
        with pytest.raises(DensityError, match="'c'"):
            scope(scores("layer"), {"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("scope", [layer, block(1, 4)])
def test_an_emptied_layer_is_named(scope):
    with pytest.warns(EmptyLayerWarning, match="'b'"):
        assert not scope({"a": torch.ones(100), "b": torch.ones(4)}, 0.1)["b"].any()


def test_channels_at_one_place_of_a_kernel_stand_together():
    """One output, four channels, a kernel of two places: [1, 4, 1, 2], written channel by channel."""
    score = torch.tensor([[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]]).reshape(1, 4, 1, 2)
    assert n_m(2, 4)({"w": score}, 0.5)["w"].reshape(4, 2).tolist() == [
        [False, True],
        [False, True],
        [True, False],
        [True, False],
    ]
    assert block(1, 2)({"w": score}, 0.5)["w"].reshape(4, 2).tolist() == [
        [False, True],  # 8 + 7
        [False, True],
        [False, True],  # 6 + 5
        [False, True],
    ]


def test_blocks_of_one_are_the_scope_layer():
    given_scores = {"a": scores("layer", 4)["a"], "tied": torch.ones(8, 24)}
    for within in (None, layer(scores("layer", 1), 0.8)):
        kept = within and {"a": within["a"], "tied": within["a"]}
        one, other = (scope(given_scores, 0.4, within=kept, seed=7) for scope in (block(1, 1), layer))
        assert all(torch.equal(one[n], other[n]) for n in one)


def test_sums_that_single_precision_cannot_hold_are_told_apart():
    large = torch.finfo(torch.float32).max
    masks = block(1, 2)({"w": torch.tensor([[large, large / 2, large, large]])}, 0.5)
    assert masks["w"].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("pattern", "density"), [("2:4", 0.3), ("2:4", 1.0), ("2:4", 0.5 + 1e-6), ("1:3", 0.3333)]
)
def test_a_pattern_says_which_density_it_gives(pattern, density):
    n, m = map(int, pattern.split(":"))
    with pytest.raises(DensityError, match=rf"'a', but {pattern} keeps exactly {n / m:g} "):
        get_scope(pattern)(scores(pattern), density)
    shares = {"a": n / m, "b": density, "c": n / m}
    with pytest.raises(DensityError, match=f"'b', but {pattern}"):
        get_scope(pattern)(scores(pattern), shares)


@pytest.mark.parametrize(
    ("pattern", "density"), [("2:4", 0.5 + 1e-10), ("1:3", 1 - 2 / 3), ("3:10", 1 - 0.7)]
)
def test_a_density_that_floats_miss_by_a_hair_is_given(pattern, density):
    masks = get_scope(pattern)({"a": torch.rand(4, 30 if m_of(pattern) != 4 else 8)}, density)
    assert mask_density(masks) == pytest.approx(density)


def m_of(pattern: str) -> int:
    return int(pattern.partition(":")[2])


@pytest.mark.parametrize("scope", [n_m(2, 4), block(1, 4)])
@pytest.mark.parametrize("shape", [(10, 6), (6, 3, 4, 4), (7,)], ids=str)
def test_inputs_that_are_no_multiple_are_named(scope, shape):
    """The second has 48 columns, and still no four channels."""
    with pytest.raises(DensityError, match=r"'odd', \[.*\], has \d.*exclude 'odd'"):
        scope({"even": torch.rand(4, 4), "odd": torch.rand(shape)}, 0.5)


def test_outputs_that_are_no_multiple_are_named():
    with pytest.raises(DensityError, match=r"4 outputs at a time .*'odd', \[6, 8\], has 6"):
        block(4, 1)({"odd": torch.rand(6, 8)}, 0.5)


@pytest.mark.parametrize("pattern", ["0:4", "4:4", "5:4", "1:1", "0:0", "0x4", "4x0"])
def test_a_pattern_that_makes_no_sense_is_refused(pattern):
    with pytest.raises(DensityError, match=pattern):
        get_scope(pattern)


def test_a_block_that_lost_a_part_is_refused():
    within = {"a": torch.ones(2, 8, dtype=torch.bool)}
    within["a"][0, :4] = False  # a whole block: it is gone
    masks = block(1, 4)({"a": torch.ones(2, 8)}, 0.5, within=within)
    assert not masks["a"][0, :4].any()
    within["a"][1, 0] = False
    with pytest.raises(DensityError, match=r"1 blocks of 1x4 of 'a' have lost some"):
        block(1, 4)({"a": torch.ones(2, 8)}, 0.5, within=within)


@pytest.mark.parametrize("name", SCOPES)
def test_a_name_in_the_table_is_that_scope(name):
    assert get_scope(name) is SCOPES[name]


@pytest.mark.parametrize("name", ["lyer", "2-4", "2:4:8", "4x", "x4", "-1:4", "1x4x4", "2 : 4", ""])
def test_a_name_that_is_none_is_told_the_patterns(name):
    with pytest.raises(
        UnknownNameError, match=r"Unknown scope .*N:M, as 1:4, and blocks ROWSxCOLUMNS, as 4x4"
    ):
        get_scope(name)


def test_how_much_goes_at_once():
    assert [weights_per_block(name) for name in ("layer", "global", "2:4", "1x4", "3x5")] == [1, 1, 1, 4, 15]


@pytest.mark.parametrize("schedule", [iterative, cubic])
def test_a_rehearsal_finds_the_density_that_cannot_be_given(schedule):
    weights = {"a": torch.full((4, 8), math.nan)}  # values are not looked at
    check_densities_reachable(n_m(2, 4), weights, one_shot(0.5, 3))
    check_densities_reachable(layer, weights, schedule(0.5, 3))
    with pytest.raises(DensityError, match=r"2:4 keeps exactly 0\.5"):
        check_densities_reachable(n_m(2, 4), weights, schedule(0.5, 3))


def test_a_rehearsal_passes_the_masks_on_and_warns_of_nothing():
    weights = {"a": torch.ones(4, 8), "b": torch.ones(1, 8)}
    check_densities_reachable(block(1, 8), weights, [0.8, 0.4])  # nothing of b is left
    with pytest.raises(DensityError, match="does not come back"):
        check_densities_reachable(layer, weights, [0.4, 0.8])
    with pytest.raises(DensityError, match="does not come back"):
        check_densities_reachable(layer, weights, [0.5], within=layer(weights, 0.25))


def test_top_k_agrees_with_a_stable_sort():
    values = torch.rand(1000, generator=make_generator(0, "x"))
    for k in (0, 1, 17, 999, 1000):
        expected = torch.zeros(1000, dtype=torch.bool)
        expected[values.argsort(descending=True)[:k]] = True
        assert torch.equal(top_k(values, k, make_generator(0)), expected)


def test_threshold_means_the_weights_beyond_a_multiple_of_the_deviation():
    weights = {"a": torch.randn(50, 40, generator=make_generator(0, "w"))}
    masks = layer({"a": weights["a"].abs()}, densities_from_threshold(weights, 0.7))
    assert torch.equal(masks["a"], weights["a"].abs() > 0.7 * weights["a"].std(correction=0))
    assert mask_density(masks) == densities_from_threshold(weights, 0.7)["a"]


@pytest.mark.parametrize("quality", [-1.0, 100.0])
def test_a_quality_that_makes_no_sense_is_refused(quality):
    with pytest.raises(DensityError):
        densities_from_threshold({"a": torch.randn(10, generator=make_generator(0))}, quality)
