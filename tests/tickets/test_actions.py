"""Mask-1 and mask-0 actions: purity, seeds, invariants, values by hand, and defects that the invariants detect."""

import re
from dataclasses import replace

import pytest
import torch

from prunus.seeds import make_generator
from prunus.tickets.actions import WeightHistory
from prunus.tickets.mask0_actions import MASK0_ACTIONS
from prunus.tickets.mask1_actions import MASK1_ACTIONS, rescaled
from prunus.tickets.statistical_checks import is_population_std, population_std
from prunus.types import MaskDict, Params

SHAPES = {"a": (60, 40), "b": (40, 8, 3, 3), "c": (60, 40)}
DENSITIES = {
    "all kept": dict.fromkeys(SHAPES, 1.0),
    "most kept": {"a": 0.8, "b": 0.9, "c": 0.7},
    "few kept": {"a": 0.02, "b": 0.2, "c": 0.1},
    "an empty layer": {"a": 0.5, "b": 0.0, "c": 1 / 2400},
}
DRAWS = {name for name in MASK1_ACTIONS if "permute" in name or "reshuffle" in name or "random" in name}
DRAWS |= {"reinitialize", "signed_reinitialize", "reinitialize_rescaled"}
WHOLE_LAYER = {name for name in MASK1_ACTIONS if "permute" in name or "constant" in name}

TENSORS = ("initial", "rewind", "start", "final", "masks", "supermask")

each_mask1 = pytest.mark.parametrize("name", MASK1_ACTIONS)
each_mask0 = pytest.mark.parametrize("name", MASK0_ACTIONS)
each_density = pytest.mark.parametrize("densities", DENSITIES.values(), ids=DENSITIES)
each_round = pytest.mark.parametrize("later", [False, True], ids=["round 1", "round 2"])


def normal(seed: int, *role: str, scale: float = 0.1, mean: float = 0.0) -> Params:
    return {
        name: mean + scale * torch.randn(shape, generator=make_generator(seed, *role, name))
        for name, shape in SHAPES.items()
    }


def random_masks(densities: dict[str, float], seed: int, within: MaskDict | None = None) -> MaskDict:
    """Random masks of exact counts, nested in `within`."""
    masks = {}
    for name, shape in SHAPES.items():
        scores = torch.rand(shape, generator=make_generator(seed, "mask", name))
        scores = scores if within is None else scores - 2 * ~within[name]
        kept_weights = int(densities[name] * scores.numel() + 0.5)
        masks[name] = torch.zeros(scores.numel(), dtype=torch.bool)
        masks[name][scores.flatten().argsort(descending=True)[:kept_weights]] = True
        masks[name] = masks[name].reshape(shape)
    return masks


def make_history(later: bool = True) -> WeightHistory:
    """All moments differ; some weights are exactly zero, some never moved, some crossed zero; signs are unbalanced."""
    original = normal(0, "initial", mean=0.03)
    for weight in original.values():
        weight.view(-1)[:7] = 0.0
    rewind = {
        name: w + 0.01 * n for (name, w), n in zip(original.items(), normal(0, "early").values(), strict=True)
    }
    masks = (
        random_masks(dict.fromkeys(SHAPES, 0.95), 5) if later else random_masks(dict.fromkeys(SHAPES, 1.0), 5)
    )
    start = {n: w.clone() for n, w in (normal(0, "start") if later else rewind).items()}
    final = {
        name: 1.1 * w + moved
        for (name, w), moved in zip(start.items(), normal(0, "moved").values(), strict=True)
    }
    for name, weight in final.items():
        weight.view(-1)[::11] = start[name].view(-1)[::11]
        final[name] = torch.where(masks[name], weight, start[name])
        start[name].view(-1)[5:25] = 0.0
    redrawn_weights = {seed: normal(seed, "fresh", mean=0.03) for seed in (0, 1)}
    return WeightHistory(
        original, rewind, start, final, masks, redrawn_weights.__getitem__, normal(0, "supermask")
    )


def copy(history: WeightHistory) -> dict[str, Params]:
    return {m: {n: t.clone() for n, t in getattr(history, m).items()} for m in TENSORS}


def pointers(*many: Params) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for params in many for tensor in params.values()}


def equal(left: Params, right: Params) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def kept_of(params: Params, masks: MaskDict) -> Params:
    return {name: params[name][mask] for name, mask in masks.items()}


def mask0_values(action, history: WeightHistory, masks: MaskDict, seed: int = 0) -> Params:
    """What the mask-0 action makes of new values for kept weights, with NaN where it must not look."""
    return action.values(history, masks, kept_values(masks), seed)


def kept_values(masks: MaskDict) -> Params:
    return {n: w.masked_fill(~masks[n], torch.nan) for n, w in normal(0, "kept").items()}


@each_mask1
@each_density
@each_round
def test_mask1_action_is_pure_and_its_invariants_hold(name, densities, later):
    action, history = MASK1_ACTIONS[name], make_history(later)
    masks = random_masks(
        {n: d if d in (0, 1) and not later else d * 0.95 for n, d in densities.items()}, 1, history.masks
    )
    before, masks_before, state = (
        copy(history),
        {n: m.clone() for n, m in masks.items()},
        torch.get_rng_state(),
    )
    fresh = {n: t.clone() for n, t in history.redraw(0).items()}
    start = action.values(history, masks, 0)
    checks = action.invariants(history, masks, start)
    assert {n: t.shape for n, t in start.items()} == {n: t.shape for n, t in history.initial.items()}
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in start.values())
    assert not pointers(start) & pointers(
        *before.values(), history.redraw(0), *(getattr(history, m) for m in before)
    )
    assert len(pointers(start)) == len(SHAPES)
    assert all(equal(getattr(history, moment), params) for moment, params in before.items())
    assert equal(masks, masks_before)
    assert equal(history.redraw(0), fresh)
    assert torch.equal(torch.get_rng_state(), state)
    assert checks
    assert all(type(holds) is bool for holds in checks.values())
    assert all(checks.values()), checks


@each_mask0
@each_density
@each_round
def test_mask0_action_is_pure_and_its_invariants_hold(name, densities, later):
    action, history = MASK0_ACTIONS[name], make_history(later)
    masks = random_masks(
        {n: d if d in (0, 1) and not later else d * 0.95 for n, d in densities.items()}, 1, history.masks
    )
    kept_weights = kept_values(masks)
    before, kept_before, state = (
        copy(history),
        {n: t.clone() for n, t in kept_weights.items()},
        torch.get_rng_state(),
    )
    start = action.values(history, masks, kept_weights, 0)
    checks = action.invariants(history, masks, kept_weights, start)
    assert {n: t.shape for n, t in start.items()} == {n: t.shape for n, t in history.initial.items()}
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in start.values())
    assert not pointers(start) & pointers(kept_weights, *(getattr(history, m) for m in before))
    assert all(equal(getattr(history, moment), params) for moment, params in before.items())
    assert all(torch.equal(kept_weights[n].nan_to_num(9), t.nan_to_num(9)) for n, t in kept_before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert checks
    assert all(type(holds) is bool for holds in checks.values())
    assert all(checks.values()), checks


def test_standard_deviation_in_float64_has_the_precision_of_sums():
    for seed in range(20):
        for layer in normal(seed, mean=0.03).values():
            assert is_population_std(population_std(layer.double()), layer.double())


@each_mask1
def test_mask1_action_depends_on_the_seed_only_if_it_is_random(name):
    history, masks = make_history(), random_masks(DENSITIES["most kept"], 1, make_history().masks)
    first, again, other = (
        kept_of(MASK1_ACTIONS[name].values(history, masks, seed), masks) for seed in (0, 0, 1)
    )
    assert equal(first, again)
    assert all(torch.equal(first[n], other[n]) != (name in DRAWS) for n in SHAPES)


@each_mask0
def test_mask0_action_depends_on_the_seed_only_if_it_is_random(name):
    history, masks = make_history(), random_masks(DENSITIES["most kept"], 1, make_history().masks)
    first, again, other = (mask0_values(MASK0_ACTIONS[name], history, masks, seed) for seed in (0, 0, 1))
    assert equal(first, again)
    assert all(torch.equal(first[n], other[n]) != (name == "freeze_init_zero_reshuffled") for n in SHAPES)


@each_mask1
def test_mask1_action_uses_pruned_places_only_if_it_uses_the_whole_layer(name):
    history, masks = make_history(), random_masks(DENSITIES["most kept"], 1, make_history().masks)
    scribbled = {
        moment: {n: torch.where(masks[n], t, 0.5) for n, t in getattr(history, moment).items()}
        for moment in ("initial", "rewind", "start", "final")
    }
    original, other = (
        MASK1_ACTIONS[name].values(p, masks, 0) for p in (history, replace(history, **scribbled))
    )
    assert equal(kept_of(original, masks), kept_of(other, masks)) == (name not in WHOLE_LAYER)
    unseen = {n: t.masked_fill(~masks[n], torch.nan) for n, t in original.items()}
    assert MASK1_ACTIONS[name].invariants(history, masks, unseen) == MASK1_ACTIONS[name].invariants(
        history, masks, original
    )


@each_mask0
def test_mask0_action_ignores_the_pruned_places_of_the_mask1_action(name):
    history, masks = make_history(), random_masks(DENSITIES["most kept"], 1, make_history().masks)
    start, kept_weights = (
        mask0_values(MASK0_ACTIONS[name], history, masks),
        kept_of(kept_values(masks), masks),
    )
    for n, now in kept_of(start, masks).items():
        zeros = (now == 0) & (kept_weights[n] != 0)
        assert torch.equal(now[~zeros], kept_weights[n][~zeros])
        assert bool(zeros.any()) == (name == "freeze_init_zero_all")


@each_mask1
def test_mask1_action_treats_each_layer_separately(name):
    history, masks = make_history(), random_masks(DENSITIES["most kept"], 1, make_history().masks)
    only = {m: {"b": getattr(history, m)["b"]} for m in TENSORS}
    alone = MASK1_ACTIONS[name].values(replace(history, **only), {"b": masks["b"]}, 0)
    assert equal(alone, {"b": MASK1_ACTIONS[name].values(history, masks, 0)["b"]})


@pytest.mark.parametrize("name", sorted(DRAWS - {n for n in DRAWS if "reinit" in n}))
def test_two_equal_layers_get_different_permutations(name):
    history, masks = make_history(), random_masks(dict.fromkeys(SHAPES, 1.0), 1)
    twins = replace(history, initial={**history.initial, "c": history.initial["a"]})
    start = MASK1_ACTIONS[name].values(twins, masks, 0)
    assert not torch.equal(start["a"], start["c"])


def tiny_history(initial, start=None, final=None, before=None, rewind=None, redrawn=None) -> WeightHistory:
    """One layer "w"; what is not given is as at first."""
    as_layer = lambda values: {"w": torch.tensor(initial if values is None else values)}  # noqa: E731
    masks = {"w": torch.tensor([True] * len(initial) if before is None else before)}
    moments = (as_layer(values) for values in (None, rewind, start, final))
    return WeightHistory(*moments, masks, lambda seed: as_layer(redrawn))


def mask1_values(name: str, history: WeightHistory, mask: list[bool]) -> list[float]:
    masks = {"w": torch.tensor(mask)}
    start = MASK1_ACTIONS[name].values(history, masks, 0)
    assert all(MASK1_ACTIONS[name].invariants(history, masks, start).values())
    return start["w"][masks["w"]].tolist()


def test_mask1_actions_equal_values_computed_by_hand():
    history = tiny_history(
        [3.0, -1.0, 0.0, -2.0],
        rewind=[4.0, 5.0, 6.0, 7.0],
        final=[0.5, 1.5, 2.5, 3.5],
        redrawn=[-8.0, 9.0, 1.0, 2.0],
    )
    mask = [True, True, False, True]
    assert mask1_values("rewind", history, mask) == [4.0, 5.0, 7.0]
    assert (
        mask1_values("finetune", history, mask)
        == mask1_values("rewind_learning_rate", history, mask)
        == [0.5, 1.5, 3.5]
    )
    assert mask1_values("reinitialize", history, mask) == [-8.0, 9.0, 2.0]
    assert mask1_values("signed_reinitialize", history, mask) == [8.0, -9.0, -2.0]
    assert mask1_values("signed_reinitialize", history, [False, False, True, False]) == [0.0]
    assert sorted(mask1_values("permute", history, [True] * 4)) == [-2.0, -1.0, 0.0, 3.0]
    assert sorted(mask1_values("reshuffle", history, mask)) == [-2.0, -1.0, 3.0]
    assert mask1_values("reshuffle", history, [False, True, False, False]) == [-1.0]
    assert mask1_values("rewind_rescaled", history, mask) == pytest.approx([16 / 3, 20 / 3, 28 / 3])
    assert mask1_values("rewind_rescaled", history, [True, False, False, True]) == [8.0, 14.0]
    for name, places in {"signed_permute": [True] * 4, "signed_reshuffle": mask}.items():
        signed = mask1_values(name, history, places)
        assert [v > 0 for v in signed] == [True, False, False, False][: len(signed)]
        assert sorted(abs(v) for v in signed if v) == [1.0, 2.0, 3.0]
    assert mask1_values("signed_permute", history, [False, False, True, False]) == [0.0]


def test_signed_constants_equal_values_computed_by_hand():
    """Mean 1, squares of distances 4 + 4 + 0 + 0 over four weights: the deviation of the population is √2."""
    history, minus, plus = (
        tiny_history([3.0, -1.0, 1.0, 1.0]),
        pytest.approx(-(2**0.5)),
        pytest.approx(2**0.5),
    )
    assert mask1_values("signed_constant", history, [True, True, False, False]) == [plus, minus]
    assert sorted(mask1_values("random_signed_constant", history, [True] * 4)) == [minus, plus, plus, plus]
    assert mask1_values("signed_constant", tiny_history([2.0, -2.0, 0.0, 0.0]), [True] * 4) == [
        plus,
        minus,
        0.0,
        0.0,
    ]


def test_actions_declare_other_tensors_learning_rate_and_freezing():
    assert {n for n, action in MASK1_ACTIONS.items() if action.other_tensors == "final"} == {
        "finetune",
        "rewind_learning_rate",
    }
    assert {n for n, action in MASK1_ACTIONS.items() if action.learning_rate == "last"} == {"finetune"}
    assert {n for n, action in MASK0_ACTIONS.items() if not action.freezes} == {"train"}
    assert rescaled(MASK1_ACTIONS["finetune"]).other_tensors == "final"


def test_reinitialize_is_the_redraw_of_the_seed():
    history, masks = make_history(), random_masks(DENSITIES["most kept"], 1, make_history().masks)
    assert equal(MASK1_ACTIONS["reinitialize"].values(history, masks, 1), history.redraw(1))


@pytest.mark.parametrize("name", [n for n in MASK1_ACTIONS if n.endswith("_rescaled")])
def test_rescaled_action_multiplies_by_size_over_kept(name):
    history, masks = make_history(), random_masks({"a": 0.25, "b": 0.5, "c": 0.0}, 1, make_history().masks)
    base, larger = (
        MASK1_ACTIONS[n].values(history, masks, 0) for n in (name.removesuffix("_rescaled"), name)
    )
    for layer, factor in {"a": 4, "b": 2, "c": 1}.items():
        assert torch.equal(larger[layer], base[layer] * factor)


FILLED = {
    "zero": [7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0, 9.0],
    "train": [7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0, 9.0],
    "freeze_init": [7.0, 1.0, 1.0, 1.0, 1.0, -3.0, 8.0, 9.0],
    "freeze_init_zero": [7.0, 0.0, -2.0, 2.0, 0.0, -3.0, 8.0, 9.0],
    "freeze_init_zero_all": [0.0, 0.0, -2.0, 2.0, 0.0, -3.0, 8.0, 0.0],
    "freeze_init_zero_reversed": [7.0, 2.0, 0.0, 2.0, 2.0, -3.0, 8.0, 9.0],
}


@pytest.mark.parametrize("name", FILLED)
def test_mask0_actions_equal_values_computed_by_hand(name):
    """Kept, towards; towards; away, across; never moved; towards, across; pruned earlier; kept, away; kept at 0."""
    history = tiny_history(
        [1.0] * 8,
        start=[2.0, 2.0, -2.0, 2.0, 2.0, -3.0, 2.0, 0.0],
        final=[1.0, 1.0, 3.0, 2.0, -1.0, -3.0, 3.0, 0.5],
        before=[True, True, True, True, True, False, True, True],
    )
    masks = {"w": torch.tensor([True, False, False, False, False, False, True, True])}
    kept_weights = {"w": torch.tensor([7.0, *[torch.nan] * 5, 8.0, 9.0])}
    start = MASK0_ACTIONS[name].values(history, masks, kept_weights, 0)
    assert start["w"].tolist() == FILLED[name]
    assert all(MASK0_ACTIONS[name].invariants(history, masks, kept_weights, start).values())


def test_reshuffled_control_has_as_many_zeros_at_other_places():
    history, masks = make_history(), random_masks(DENSITIES["few kept"], 1, make_history().masks)
    control, variant = (
        mask0_values(MASK0_ACTIONS[n], history, masks)
        for n in ("freeze_init_zero_reshuffled", "freeze_init_zero")
    )
    for n in SHAPES:
        assert int((control[n] == 0).sum()) == int((variant[n] == 0).sum())
        assert not torch.equal(control[n], variant[n])


def on(function):
    """A defect that can be said of one layer: (history, masks, name) -> its tensor."""
    return lambda history, masks: {name: function(history, masks, name) for name in masks}


def drawn_with_replacement(history, masks, name):
    """A draw with putting back."""
    weights = history.initial[name].flatten()
    places = torch.randint(weights.numel(), weights.shape, generator=make_generator(0, "defect", name))
    return weights[places].reshape(SHAPES[name])


def changed(name: str, change=lambda w, history, n: w):
    return lambda history, masks: {
        n: change(w, history, n) for n, w in MASK1_ACTIONS[name].values(history, masks, 0).items()
    }


def drifted(name: str):
    """The constant computed from what the last round started from, which was plus or minus the constant."""

    def values(history, masks):
        compounding = replace(history, initial=MASK1_ACTIONS["signed_constant"].values(history, masks, 0))
        return MASK1_ACTIONS[name].values(compounding, masks, 0)

    return values


original, final = on(lambda p, m, n: p.initial[n]), on(lambda p, m, n: p.final[n])
shifted = on(lambda p, m, n: p.initial[n].flatten().roll(1).reshape(SHAPES[n]))
zeros = on(lambda p, m, n: torch.zeros(SHAPES[n]))
off_by_one = lambda w, p, n: w.flatten().roll(1).reshape(w.shape)  # noqa: E731
unsigned = lambda w, p, n: w.abs()  # noqa: E731
flipped = lambda w, p, n: torch.cat([-w[:1], w[1:]])  # noqa: E731
nudged = lambda w, p, n: w * (1 + 1e-5)  # noqa: E731
last_signs = lambda w, p, n: w.abs() * p.final[n].sign()  # noqa: E731

DEFECTS1 = {
    "rewind": {
        "the initialization, where a later step is meant": original,
        "as trained": final,
        "shifted": changed("rewind", off_by_one),
        "what the last round started from": on(lambda p, m, n: p.start[n]),
    },
    "finetune": {"rewound": on(lambda p, m, n: p.rewind[n]), "shifted": changed("finetune", off_by_one)},
    "rewind_learning_rate": {"rewound": on(lambda p, m, n: p.rewind[n]), "zeroed": zeros},
    "supermask": {
        "rewound": on(lambda p, m, n: p.rewind[n]),
        "signs lost": changed("supermask", unsigned),
        "the scale lost": changed("supermask", lambda w, p, n: w / 2),
        "a kept weight at zero": zeros,
    },
    "reinitialize": {
        "not drawn": original,
        "the rewind point's": on(lambda p, m, n: p.rewind[n]),
        "half as large": changed("reinitialize", lambda w, p, n: w / 2),
        "twice as large": changed("reinitialize", lambda w, p, n: w * 2),
        "signs lost": changed("reinitialize", unsigned),
        "zeroed": zeros,
    },
    "signed_reinitialize": {
        "not drawn": original,
        "signs of the draw": changed("reinitialize"),
        "signs lost": changed("signed_reinitialize", unsigned),
        "signs as trained": changed("signed_reinitialize", last_signs),
        "twice as large": changed("signed_reinitialize", lambda w, p, n: w * 2),
        "a sign for zero": changed("signed_reinitialize", lambda w, p, n: torch.where(w == 0, 0.1, w)),
    },
    "permute": {
        "a shuffle that changes nothing": original,
        "a draw with putting back": on(drawn_with_replacement),
        "of the trained weights": on(lambda p, m, n: p.final[n].flip(0)),
        "of another layer": on(
            lambda p, m, n: p.initial["a" if n == "c" else "c" if n == "a" else n].flip(0)
        ),
        "signs lost": changed("permute", unsigned),
        "drifted": changed("permute", nudged),
    },
    "reshuffle": {
        "a shuffle that changes nothing": original,
        "over the whole layer": changed("permute"),
        "shifted over the whole layer": shifted,
        "signs lost": changed("reshuffle", unsigned),
    },
    "signed_permute": {
        "a shuffle that changes nothing": original,
        "signs permuted too": changed("permute"),
        "signs lost": changed("signed_permute", unsigned),
        "signs as trained": changed("signed_permute", last_signs),
        "one row of signs": changed("signed_permute", flipped),
        "magnitudes drawn with putting back": on(
            lambda p, m, n: drawn_with_replacement(p, m, n).abs() * p.initial[n].sign()
        ),
        "drifted": changed("signed_permute", nudged),
    },
    "signed_reshuffle": {
        "a shuffle that changes nothing": original,
        "over the whole layer": changed("signed_permute"),
        "signs permuted too": changed("reshuffle"),
        "signs lost": changed("signed_reshuffle", unsigned),
        "one row of signs": changed("signed_reshuffle", flipped),
    },
    "signed_constant": {
        "signs permuted": changed("random_signed_constant"),
        "signs lost": changed("signed_constant", unsigned),
        "drifted": drifted("signed_constant"),
        "the deviation of a sample": on(lambda p, m, n: p.initial[n].std() * p.initial[n].sign()),
        "the deviation of kept weights": on(
            lambda p, m, n: p.initial[n][m[n]].std(correction=0) * p.initial[n].sign()
        ),
        "the deviation of trained weights": on(
            lambda p, m, n: p.final[n].std(correction=0) * p.initial[n].sign()
        ),
        "not constant": original,
    },
    "random_signed_constant": {
        "signs not permuted": changed("signed_constant"),
        "all signs reversed": changed("signed_constant", lambda w, p, n: -w),
        "signs lost": changed("random_signed_constant", unsigned),
        "drifted": drifted("random_signed_constant"),
        "the deviation of a sample": changed(
            "random_signed_constant", lambda w, p, n: w.sign() * p.initial[n].std()
        ),
    },
}


def defects_of_rescaled(name: str):
    base = name.removesuffix("_rescaled")

    def times(factor):
        return lambda history, masks: {
            n: w * factor(masks, n) for n, w in MASK1_ACTIONS[base].values(history, masks, 0).items()
        }

    def of_network(masks, n):
        return sum(m.numel() for m in masks.values()) / sum(int(m.sum()) for m in masks.values())

    defects = {"not rescaled": times(lambda m, n: 1.0), "by the whole network's density": times(of_network)}
    defects["by the density"] = times(lambda m, n: m[n].float().mean())
    defects["by the number of one kept weight more"] = times(
        lambda m, n: m[n].numel() / (int(m[n].sum()) + 1)
    )
    defects["only one layer"] = lambda history, masks: {
        **MASK1_ACTIONS[name].values(history, masks, 0),
        "a": MASK1_ACTIONS[base].values(history, masks, 0)["a"],
    }
    if base == "reinitialize":  # weights that are too small may be the small ones of a draw
        return {"twice": times(lambda m, n: 2 * m[n].numel() / int(m[n].sum())), "zeroed": zeros}
    if base != "random_signed_constant":  # half a layer may have all its signs by chance
        for defect, make in DEFECTS1[base].items():
            defects[f"{defect}, rescaled"] = lambda history, masks, make=make: {
                n: w * (masks[n].numel() / int(masks[n].sum())) for n, w in make(history, masks).items()
            }
    return defects


DEFECTS1 |= {name: defects_of_rescaled(name) for name in MASK1_ACTIONS if name.endswith("_rescaled")}


@pytest.mark.parametrize(("name", "defect"), [(n, d) for n, defects in DEFECTS1.items() for d in defects])
def test_invariants_of_a_mask1_action_detect_a_defect(name, defect):
    history = make_history()
    masks = random_masks(
        {"a": 0.6, "b": 0.5, "c": 0.7} if "rescaled" in name else DENSITIES["most kept"], 1, history.masks
    )
    assert all(
        MASK1_ACTIONS[name].invariants(history, masks, MASK1_ACTIONS[name].values(history, masks, 0)).values()
    )
    start = DEFECTS1[name][defect](history, masks)
    assert not all(MASK1_ACTIONS[name].invariants(history, masks, start).values())


def patched(name: str, change):
    """The honest start of `name`, with one change: (start, history, masks, kept, layer) -> the layer."""
    return lambda history, masks, kept_weights: {
        n: change(s, history, masks, kept_weights, n)
        for n, s in MASK0_ACTIONS[name].values(history, masks, kept_weights, 0).items()
    }


def new(history, masks, n):
    return history.masks[n] & ~masks[n]


def one_of(places):
    """Only the last of `places`."""
    where = places.flatten().nonzero()[-1]
    return torch.zeros_like(places).flatten().index_fill(0, where, True).reshape(places.shape)


def at(places, value):
    """A change: `value` where `places`, both (history, masks, layer) -> tensor."""
    return lambda s, history, masks, kept_weights, n: torch.where(
        places(history, masks, n), value(history, masks, n), s
    )


nothing = lambda p, m, n: torch.tensor(0.0)  # noqa: E731
trained = lambda p, m, n: p.final[n]  # noqa: E731
first = lambda p, m, n: p.initial[n]  # noqa: E731
pruned = lambda p, m, n: ~m[n]  # noqa: E731
pruned_before = lambda p, m, n: ~p.masks[n]  # noqa: E731
tied = lambda p, m, n: new(p, m, n) & (p.start[n] == p.final[n]) & (p.start[n] != 0)  # noqa: E731
zeroed = lambda p, m, n: new(p, m, n) & (p.start[n].abs() > p.final[n].abs())  # noqa: E731


def values_of(name: str):
    return lambda history, masks, kept_weights: MASK0_ACTIONS[name].values(history, masks, kept_weights, 0)


def by_value(history, masks, kept_weights):
    """Compares values where magnitudes are meant."""
    return {
        n: torch.where(
            mask, kept_weights[n], torch.where(history.start[n] > history.final[n], 0.0, history.start[n])
        )
        for n, mask in masks.items()
    }


def common_defects(name: str):
    """Defects that no action may have."""
    return {
        "pruned weights as trained": patched(name, at(pruned, trained)),
        "kept weights as trained": patched(name, at(lambda p, m, n: m[n], trained)),
        "kept weights zeroed": patched(name, at(lambda p, m, n: m[n], nothing)),
        "the mask shifted": lambda history, masks, kept_weights: MASK0_ACTIONS[name].values(
            history,
            {n: m.flatten().roll(1).reshape(m.shape) for n, m in masks.items()},
            {n: w.nan_to_num(0.0) for n, w in kept_weights.items()},
            0,
        ),
        "one kept weight lost": patched(
            name, lambda s, p, m, k, n: torch.where(one_of(m[n] & (s != 0)), 0.0, s)
        ),
        "nothing done": lambda history, masks, kept_weights: {
            n: torch.where(masks[n], kept_weights[n], 0.1) for n in masks
        },
    }


ZERO_DEFECTS = {
    "only negative weights": patched("zero", at(lambda p, m, n: ~m[n] & (p.final[n] > 0), trained)),
    "one left": patched("zero", at(lambda p, m, n: one_of(~m[n]), trained)),
    "the initialization": values_of("freeze_init"),
}
VARIANT_DEFECTS = {
    "ties zeroed": at(tied, nothing),
    "frozen at the initialization": at(lambda p, m, n: new(p, m, n) & ~zeroed(p, m, n), first),
    "weights pruned earlier zeroed": at(pruned_before, nothing),
    "weights pruned earlier back at first values": at(pruned_before, first),
}
DEFECTS0 = {
    "zero": ZERO_DEFECTS,
    "train": ZERO_DEFECTS,
    "freeze_init": {
        "zero": values_of("zero"),
        "the last start": patched("freeze_init", at(pruned, lambda p, m, n: p.start[n])),
        "weights pruned earlier too": patched("freeze_init", at(pruned, first)),
        "one zeroed": patched("freeze_init", at(lambda p, m, n: one_of(new(p, m, n)), nothing)),
    },
    "freeze_init_zero": {
        "reversed": values_of("freeze_init_zero_reversed"),
        "reshuffled": values_of("freeze_init_zero_reshuffled"),
        "values compared": by_value,
        "all zero": values_of("zero"),
        "none zero": patched("freeze_init_zero", at(new, lambda p, m, n: p.start[n])),
        "kept too": values_of("freeze_init_zero_all"),
    },
    "freeze_init_zero_reversed": {
        "not reversed": values_of("freeze_init_zero"),
        "reshuffled": values_of("freeze_init_zero_reshuffled"),
        "all zero": values_of("zero"),
    },
    "freeze_init_zero_all": {
        "kept weights not zeroed": values_of("freeze_init_zero"),
        "a kept weight that started at 0 brought back": lambda history, masks, kept_weights: {
            n: torch.where(masks[n] & (history.start[n] == 0), kept_weights[n], s)
            for n, s in MASK0_ACTIONS["freeze_init_zero_all"].values(history, masks, kept_weights, 0).items()
        },
        "ties of kept weights zeroed": patched(
            "freeze_init_zero_all", at(lambda p, m, n: m[n] & (p.start[n] == p.final[n]), nothing)
        ),
    },
    "freeze_init_zero_reshuffled": {
        "not reshuffled": values_of("freeze_init_zero"),
        "reversed": values_of("freeze_init_zero_reversed"),
        "one zero more": patched(
            "freeze_init_zero_reshuffled",
            lambda s, p, m, k, n: torch.where(one_of(new(p, m, n) & (s != 0)), 0.0, s),
        ),
        "one zero less": patched(
            "freeze_init_zero_reshuffled",
            lambda s, p, m, k, n: torch.where(
                one_of(new(p, m, n) & (s == 0) & (p.start[n] != 0)), p.start[n], s
            ),
        ),
        "another number": lambda history, masks, kept_weights: MASK0_ACTIONS[
            "freeze_init_zero_reshuffled"
        ].values(replace(history, start=history.final, final=history.start), masks, kept_weights, 0),
    },
}
DEFECTS0 = {name: defects | common_defects(name) for name, defects in DEFECTS0.items()}
for variant in ("freeze_init_zero", "freeze_init_zero_reversed", "freeze_init_zero_all"):
    DEFECTS0[variant] |= {defect: patched(variant, change) for defect, change in VARIANT_DEFECTS.items()}


@pytest.mark.parametrize(("name", "defect"), [(n, d) for n, defects in DEFECTS0.items() for d in defects])
def test_invariants_of_a_mask0_action_detect_a_defect(name, defect):
    history = make_history()
    masks = random_masks(DENSITIES["few kept"], 1, history.masks)
    kept_weights = kept_values(masks)
    assert all(
        MASK0_ACTIONS[name]
        .invariants(history, masks, kept_weights, MASK0_ACTIONS[name].values(history, masks, kept_weights, 0))
        .values()
    )
    start = DEFECTS0[name][defect](history, masks, kept_weights)
    assert not all(MASK0_ACTIONS[name].invariants(history, masks, kept_weights, start).values())


@pytest.mark.parametrize("action", [*MASK1_ACTIONS.values(), *MASK0_ACTIONS.values()])
def test_every_action_has_a_one_line_description_with_its_source(action):
    assert re.search(r"\((?:[^()]* )?[A-Z]\w+ .*20\d\d|et al. 20\d\d|& Carbin 2019", action.description)
    assert "\n" not in action.description


def test_every_action_has_defects():
    assert DEFECTS1.keys() == MASK1_ACTIONS.keys()
    assert DEFECTS0.keys() == MASK0_ACTIONS.keys()
