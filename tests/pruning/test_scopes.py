"""Properties of every scope: exact counts, whole blocks, seeded ties, nesting, order invariance; names and checks."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.errors import DensityError, EmptyLayerWarning, NonFiniteError, UnknownNameError
from prunus.masks import are_nested, mask_density
from prunus.pruning.density import densities_from_threshold, num_to_keep
from prunus.pruning.schedules import cubic, iterative, one_shot
from prunus.pruning.scopes import (
    SCOPES,
    Block,
    FunctionScope,
    Global,
    Layer,
    NByM,
    Scope,
    parse_scope,
    shapes_of,
)
from prunus.pruning.scopes.top_k import top_k
from prunus.seeds import make_generator
from prunus.types import MaskDict, Scores

Index = tuple[int, ...]
Key = Callable[[str, Index], Hashable]


def tile(rows: int, columns: int) -> Key:
    """The tile of rows × columns of the layer's matrix that a weight lies in: outputs, inputs, kernel position."""

    def key(name: str, index: Index) -> Hashable:
        o, i, *position = index if len(index) > 1 else (0, *index)
        return name, o // rows, i // columns, *position

    return key


def weight_key(name: str, index: Index) -> Hashable:
    return name, index


def tensor_key(name: str, index: Index) -> Hashable:
    return name


@dataclass(frozen=True)
class Expectation:
    """What is ranked together under a scope (a pool) and pruned together (a unit)."""

    pool: Key
    unit: Key
    densities: tuple[float, ...] = (0.3, 0.5, 0.77, 1.0)
    wider: tuple[str, float] | None = ("", 0.8)
    """A scope and a density whose masks keep more than the middle density; "": the same scope."""
    narrower: tuple[str, float] = ("", 0.3)
    """One whose masks keep less."""

    @property
    def middle(self) -> float:
        return self.densities[len(self.densities) // 3]


EXPECTED = {
    "layer": Expectation(tensor_key, weight_key),
    "global": Expectation(lambda name, index: None, weight_key),
    "2:4": Expectation(tile(1, 4), weight_key, (0.5,), ("3:4", 0.75), ("1:4", 0.25)),
    "4:8": Expectation(tile(1, 8), weight_key, (0.5,), ("6:8", 0.75), ("1:4", 0.25)),
    "1x4": Expectation(tensor_key, tile(1, 4)),
    "1:3": Expectation(tile(1, 3), weight_key, (1 / 3,), ("2:3", 2 / 3), ("1:6", 1 / 6)),
    "3:4": Expectation(tile(1, 4), weight_key, (0.75,), ("1x4", 1.0), ("1:2", 0.5)),
    "4x3": Expectation(tensor_key, tile(4, 3)),
    "2x1": Expectation(tensor_key, tile(2, 1)),
}
each_scope = pytest.mark.parametrize("name", EXPECTED)


def test_scopes_table_has_an_expectation_for_every_scope():
    assert set(SCOPES) <= set(EXPECTED)


def make_scores(name: str, seed: int = 0, levels: int | None = None) -> Scores:
    """Three tensors; with `levels`, so few different scores that most are tied."""
    generator = make_generator(seed, "scores")
    shapes = {"a": (8, 24), "b": (4, 24, 2, 1), "c": (24,)}
    if name in {"4x3", "2x1"}:
        del shapes["c"]  # one row
    scores = {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in shapes.items()}
    return {n: torch.ceil(s * levels) for n, s in scores.items()} if levels else scores


def masks_from(name: str, pair: tuple[str, float], seed: int = 0) -> MaskDict:
    return parse_scope(pair[0] or name).select(make_scores(name, seed), pair[1], seed=seed)


def pools(name: str, scores: Scores, masks: MaskDict) -> Iterator[list[tuple[float, set[bool]]]]:
    """For each pool its units: their scores, and whether they are kept; collected weight by weight."""
    by_pool: dict[Hashable, dict[Hashable, tuple[list[float], set[bool]]]] = defaultdict(dict)
    for n, score in scores.items():
        for index in product(*map(range, score.shape)):
            units = by_pool[EXPECTED[name].pool(n, index)]
            values, states = units.setdefault(EXPECTED[name].unit(n, index), ([], set()))
            values.append(float(score[index]))
            states.add(bool(masks[n][index]))
    for units in by_pool.values():
        yield [(math.fsum(values), states) for values, states in units.values()]


@pytest.mark.parametrize("levels", [None, 1, 3], ids=["distinct", "all-equal", "tied"])
@pytest.mark.parametrize(
    ("name", "density"), [(name, density) for name, e in EXPECTED.items() for density in e.densities]
)
def test_select_keeps_the_exact_number_of_highest_units_of_every_pool(name, density, levels):
    scores = make_scores(name, levels=levels)
    masks = parse_scope(name).select(scores, density)
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in scores.items()}
    for units in pools(name, scores, masks):
        assert all(len(states) == 1 for _, states in units), "a unit is kept or pruned as a whole"
        kept_scores = [score for score, states in units if states == {True}]
        pruned_scores = [score for score, states in units if states == {False}]
        assert len(kept_scores) == num_to_keep(density, len(units))
        assert not pruned_scores or min(kept_scores) >= max(pruned_scores) - 1e-9


@st.composite
def scopes_and_shapes(draw: st.DrawFn) -> tuple[Scope, dict[str, tuple[int, ...]]]:
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    scope = draw(
        st.sampled_from(
            [Layer(), Global(), Block(rows, columns), NByM(draw(st.integers(1, columns - 1)), columns)]
        )
    )
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
    shapes = {}
    for name, (outputs, inputs, kernel) in zip(
        "ab", draw(st.lists(sizes, min_size=1, max_size=2)), strict=False
    ):
        shapes[name] = (outputs * rows, inputs * columns, *(2,) * kernel)
    return scope, shapes


@given(scopes_and_shapes(), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::prunus.errors.EmptyLayerWarning")
def test_counts_are_what_select_keeps_within_earlier_masks(scope_and_shapes, densities, seed):
    scope, shapes = scope_and_shapes
    if isinstance(scope, NByM):
        densities = [scope.n / scope.m] * len(densities)
    generator, masks, counts = make_generator(seed), None, None
    for density in sorted(densities, reverse=True):
        scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
        counts = scope.counts(shapes, density, counts)
        masks = scope.select(scores, density, masks, seed)
        num_kept = {name: int(mask.sum()) for name, mask in masks.items()}
        assert counts == ({"all": sum(num_kept.values())} if scope == Global() else num_kept)


@pytest.mark.parametrize("name", ["layer", "1x4", "4x3", "2:4"])
@pytest.mark.parametrize("step", [1, 7, 24])
@pytest.mark.filterwarnings("ignore::prunus.errors.EmptyLayerWarning")
@settings(deadline=None)  # timings vary on a machine with other work
@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_column_counts_add_up_to_the_count_of_the_layer(name, step, share, seed):
    scope, scores = parse_scope(name), {"a": torch.rand(8, 24, generator=make_generator(seed))}
    density = scope.n / scope.m if isinstance(scope, NByM) else share
    outer = NByM(3, 4).select(scores, 0.75) if name == "2:4" else scope.select(scores, (1 + share) / 2)
    step = scope.column_step(step)
    counts = scope.column_counts(outer["a"], density, step, "a")
    assert sum(counts) == int(scope.select(scores, density, outer)["a"].sum())
    available = [int(part.sum()) for part in outer["a"].split(step, 1)]
    assert all(0 <= count <= part for count, part in zip(counts, available, strict=True))


@each_scope
def test_select_breaks_ties_by_the_seed_alone(name):
    scores, scope, density = make_scores(name, levels=1), parse_scope(name), EXPECTED[name].middle
    first, again, other = (scope.select(scores, density, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in scores)
    assert any(not torch.equal(first[n], other[n]) for n in scores)


@each_scope
def test_select_breaks_ties_of_two_layers_of_one_shape_differently(name):
    scores = {n: torch.ones(8, 24) for n in ("a", "b")}
    masks = parse_scope(name).select(scores, EXPECTED[name].middle)
    assert not torch.equal(masks["a"], masks["b"])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4)])
def test_n_by_m_keeps_tied_weights_of_a_group_equally_often(n, m):
    """All C(M, N) choices occur; a preference for one of them would exceed six standard deviations."""
    groups = 6000
    masks = NByM(n, m).select({"a": torch.zeros(groups, m)}, n / m)
    occurrences = Counter(map(tuple, masks["a"].tolist()))
    choices = math.comb(m, n)
    assert len(occurrences) == choices
    deviation = math.sqrt(groups / choices * (1 - 1 / choices))
    assert all(abs(times - groups / choices) < 6 * deviation for times in occurrences.values())


@each_scope
@given(seed=st.integers(0, 10_000))
def test_select_nests_masks_in_earlier_ones(name, seed):
    outer = masks_from(name, EXPECTED[name].wider, seed)
    scores = make_scores(name, seed + 1)
    inner = parse_scope(name).select(scores, EXPECTED[name].middle, within=outer, seed=seed)
    assert are_nested(inner, outer)
    assert mask_density(inner) == pytest.approx(EXPECTED[name].middle, abs=0.05)


@each_scope
def test_select_does_not_depend_on_a_monotone_change_of_the_scores(name):
    """Of blocks, whose scores are added, only a factor may change nothing."""
    single = EXPECTED[name].unit is weight_key
    scores = make_scores(name, 3)
    changed = {n: torch.exp(3 * score) if single else 8 * score for n, score in scores.items()}
    first, second = (parse_scope(name).select(s, EXPECTED[name].middle) for s in (scores, changed))
    assert all(torch.equal(first[n], second[n]) for n in scores)


@each_scope
def test_select_does_not_change_its_arguments(name):
    scores, within = make_scores(name), masks_from(name, EXPECTED[name].wider)
    copies = [{n: t.clone() for n, t in tensors.items()} for tensors in (scores, within)]
    parse_scope(name).select(scores, EXPECTED[name].middle, within=within)
    for before, after in zip(copies, (scores, within), strict=True):
        assert all(torch.equal(before[n], after[n]) for n in before)


@each_scope
def test_select_ranks_negative_scores_above_pruned_weights(name):
    scores = {n: score - 1000 for n, score in make_scores(name, 5).items()}
    outer = masks_from(name, EXPECTED[name].wider)
    inner = parse_scope(name).select(scores, EXPECTED[name].middle, within=outer)
    assert are_nested(inner, outer)


@each_scope
@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, 2, math.nan])
def test_select_refuses_a_density_out_of_range(name, density):
    with pytest.raises(DensityError, match="above 0 and at most 1"):
        parse_scope(name).select(make_scores(name), density)


@each_scope
def test_select_refuses_to_restore_pruned_weights(name):
    outer = masks_from(name, EXPECTED[name].narrower)
    with pytest.raises(DensityError, match="cannot be restored"):
        parse_scope(name).select(make_scores(name), EXPECTED[name].middle, within=outer)


@each_scope
def test_select_names_the_tensor_of_scores_that_are_not_finite(name):
    scores = make_scores(name)
    scores["b"][0, 0, 0, 0], scores["b"][1, 0, 0, 0] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match="'b' holds 2 of 192"):
        parse_scope(name).select(scores, EXPECTED[name].middle)


@each_scope
def test_select_accepts_tensors_without_entries(name):
    scores = {"a": torch.zeros(0, 24), "b": torch.ones(4, 24), "d": torch.zeros(4, 0)}
    masks = parse_scope(name).select(scores, EXPECTED[name].middle)
    assert (masks["a"].shape, masks["d"].shape) == ((0, 24), (4, 0))
    assert masks["b"].any()


@pytest.mark.parametrize("scope", [Layer(), NByM(2, 4), Block(1, 4)])
def test_densities_per_layer_must_name_every_layer(scope):
    with pytest.raises(DensityError, match="'c'"):
        scope.select(make_scores("layer"), {"a": 0.5, "b": 0.5})


def test_global_refuses_densities_per_layer():
    with pytest.raises(DensityError, match="Expected one density"):
        Global().select(make_scores("layer"), {"a": 0.5, "b": 0.5, "c": 0.5})


@pytest.mark.parametrize("scope", [Layer(), Block(1, 4)])
def test_select_warns_of_an_emptied_layer(scope):
    with pytest.warns(EmptyLayerWarning, match="'b'"):
        assert not scope.select({"a": torch.ones(100), "b": torch.ones(4)}, 0.1)["b"].any()


def test_patterns_group_input_channels_at_one_kernel_position():
    """One output, four channels, a kernel of two positions: [1, 4, 1, 2], written channel by channel."""
    score = torch.tensor([[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]]).reshape(1, 4, 1, 2)
    assert NByM(2, 4).select({"w": score}, 0.5)["w"].reshape(4, 2).tolist() == [
        [False, True],
        [False, True],
        [True, False],
        [True, False],
    ]
    assert Block(1, 2).select({"w": score}, 0.5)["w"].reshape(4, 2).tolist() == [
        [False, True],  # 8 + 7
        [False, True],
        [False, True],  # 6 + 5
        [False, True],
    ]


def test_blocks_of_one_weight_select_as_layer_does():
    scores = {"a": make_scores("layer", 4)["a"], "tied": torch.ones(8, 24)}
    for outer in (None, Layer().select(make_scores("layer", 1), 0.8)):
        within = outer and {"a": outer["a"], "tied": outer["a"]}
        blocks, other = (scope.select(scores, 0.4, within=within, seed=7) for scope in (Block(1, 1), Layer()))
        assert all(torch.equal(blocks[n], other[n]) for n in blocks)


def test_block_scores_are_added_in_double_precision():
    large = torch.finfo(torch.float32).max
    masks = Block(1, 2).select({"w": torch.tensor([[large, large / 2, large, large]])}, 0.5)
    assert masks["w"].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("pattern", "density"), [("2:4", 0.3), ("2:4", 1.0), ("2:4", 0.5 + 1e-6), ("1:3", 0.3333)]
)
def test_n_by_m_refuses_another_density_than_its_own(pattern, density):
    scope = parse_scope(pattern)
    exact = scope.n / scope.m
    with pytest.raises(DensityError, match=rf"Expected density {exact:g} of 'a', which {pattern} keeps "):
        scope.select(make_scores(pattern), density)
    with pytest.raises(DensityError, match=f"of 'b', which {pattern}"):
        scope.select(make_scores(pattern), {"a": exact, "b": density, "c": exact})


@pytest.mark.parametrize(
    ("pattern", "density"), [("2:4", 0.5 + 1e-10), ("1:3", 1 - 2 / 3), ("3:10", 1 - 0.7)]
)
def test_n_by_m_accepts_a_density_that_differs_by_rounding(pattern, density):
    scope = parse_scope(pattern)
    masks = scope.select({"a": torch.rand(4, 6 * scope.m)}, density)
    assert mask_density(masks) == pytest.approx(density)


@pytest.mark.parametrize("scope", [NByM(2, 4), Block(1, 4)])
@pytest.mark.parametrize("shape", [(10, 6), (6, 3, 4, 4), (7,)], ids=str)
def test_patterns_refuse_inputs_that_are_no_multiple(scope, shape):
    """The second has 48 columns, but not four channels."""
    with pytest.raises(DensityError, match=r"multiple of 4 inputs in 'odd', \[.*\], got \d.*exclude 'odd'"):
        scope.select({"even": torch.rand(4, 4), "odd": torch.rand(shape)}, 0.5)


def test_blocks_refuse_outputs_that_are_no_multiple():
    with pytest.raises(DensityError, match=r"multiple of 4 outputs in 'odd', \[6, 8\], got 6"):
        Block(4, 1).select({"odd": torch.rand(6, 8)}, 0.5)


@pytest.mark.parametrize("pattern", ["0:4", "4:4", "5:4", "1:1", "0:0", "0x4", "4x0"])
def test_parse_scope_refuses_an_impossible_pattern(pattern):
    with pytest.raises(DensityError, match=pattern):
        parse_scope(pattern)


def test_block_refuses_partly_pruned_blocks():
    within = {"a": torch.ones(2, 8, dtype=torch.bool)}
    within["a"][0, :4] = False  # a whole block
    masks = Block(1, 4).select({"a": torch.ones(2, 8)}, 0.5, within=within)
    assert not masks["a"][0, :4].any()
    within["a"][1, 0] = False
    with pytest.raises(DensityError, match=r"blocks of 1x4 as a whole, got 1 partly pruned blocks of 'a'"):
        Block(1, 4).select({"a": torch.ones(2, 8)}, 0.5, within=within)


@pytest.mark.parametrize("name", EXPECTED)
def test_parse_scope_reads_the_name_of_a_scope(name):
    assert parse_scope(name).name == name
    assert parse_scope(name) == SCOPES.get(name, parse_scope(name))
    assert parse_scope(parse_scope(name)) == parse_scope(name)


@pytest.mark.parametrize("name", ["lyer", "2-4", "2:4:8", "4x", "x4", "-1:4", "1x4x4", "2 : 4", ""])
def test_parse_scope_lists_the_patterns_when_a_name_is_unknown(name):
    with pytest.raises(
        UnknownNameError, match=r"Unknown scope .*N:M, such as 1:4, and blocks ROWSxCOLUMNS, such as 4x4"
    ):
        parse_scope(name)


def test_function_is_a_scope_that_is_checked_by_trial():
    def quarter_more(scores, density, within, seed):
        return Layer().select(scores, min(1.0, 1.25 * density), within, seed)

    scope, shapes = parse_scope(quarter_more), {"a": (8, 10)}
    assert scope == FunctionScope(quarter_more)
    assert scope.counts(shapes, 0.4) == {"a": 40}
    scope.check(shapes, [0.8, 0.4])
    with pytest.raises(DensityError, match="cannot be restored"):
        scope.check(shapes, [0.4, 0.8])
    scores = {"a": torch.rand(8, 10)}
    assert torch.equal(scope.select(scores, 0.4, seed=3)["a"], Layer().select(scores, 0.5, seed=3)["a"])


def test_weights_per_unit_is_the_size_of_a_block():
    names = ("layer", "global", "2:4", "1x4", "3x5")
    assert [parse_scope(name).weights_per_unit for name in names] == [1, 1, 1, 4, 15]


@pytest.mark.parametrize("schedule", [iterative, cubic])
def test_check_refuses_a_density_that_cannot_be_reached(schedule):
    shapes = {"a": (4, 8)}
    NByM(2, 4).check(shapes, one_shot(0.5, 3))
    Layer().check(shapes, schedule(0.5, 3))
    with pytest.raises(DensityError, match=r"Expected density 0\.5 of 'a', which 2:4 keeps"):
        NByM(2, 4).check(shapes, schedule(0.5, 3))


@pytest.mark.parametrize("scope", [Layer(), Global(), Block(1, 4)])
def test_check_passes_counts_on_and_does_not_warn(scope):
    scores = {"a": torch.ones(4, 8), "b": torch.ones(1, 8)}
    shapes = shapes_of(scores)
    Block(1, 8).check(shapes, [0.8, 0.4])  # no weight of b is kept
    with pytest.raises(DensityError, match="cannot be restored"):
        scope.check(shapes, [0.4, 0.8])
    with pytest.raises(DensityError, match="cannot be restored"):
        scope.check(shapes, [0.5], within=scope.select(scores, 0.25))


def test_check_refuses_groups_with_too_few_weights():
    within = {"a": torch.ones(2, 8, dtype=torch.bool)}
    within["a"][0, :3] = False
    with pytest.raises(DensityError, match="cannot be restored"):
        NByM(2, 4).check({"a": (2, 8)}, [0.5], within)


def test_check_not_empty_refuses_blocks_larger_than_a_layer():
    with pytest.raises(DensityError, match="Expected blocks of 4x4 of 'a', got none"):
        Block(4, 4).check_not_empty({"a": (2, 4)}, 0.5)


def test_check_not_empty_counts_all_layers_together_under_the_global_scope():
    shapes = {"a": (4,), "b": (96,)}
    Global().check_not_empty(shapes, 0.01)
    with pytest.raises(DensityError, match="100 weights of all layers together"):
        Global().check_not_empty(shapes, 0.001)


def test_top_k_agrees_with_a_stable_sort():
    values = torch.rand(1000, generator=make_generator(0, "x"))
    for k in (0, 1, 17, 999, 1000):
        expected = torch.zeros(1000, dtype=torch.bool)
        expected[values.argsort(descending=True)[:k]] = True
        assert torch.equal(top_k(values, k, make_generator(0)), expected)


def test_densities_from_threshold_keep_the_weights_beyond_a_multiple_of_the_deviation():
    weights = {"a": torch.randn(50, 40, generator=make_generator(0, "w"))}
    masks = Layer().select({"a": weights["a"].abs()}, densities_from_threshold(weights, 0.7))
    assert torch.equal(masks["a"], weights["a"].abs() > 0.7 * weights["a"].std(correction=0))
    assert mask_density(masks) == densities_from_threshold(weights, 0.7)["a"]


@pytest.mark.parametrize("quality", [-1.0, 100.0, float("nan"), {"b": 1.0}])
def test_densities_from_threshold_refuse_a_quality_out_of_range(quality):
    with pytest.raises(DensityError, match="quality"):
        densities_from_threshold({"a": torch.randn(10, generator=make_generator(0))}, quality)
