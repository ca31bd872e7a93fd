"""SparseGPT against its definition, and its counts under every scope."""

import gc
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import EmptyLayerWarning
from prunus.masks import all_kept, are_nested
from prunus.pruning.density import num_to_keep
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.fallback import limit_layer_updates
from prunus.pruning.obs.hessian import STRIPE_ROWS, layer_hessians
from prunus.pruning.obs.sparse_gpt import MAX_SOLVED_COLUMNS, ColumnPruner, SparseGpt, _upper_factor
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, NByM, parse_scope
from prunus.seeds import make_generator
from prunus.types import MaskDict, Split

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from layers import IN, OUT, N, convolution, correlated, draw, linear
from objectives import sparse_gpt

ROWS, COLUMNS = 12, 360
NAMES = ("layer", "2:4", "1:4", "4:8", "1x3", "1x4", "4x4", "3x5")
DENSITIES = (0.6, 0.37, 0.05, 0.004)


def scopes_and_densities() -> list[tuple[str, float]]:
    """Every scope with every density; N:M with its own."""
    return [(name, d) for name in NAMES for d in (fixed_densities(name) or DENSITIES)]


def fixed_densities(name: str) -> tuple[float, ...]:
    """The only density of N:M."""
    scope = parse_scope(name)
    return (scope.n / scope.m,) if isinstance(scope, NByM) else ()


def randomized(model: nn.Module) -> nn.Module:
    return tiny_networks.randomize_parameters(model, 1).double()


def random_inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=make_generator(1, "x"), dtype=torch.float64)


def thinned_masks(name: str) -> MaskDict:
    """The first third of the columns pruned under the scope of this name, the others whole."""
    scores = {"weight": torch.rand(ROWS, COLUMNS, generator=make_generator(2, "scores"))}
    masks = parse_scope(name).select(scores, (*fixed_densities(name), 0.5)[0])
    masks["weight"][:, COLUMNS // 3 :] = True
    return masks


def kept_counts(masks: MaskDict) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("select", [1, 7, 128])
@pytest.mark.parametrize("before", [False, True], ids=["all_at_once", "thinned"])
@pytest.mark.parametrize(("name", "density"), scopes_and_densities())
def test_masks_keep_as_many_weights_as_the_scope(name, density, before, select):
    model, scope = randomized(nn.Linear(COLUMNS, ROWS)), parse_scope(name)
    weights, within = prunable_weights(model), thinned_masks(name) if before else None
    done = sparse_gpt(model, random_inputs(40, COLUMNS), mask_block_size=select)(
        weights, density, scope, within=within
    )
    scores = {"weight": weights["weight"].detach().abs()}
    assert kept_counts(done.masks) == kept_counts(scope.select(scores, density, within))
    assert within is None or are_nested(done.masks, within)
    # Of the scope's own pattern: chosen again from what is kept, all of it is.
    assert torch.equal(scope.select(scores, density, done.masks)["weight"], done.masks["weight"])


@pytest.mark.parametrize("name", ["layer", "1x3", "1x4", "4x4", "3x5"])
def test_rounds_keep_as_many_weights_as_the_scope(name):
    model, within = randomized(nn.Linear(300, ROWS)), None
    weights = prunable_weights(model)
    for density in (0.8, 0.6, 0.4, 0.2):
        done = sparse_gpt(model, random_inputs(40, 300))(weights, density, parse_scope(name), within=within)
        assert kept_counts(done.masks) == {"weight": density * 300 * ROWS}
        weights, within = done.weights, done.masks


@pytest.mark.parametrize("name", ["1x3", "1x6", "1x10", "3x5", "2x100", "1x100", "1x150"])
def test_blocks_of_any_width_that_fills_the_layer_are_pruned(name):
    model = randomized(nn.Linear(300, ROWS))
    weights, split = (
        prunable_weights(model),
        Split(random_inputs(40, 300), torch.zeros(40, dtype=torch.int64)),
    )
    done = SparseGpt().prune(model, weights, 0.5, name, split)
    assert kept_counts(done.masks) == {"weight": 150 * ROWS}


@pytest.mark.parametrize(("name", "density"), [("1x4", 0.3), ("4x4", 0.3), ("2:4", 0.5), ("4:8", 0.5)])
def test_patterns_of_convolutions_are_counted_as_the_scope_counts(name, density):
    model, scope = randomized(nn.Sequential(nn.Conv2d(8, 12, 3))), parse_scope(name)
    weights = prunable_weights(model)
    done = sparse_gpt(model, random_inputs(20, 8, 5, 5), mask_block_size=30)(weights, density, scope)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    assert kept_counts(done.masks) == kept_counts(scope.select(scores, density))
    assert torch.equal(scope.select(scores, density, done.masks)["0.weight"], done.masks["0.weight"])


@pytest.mark.parametrize("select", [1, 6, 128])
def test_n_by_m_is_selected_m_columns_at_a_time(select):
    """Of one output 2:4 is the half of every four columns."""
    model, inputs = randomized(nn.Linear(32, 1)), random_inputs(40, 32)
    fours = sparse_gpt(model, inputs, mask_block_size=4)(prunable_weights(model), 0.5, parse_scope("layer"))
    done = sparse_gpt(model, inputs, mask_block_size=select)(prunable_weights(model), 0.5, parse_scope("2:4"))
    assert torch.equal(done.masks["weight"], fours.masks["weight"])
    torch.testing.assert_close(done.weights["weight"], fours.weights["weight"])


def test_emptied_layer_is_named_and_stays_empty():
    model, within = randomized(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 1))), None
    weights = prunable_weights(model)
    for density, left in ((0.04, 4), (0.02, 2)):
        with pytest.warns(EmptyLayerWarning, match=r"1\.weight"):
            done = sparse_gpt(model, random_inputs(40, 10))(
                weights, density, parse_scope("layer"), within=within
            )
        assert kept_counts(done.masks) == {"0.weight": left, "1.weight": 0}
        assert not done.weights["1.weight"].any()
        weights, within = done.weights, done.masks


def by_columns(weight: Tensor, inverse: Tensor, density: float, select: int) -> tuple[Tensor, Tensor]:
    """The schedule as its definition: the inverse of the columns to come, downdated one by one."""
    w, inverse, mask = weight.clone(), inverse.clone(), torch.zeros_like(weight, dtype=torch.bool)
    share = num_to_keep(density, w.numel()) / w.numel()
    factors, all_at_once = [], inverse.clone()
    for c in range(w.shape[1]):
        factors.append(all_at_once[c, c].clone())
        all_at_once = all_at_once - torch.outer(all_at_once[:, c], all_at_once[c]) / all_at_once[c, c]
    spent = 0
    for c in range(w.shape[1]):
        if c % select == 0:
            end = min(c + select, w.shape[1])
            scores = w[:, c:end].square() / torch.stack(factors[c:end])
            k = num_to_keep(share, len(w) * end) - spent
            spent += k
            best = scores.flatten().argsort(descending=True)[:k]
            selected = torch.zeros(scores.numel(), dtype=torch.bool)
            selected[best] = True
            mask[:, c:end] = selected.reshape(scores.shape)
        lost = torch.where(mask[:, c], 0.0, w[:, c]) / inverse[c, c]
        w -= torch.outer(lost, inverse[c])
        w[:, c] = torch.where(mask[:, c], w[:, c], 0.0)
        inverse = inverse - torch.outer(inverse[:, c], inverse[c]) / inverse[c, c]
    return w, mask


@pytest.mark.parametrize("select", [1, 2, 3, 4, 8, 128])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.9])
def test_recursive_halves_equal_the_definition_column_by_column(select, density):
    model, weights, _ = linear()
    inputs = draw(N, IN)
    done = sparse_gpt(model, inputs, mask_block_size=select)(weights, density, SCOPES["layer"])
    actual = layer_hessians(model, weights, inputs)["weight"]
    hand, mask = by_columns(weights["weight"].detach(), actual.damped()[0].inverse(), density, select)
    assert torch.equal(done.masks["weight"], mask)
    torch.testing.assert_close(done.weights["weight"], hand * mask)
    assert int(mask.sum()) == num_to_keep(density, OUT * IN)


@pytest.mark.parametrize("size", [IN, 2 * MAX_SOLVED_COLUMNS + 45, STRIPE_ROWS + 45])
def test_factor_is_that_of_the_inverse(size):
    model, inputs = nn.Linear(size, 1, bias=False).double(), correlated(N, size)
    actual = layer_hessians(model, prunable_weights(model), inputs)["weight"]
    upper = _upper_factor("weight", actual, 0, torch.float64)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, actual.damped()[0].inverse())


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
def test_factors_are_released_before_the_update_is_checked(monkeypatch):
    """The check needs copies of the weights, at a time when the Hessian is in memory too."""
    model, weights, inputs = linear()
    alive = []

    def check(*arguments):
        gc.collect()
        alive.extend(value for value in gc.get_objects() if type(value) is ColumnPruner)
        return limit_layer_updates(*arguments)

    monkeypatch.setattr("prunus.pruning.obs.sparse_gpt.limit_layer_updates", check)
    done = sparse_gpt(model, inputs)(weights, 0.5, SCOPES["layer"])
    assert int(done.masks["weight"].sum()) == num_to_keep(0.5, IN * OUT)
    assert not alive


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("kind", ["grouped", "depthwise", "padded"])
def test_groups_of_a_convolution_are_layers_of_their_own(kind):
    model, weights, inputs = convolution(kind)
    layer, groups = model[0], model[0].groups
    done = sparse_gpt(model, inputs, mask_block_size=None)(weights, 0.5, SCOPES["layer"])
    for group in range(groups):
        rows = slice(group * layer.out_channels // groups, (group + 1) * layer.out_channels // groups)
        ins = slice(group * layer.in_channels // groups, (group + 1) * layer.in_channels // groups)
        alone = nn.Conv2d(
            layer.in_channels // groups, layer.out_channels // groups, 3, layer.stride, layer.padding
        ).double()
        with torch.no_grad():
            alone.weight.copy_(layer.weight[rows])
        # The damping is a share of the mean over all groups; of one group alone it is another.
        share = 0.01 * float(
            layer_hessians(model, weights, inputs)["0.weight"].damping
            / layer_hessians(alone, prunable_weights(alone), inputs[:, ins])["weight"].damping
        )
        fixed = done.masks["0.weight"][rows]
        own_result = sparse_gpt(alone, inputs[:, ins], mask_block_size=None, damping=share)(
            prunable_weights(alone), 0.5, lambda scores, density, within, seed, fixed=fixed: {"weight": fixed}
        )
        torch.testing.assert_close(own_result.weights["weight"], done.weights["0.weight"][rows])


def test_predicted_increase_is_that_of_the_damped_error():
    """The columns before a deletion cannot make up for it: the cost is that of moving the columns after it alone."""
    model, weights, _ = linear()
    inputs = draw(N, IN)
    done = sparse_gpt(model, inputs)(weights, 0.5, SCOPES["layer"])
    actual = layer_hessians(model, weights, inputs)["weight"]
    change = done.weights["weight"] - weights["weight"].detach()
    damped = actual.error(change) + actual.damping / 2 * float(change.square().sum())
    assert done.predicted_increase == pytest.approx(damped)


def test_with_the_same_masks_exact_obs_is_never_worse():
    model, weights, inputs = linear()
    by_columns_result = sparse_gpt(model, inputs, mask_block_size=4)(weights, 0.5, SCOPES["layer"])
    exact = ExactObs().examiner(model, inputs)(weights, all_kept(weights)).prune_to(by_columns_result.masks)
    assert exact.predicted_increase <= by_columns_result.predicted_increase * (1 + 1e-9)


def test_global_scope_selects_before_any_update():
    model = tiny_networks.randomize_parameters(
        nn.Sequential(nn.Linear(IN, 5), nn.Tanh(), nn.Linear(5, 3)), 0
    ).double()
    inputs, weights = correlated(N, IN), prunable_weights(model)
    done = sparse_gpt(model, inputs)(weights, 0.5, SCOPES["global"])
    same = sparse_gpt(model, inputs, mask_block_size=None)(weights, 0.5, SCOPES["global"])
    assert all(torch.equal(done.masks[name], same.masks[name]) for name in weights)
    assert sum(int(mask.sum()) for mask in done.masks.values()) == num_to_keep(0.5, 5 * IN + 15)


@pytest.mark.parametrize("select", [2, None])
def test_masks_are_nested_in_earlier_masks(select):
    model, weights, inputs = linear()
    before = SCOPES["layer"].select({"weight": weights["weight"].detach().abs()}, 0.6)
    done = sparse_gpt(model, inputs, mask_block_size=select)(weights, 0.3, SCOPES["layer"], within=before)
    assert are_nested(done.masks, before)
    assert int(done.masks["weight"].sum()) == num_to_keep(0.3, OUT * IN)
    assert not done.weights["weight"][~done.masks["weight"]].any()
