"""ADMM beside ExactOBS and SparseGPT, and its counts under every scope."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import DensityError, EmptyLayerWarning, NonFiniteError, StatisticsError
from prunus.masks import all_kept, are_nested
from prunus.pruning.obs.admm import Admm
from prunus.pruning.obs.exact_obs import exact_obs_state
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import parse_scope
from prunus.seeds import make_generator

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from layers import IN, N, convolution, correlated, draw, linear
from objectives import admm

ROWS, COLUMNS = 64, 96


@cache
def laplace_layer():
    """A layer of Laplace weights with correlated inputs of ReLU."""
    generator = make_generator(0, "layer")
    mix = torch.randn(2, COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    inputs = torch.randn(1024, COLUMNS, generator=generator) @ mix[0] @ (torch.eye(COLUMNS) + 0.5 * mix[1])
    signs = torch.randn(ROWS, COLUMNS, generator=generator).sign()
    weights = {"weight": -torch.rand(ROWS, COLUMNS, generator=generator).clamp(min=1e-6).log() * signs * 0.05}
    return weights, layer_hessians(nn.Linear(COLUMNS, ROWS), weights, inputs.relu())


@pytest.mark.parametrize(
    ("name", "density", "of_exact", "of_sparse_gpt"),
    [
        ("layer", 0.5, 1.05, 0.70),
        ("layer", 0.1, 1.03, 0.70),
        ("2:4", 0.5, 0.95, 0.78),
        ("1x4", 0.25, 1.03, 0.74),
    ],
)
def test_error_is_near_that_of_exact_obs_and_below_that_of_sparse_gpt(name, density, of_exact, of_sparse_gpt):
    weights, hessians = laplace_layer()
    scope = parse_scope(name)
    state = exact_obs_state(hessians, weights, all_kept(weights), scope)
    exact = state.prune_to(scope.select(state.scores(), density)).predicted_increase
    done = Admm().prune_layers(hessians, weights, density, scope)
    by_columns = SparseGpt().prune_layers(hessians, weights, density, scope)
    assert done.predicted_increase <= of_exact * exact
    assert done.predicted_increase <= of_sparse_gpt * by_columns.predicted_increase


def test_more_iterations_lower_the_error():
    weights, hessians = laplace_layer()
    short, long = (
        Admm(num_iterations=n).prune_layers(hessians, weights, 0.3, parse_scope("layer")) for n in (15, 60)
    )
    assert long.predicted_increase < short.predicted_increase


@pytest.mark.parametrize("method", [Admm, SparseGpt])
def test_a_weight_without_a_hessian_is_named(method):
    weights, hessians = laplace_layer()
    with pytest.raises(KeyError, match="other"):
        method().prune_layers(hessians, weights | {"other": weights["weight"]}, 0.5, parse_scope("layer"))


def test_predicted_increase_is_that_of_the_damped_error():
    weights, hessians = laplace_layer()
    done = Admm().prune_layers(hessians, weights, 0.5, parse_scope("layer"))
    change = done.weights["weight"] - weights["weight"]
    error = hessians["weight"].error(change) + hessians["weight"].damping / 2 * float(change.square().sum())
    assert done.predicted_increase == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("has_earlier_masks", [False, True])
@pytest.mark.parametrize(
    ("name", "density"), [("layer", 0.37), ("layer", 0.004), ("2:4", 0.5), ("1:4", 0.25), ("3x5", 0.3)]
)
def test_masks_keep_as_many_weights_as_the_scope(name, density, has_earlier_masks):
    model = tiny_networks.randomize_parameters(nn.Linear(40, 12), 1).double()
    weights, scope, within = prunable_weights(model), parse_scope(name), None
    scores = {"weight": weights["weight"].detach().abs()}
    if has_earlier_masks:
        within = scope.select({"weight": draw(12, 40)}, max(density, 0.5) if ":" not in name else density)
    done = admm(model, correlated(60, 40))(weights, density, scope, within=within)
    assert int(done.masks["weight"].sum()) == int(scope.select(scores, density, within)["weight"].sum())
    assert torch.equal(scope.select(scores, density, done.masks)["weight"], done.masks["weight"])
    assert within is None or are_nested(done.masks, within)
    assert not done.weights["weight"][~done.masks["weight"]].any()


def test_global_scope_gives_the_density_to_the_layers_with_the_largest_errors():
    model = tiny_networks.randomize_parameters(nn.Sequential(nn.Linear(IN, 16), nn.Linear(16, 16)), 0)
    with torch.no_grad():
        model[1].weight.mul_(0.01)
    done = admm(model, correlated(N, IN).float())(prunable_weights(model), 0.5, parse_scope("global"))
    num_kept = {name: int(mask.sum()) for name, mask in done.masks.items()}
    assert sum(num_kept.values()) == (16 * IN + 256) // 2
    assert num_kept["0.weight"] > 0.9 * 16 * IN


def test_weights_of_given_masks_are_near_their_least_squares():
    weights, hessians = laplace_layer()
    masks = {"weight": torch.rand(ROWS, COLUMNS, generator=make_generator(1, "mask")) < 0.5}
    done = Admm().prune_layers(hessians, weights, 0.5, parse_scope(lambda *arguments: masks))
    exact = exact_obs_state(hessians, weights, all_kept(weights)).prune_to(masks)
    assert torch.equal(done.masks["weight"], masks["weight"])
    assert exact.predicted_increase <= done.predicted_increase <= 1.01 * exact.predicted_increase


def test_groups_of_a_convolution_are_layers_of_their_own():
    """Doubling the inputs and halving the weights of one group changes nothing for the others."""
    model, weights, inputs = convolution("grouped")
    model[0].bias = None
    hessian = layer_hessians(model, weights, inputs)["0.weight"]
    done = Admm(damping=0.0).prune_layers({"0.weight": hessian}, weights, 0.5, parse_scope("layer"))
    scaled = {"0.weight": weights["0.weight"].detach().clone()}
    scaled["0.weight"][:3] /= 2
    more = inputs.clone()
    more[:, :2] *= 2
    again = Admm(damping=0.0).prune_layers(
        layer_hessians(model, scaled, more, damping=0.0), scaled, 0.5, parse_scope("layer")
    )
    first = Admm(damping=0.0).prune_layers(
        layer_hessians(model, weights, inputs, damping=0.0), weights, 0.5, parse_scope("layer")
    )
    assert torch.equal(first.masks["0.weight"], again.masks["0.weight"])
    torch.testing.assert_close(first.weights["0.weight"][3:], again.weights["0.weight"][3:])
    torch.testing.assert_close(first.weights["0.weight"][:3], 2 * again.weights["0.weight"][:3])
    assert done.damping > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_other_dtypes_keep_their_dtype(dtype):
    model, weights, _ = linear()
    inputs = draw(N, IN)
    double = admm(model, inputs)(weights, 0.5, parse_scope("layer"))
    weights = {name: weight.detach().to(dtype) for name, weight in weights.items()}
    done = admm(model.to(dtype), inputs.to(dtype))(weights, 0.5, parse_scope("layer"))
    assert done.weights["weight"].dtype == dtype
    torch.testing.assert_close(
        done.weights["weight"].double(), double.weights["weight"], rtol=0.05, atol=0.05
    )


def test_inputs_that_are_always_zero_lose_their_weights_first():
    model, weights, inputs = linear()
    inputs[:, [1, 4]] = 0
    done = admm(model, inputs, damping=1e-4)(weights, 0.5, parse_scope("layer"))
    assert not done.masks["weight"][:, [1, 4]].any()
    with pytest.raises(NonFiniteError, match=r"2 inputs of 'weight' are always zero .* damping=0\.01"):
        admm(model, inputs, damping=0.0)(weights, 0.75, parse_scope("layer"))


@pytest.mark.parametrize(
    "settings", [{"num_steps": 2}, {"num_steps": 0}, {"num_examples": 0}, {"num_iterations": 4}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(StatisticsError, match="ADMM"):
        Admm(**settings)


def test_more_weights_than_earlier_masks_keep_are_refused():
    model, weights, inputs = linear()
    within = parse_scope("layer").select({"weight": weights["weight"].detach().abs()}, 0.3)
    with pytest.raises(DensityError, match="lower the density"):
        admm(model, inputs)(weights, 0.5, parse_scope("layer"), within=within)


def test_emptied_layer_is_named_once():
    model = tiny_networks.randomize_parameters(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 1)), 0)
    with pytest.warns(EmptyLayerWarning, match=r"1\.weight") as warned:
        admm(model, draw(40, 10).float())(prunable_weights(model), 0.04, parse_scope("layer"))
    assert len([w for w in warned if w.category is EmptyLayerWarning]) == 1
