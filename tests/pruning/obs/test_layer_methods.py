"""Properties that ExactOBS, SparseGPT and ADMM have in common."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import DensityError, ModelError, NonFiniteError, StatisticsError
from prunus.pruning.density import num_to_keep
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from layers import IN, N, correlated, draw, linear, relative_output_errors
from objectives import admm, sparse_gpt

METHODS = {
    "exact_obs": lambda model, inputs, **kw: exact_obs(model, inputs, **kw),
    "sparse_gpt": sparse_gpt,
    "admm": admm,
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def exact_obs(model: nn.Module, inputs: Tensor, **kw: float):
    return lambda weights, density, scope, **rest: prune_in_steps(
        ExactObs(**kw).examiner(model, inputs), weights, density, scope, **rest
    )


@each_method
@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (torch.zeros(0, IN).double(), StatisticsError, "at least one example"),
        (torch.ones(4, 3).double(), StatisticsError, "does not take calibration inputs"),
        (torch.full((4, IN), torch.nan).double(), NonFiniteError, "calibration"),
        (torch.zeros(4, IN).double(), StatisticsError, "are zero in all 4"),
    ],
    ids=["empty", "shape", "nan", "zero"],
)
def test_bad_calibration_inputs_are_refused(method, inputs, error, words):
    model, weights, _ = linear()
    with pytest.raises(error, match=words):
        method(model, inputs)(weights, 0.5, SCOPES["layer"])


@each_method
def test_layer_that_is_never_reached_is_named(method):
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(IN, 2), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Spare().double()
    with pytest.raises(ModelError, match=r"never reached the layer of 'spare.weight'.*exclude"):
        method(model, correlated(N, IN))(prunable_weights(model), 0.5, SCOPES["layer"])


@each_method
def test_layers_of_other_kinds_are_named(method):
    model = nn.Sequential(nn.Embedding(6, 4)).double()
    weights = {"0.weight": model[0].weight}
    with pytest.raises(ModelError, match=r"'0.weight' is of a Embedding; exclude"):
        method(model, torch.arange(6).reshape(3, 2))(weights, 0.5, SCOPES["layer"])


@each_method
def test_densities_that_no_pattern_can_give_are_refused(method):
    model, weights, inputs = linear()
    with pytest.raises(DensityError, match=r"density 0\.5 of .* 2:4 keeps"):
        method(model, inputs)(weights, 0.3, SCOPES["2:4"])


@each_method
@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_damping_is_a_fraction_of_the_mean_curvature(method, damping):
    model, weights, inputs = linear()
    with pytest.raises(StatisticsError, match=r"[Dd]amping"):
        method(model, inputs, damping=damping)(weights, 0.5, SCOPES["layer"])


@each_method
def test_weights_that_are_not_finite_are_named(method):
    model, weights, inputs = linear()
    broken = {"weight": weights["weight"].detach().clone()}
    broken["weight"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="weight"):
        method(model, inputs)(broken, 0.5, SCOPES["layer"])


@each_method
def test_float32_agrees_with_float64(method):
    model, weights, _ = linear()
    inputs = draw(N, IN)
    double = method(model, inputs)(weights, 0.5, SCOPES["layer"])
    single = method(model.float(), inputs.float())(prunable_weights(model), 0.5, SCOPES["layer"])
    assert torch.equal(double.masks["weight"], single.masks["weight"])
    torch.testing.assert_close(
        double.weights["weight"].float(), single.weights["weight"], rtol=1e-3, atol=1e-4
    )


@each_method
def test_density_one_changes_no_weight(method):
    model, weights, inputs = linear()
    done = method(model, inputs)(weights, 1.0, SCOPES["layer"])
    assert torch.equal(done.weights["weight"], weights["weight"].detach())


@each_method
def test_same_masks_without_the_update_are_worse(method):
    """On a network of real layers, with what a layer passes on to the next."""
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 9)).double()
    inputs, weights = (
        draw(300, 8, 5, 5).cumsum(2),
        prunable_weights(tiny_networks.randomize_parameters(model, 2)),
    )
    done = method(model, inputs)(weights, 0.5, SCOPES["layer"])
    actual = layer_hessians(model, weights, inputs)
    bare = {name: weight.detach() * done.masks[name] for name, weight in weights.items()}
    updated, zeroed = (relative_output_errors(actual, weights, changed) for changed in (done.weights, bare))
    assert all(updated[name] < zeroed[name] for name in weights)
    assert set(done.seconds) == set(weights)


def test_densities_by_name_are_exact():
    model = nn.Sequential(nn.Linear(IN, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = {"0.weight": 0.35, "2.weight": 0.6}
    inputs, weights = correlated(N, IN), prunable_weights(model)
    for prune in (
        sparse_gpt(model, inputs, mask_block_size=3),
        exact_obs(model, inputs),
        admm(model, inputs),
    ):
        done = prune(weights, objective, SCOPES["layer"])
        assert {n: int(m.sum()) for n, m in done.masks.items()} == {
            n: num_to_keep(objective[n], m.numel()) for n, m in done.masks.items()
        }
