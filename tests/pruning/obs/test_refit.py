"""Refit against the least squares of each row."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import ModelError, StatisticsError
from prunus.masks import all_kept, apply_masks
from prunus.pruning.methods import METHODS, pruning_method
from prunus.pruning.obs.exact_obs import exact_obs_state
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.refit import refit, refit_layers
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.types import Split

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from layers import convolution, correlated, draw, linear, relative_output_errors

NAN = float("nan")


def zeroed(weights, density=0.5):
    """Pruned by magnitude."""
    weights = {name: weight.detach() for name, weight in weights.items()}
    masks = SCOPES["layer"].select({name: weight.abs() for name, weight in weights.items()}, density)
    return PruneResult(apply_masks(weights, masks), masks, NAN, 0.0)


@pytest.mark.parametrize("kind", ["linear", "padded", "grouped", "depthwise", "one"])
def test_weights_are_the_least_squares_of_the_masks(kind):
    model, weights, inputs = linear() if kind == "linear" else convolution(kind)
    result = zeroed(weights)
    hessians = layer_hessians(model, weights, inputs)
    exact = exact_obs_state(hessians, weights, all_kept(weights)).prune_to(result.masks)
    fitted = refit(model, weights, result, inputs)
    for name, mask in result.masks.items():
        torch.testing.assert_close(fitted.weights[name], exact.weights[name], rtol=1e-3, atol=1e-3)
        assert not fitted.weights[name][~mask].any()
    assert fitted.predicted_increase == pytest.approx(exact.predicted_increase, rel=1e-6)
    assert fitted.damping == max(hessian.damping for hessian in hessians.values())


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["magnitude", "wanda", "obs", "sparse_gpt", "admm", "fisher", "obd_hutchinson"]
)
def test_no_row_of_any_method_has_a_larger_error_than_before(name, dtype):
    layers = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 8)
    model = tiny_networks.randomize_parameters(nn.Sequential(*layers), 2).to(dtype)
    weights, inputs = prunable_weights(model), draw(80, 4, 5, 5).cumsum(2).to(dtype)
    examples = Split(inputs, torch.arange(80) % 8)
    result = pruning_method(name).prune(model, weights, 0.4, "layer", examples)
    fitted = refit(model, weights, result, inputs, damping=0.1)
    for name, hessian in layer_hessians(model, weights, inputs).items():
        before, after = (
            hessian.row_errors(weights[name].detach() - done.weights[name]) for done in (result, fitted)
        )
        assert (after <= before).all()
        assert fitted.weights[name].dtype == dtype
    assert torch.equal(fitted.masks["0.weight"], result.masks["0.weight"])


def test_refit_of_sparse_gpt_at_2_4_is_as_good_as_published_updates():
    model = nn.Linear(64, 32, bias=False)
    tiny_networks.randomize_parameters(model, 0)
    weights, inputs = prunable_weights(model), correlated(400, 64).float().relu()
    hessians = layer_hessians(model, weights, inputs)
    result = METHODS["sparse_gpt"].prune_layers(hessians, weights, 0.5, SCOPES["2:4"])
    fitted = refit_layers([hessians], weights, result)
    before, after = (
        relative_output_errors(hessians, weights, done.weights)["weight"] for done in (result, fitted)
    )
    assert after < 0.85 * before


def test_layers_that_cannot_be_refitted_are_named():
    model = nn.Sequential(nn.Embedding(6, 4)).double()
    weights = {"0.weight": model[0].weight}
    with pytest.raises(ModelError, match=r"'0.weight' is of a Embedding; exclude"):
        refit(model, weights, zeroed(weights), torch.arange(6).reshape(3, 2))


def test_layers_that_are_seen_as_others_are_refitted():
    """A transposed convolution and the projections of attention, by the names and shapes of their parameters."""
    model = Attended()
    tiny_networks.randomize_parameters(model, 0)
    weights, inputs = prunable_weights(model), (draw(40, 1, 1) + 0.3 * draw(40, 2, 4, role="noise")).float()
    result = zeroed(weights)
    fitted = refit(model, weights, result, inputs)
    changes = {}
    for name, done in (("zeroed", result), ("refitted", fitted)):
        changed = copy.deepcopy(model)
        changed.load_state_dict({**model.state_dict(), **done.weights})
        changes[name] = float((changed.first(inputs) - model.first(inputs)).detach().square().mean())
        assert all(not weight[~result.masks[key]].any() for key, weight in done.weights.items())
    assert changes["refitted"] < 0.9 * changes["zeroed"]
    assert set(fitted.weights) == set(weights)


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose1d(2, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        y = self.first(x).mT
        return self.attention(y, y, y)[0]


def test_refit_needs_examples():
    model, weights, inputs = linear()
    with pytest.raises(StatisticsError, match="at least one example"):
        refit(model, weights, zeroed(weights), inputs[:0])
