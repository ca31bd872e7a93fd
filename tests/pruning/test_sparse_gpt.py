"""Laws of SparseGPT's schedule under every scope: as many are kept as the scope itself keeps, of its own pattern,
whatever was pruned before and however many columns are chosen at a time.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import EmptyLayerWarning
from prunus.masks import are_nested
from prunus.pruning.layerwise import sparse_gpt
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.pruners import get_criterion
from prunus.pruning.scopes import get_scope, parse_n_m
from prunus.seeds import make_generator
from prunus.types import MaskDict, Split

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import small

ROWS, COLUMNS = 12, 360
NAMES = ("layer", "2:4", "1:4", "4:8", "1x3", "1x4", "4x4", "3x5")
DENSITIES = (0.8, 0.6, 0.37, 0.2, 0.05, 0.004)


def asked() -> list[tuple[str, float]]:
    """Every scope with every density; N:M with its own."""
    return [(name, d) for name in NAMES for d in (own(name) or DENSITIES)]


def own(name: str) -> tuple[float, ...]:
    """The only density of N:M."""
    return (parse_n_m(name)[0] / parse_n_m(name)[1],) if parse_n_m(name) else ()


def drawn(model: nn.Module) -> nn.Module:
    return small.drawn(model, 1).double()


def seen(*shape: int) -> Tensor:
    return torch.randn(shape, generator=make_generator(1, "x"), dtype=torch.float64)


def thinned(name: str) -> MaskDict:
    """The first third of the columns pruned under the scope of this name, the others whole."""
    scores = {"weight": torch.rand(ROWS, COLUMNS, generator=make_generator(2, "scores"))}
    masks = get_scope(name)(scores, (*own(name), 0.5)[0])
    masks["weight"][:, COLUMNS // 3 :] = True
    return masks


def kept(masks: MaskDict) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("select", [1, 7, 128])
@pytest.mark.parametrize("before", [False, True], ids=["whole", "thinned"])
@pytest.mark.parametrize(("name", "density"), asked())
def test_as_many_are_kept_as_the_scope_keeps(name, density, before, select):
    model, scope = drawn(nn.Linear(COLUMNS, ROWS)), get_scope(name)
    weights, within = prunable_weights(model), thinned(name) if before else None
    done = sparse_gpt(model, seen(40, COLUMNS), select=select)(weights, density, scope, within=within)
    scores = {"weight": weights["weight"].detach().abs()}
    assert kept(done.masks) == kept(scope(scores, density, within))
    assert within is None or are_nested(done.masks, within)
    # Of the scope's own pattern: chosen again from what is kept, all of it is.
    assert torch.equal(scope(scores, density, done.masks)["weight"], done.masks["weight"])


@pytest.mark.parametrize("name", ["layer", "1x3", "1x4", "4x4", "3x5"])
def test_rounds_keep_what_the_scope_keeps(name):
    model, within = drawn(nn.Linear(300, ROWS)), None
    weights = prunable_weights(model)
    for density in (0.8, 0.6, 0.4, 0.2):
        done = sparse_gpt(model, seen(40, 300))(weights, density, get_scope(name), within=within)
        assert kept(done.masks) == {"weight": density * 300 * ROWS}
        weights, within = done.weights, done.masks


@pytest.mark.parametrize("name", ["1x3", "1x6", "1x10", "3x5", "2x100", "1x100", "1x150"])
def test_blocks_of_any_width_that_fills_the_layer_are_pruned(name):
    model = drawn(nn.Linear(300, ROWS))
    weights, split = prunable_weights(model), Split(seen(40, 300), torch.zeros(40, dtype=torch.int64))
    done = get_criterion("sparse_gpt", name).on(model, split, 0)(weights, 0.5, get_scope(name))
    assert kept(done.masks) == {"weight": 150 * ROWS}


@pytest.mark.parametrize(("name", "density"), [("1x4", 0.3), ("4x4", 0.3), ("2:4", 0.5), ("4:8", 0.5)])
def test_patterns_of_convolutions_are_counted_as_the_scope_counts(name, density):
    model, scope = drawn(nn.Sequential(nn.Conv2d(8, 12, 3))), get_scope(name)
    weights = prunable_weights(model)
    done = sparse_gpt(model, seen(20, 8, 5, 5), select=30)(weights, density, scope)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    assert kept(done.masks) == kept(scope(scores, density))
    assert torch.equal(scope(scores, density, done.masks)["0.weight"], done.masks["0.weight"])


@pytest.mark.parametrize("select", [1, 6, 128])
def test_n_m_is_chosen_m_columns_at_a_time(select):
    """Of one output 2:4 is the half of every four columns."""
    model, inputs = drawn(nn.Linear(32, 1)), seen(40, 32)
    fours = sparse_gpt(model, inputs, select=4)(prunable_weights(model), 0.5, get_scope("layer"))
    done = sparse_gpt(model, inputs, select=select)(prunable_weights(model), 0.5, get_scope("2:4"))
    assert torch.equal(done.masks["weight"], fours.masks["weight"])
    torch.testing.assert_close(done.weights["weight"], fours.weights["weight"])


def test_a_layer_that_is_emptied_is_named_and_stays_empty():
    model, within = drawn(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 1))), None
    weights = prunable_weights(model)
    for density, left in ((0.04, 4), (0.02, 2)):
        with pytest.warns(EmptyLayerWarning, match=r"1\.weight"):
            done = sparse_gpt(model, seen(40, 10))(weights, density, get_scope("layer"), within=within)
        assert kept(done.masks) == {"0.weight": left, "1.weight": 0}
        assert not done.weights["1.weight"].any()
        weights, within = done.weights, done.masks
