"""The Hessian of a layer's output error against sums by hand."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import ERROR_COLUMNS, STRIPE_ROWS, layer_hessians
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.seeds import make_generator

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from layers import CONVOLUTIONS, IN, N, convolution, correlated, draw, linear
from objectives import sparse_gpt


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_error_of_h_is_that_of_the_outputs(kind):
    model, weights, inputs = convolution(kind)
    change = draw(*weights["0.weight"].shape, role="change")
    actual = layer_hessians(model, weights, inputs, batch_size=4)["0.weight"]
    before = model(inputs)
    with torch.no_grad():
        model[0].weight.add_(change)
    message = (model(inputs) - before).detach().square().sum() / len(inputs)
    assert actual.error(change) == pytest.approx(float(message), rel=1e-9)


def test_error_is_that_of_the_outputs_of_wide_layers_too():
    size = 2 * ERROR_COLUMNS + 45
    model, inputs, change = nn.Linear(size, 3).double(), correlated(N, size), draw(3, size)
    actual = layer_hessians(model, prunable_weights(model), inputs)["weight"]
    by_hand = (inputs @ change.T).square().sum() / N
    assert actual.error(change) == pytest.approx(float(by_hand), rel=1e-9)


def test_h_is_twice_the_mean_of_the_outer_products():
    model, weights, inputs = linear()
    actual = layer_hessians(model, weights, inputs, damping=0.1)["weight"]
    hand = 2 * sum(torch.outer(x, x) for x in inputs) / N
    torch.testing.assert_close(actual.hessian[0], hand)
    assert actual.damping == pytest.approx(0.1 * float(hand.diagonal().mean()))
    assert (actual.num_vectors, actual.num_zero_inputs) == (N, 0)


@pytest.mark.parametrize("batch", [1, 7, 40, 100])
def test_h_is_equal_for_any_batch_size(batch):
    model, weights, inputs = convolution("padded")
    all_at_once, parts = (
        layer_hessians(model, weights, inputs, batch_size=size)["0.weight"].hessian for size in (100, batch)
    )
    torch.testing.assert_close(all_at_once, parts)


def test_inputs_beyond_the_buffer_are_multiplied_directly():
    model, weights, _ = linear()
    inputs = correlated(3000, IN)
    actual = layer_hessians(model, weights, inputs, batch_size=100)["weight"]
    torch.testing.assert_close(actual.hessian[0], 2 * inputs.T @ inputs / 3000)


@pytest.mark.parametrize("batch", [300, 1500])
def test_h_is_symmetric_where_it_is_summed_in_stripes(batch):
    model, inputs = nn.Linear(2 * STRIPE_ROWS + 76, 1, bias=False).double(), draw(1500, 2 * STRIPE_ROWS + 76)
    actual = layer_hessians(model, prunable_weights(model), inputs, batch_size=batch)["weight"]
    torch.testing.assert_close(actual.hessian[0], 2 * inputs.T @ inputs / 1500)
    assert actual.num_vectors == 1500


def test_hessian_counts_the_calibration_examples_alone_when_a_batch_has_many_inputs():
    """Two images of 40 × 40 pixels are more inputs than are collected before they are multiplied."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
    images = torch.randn(3, 2, 40, 40, generator=make_generator(0, "images"))
    change = torch.randn(3, 2, 3, 3, generator=make_generator(0, "change"))
    actual = layer_hessians(model, prunable_weights(model), images)["0.weight"]
    error = F.conv2d(images, change, padding=1).double().square().sum() / len(images)
    assert not actual.hessian.requires_grad
    assert actual.error(change) == pytest.approx(float(error), rel=1e-5)


def test_h_is_of_the_inputs_before_the_model_overwrites_them():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x += self.fc(x)
            return x

    model, inputs = Residual(), draw(6, 3)
    actual = layer_hessians(model, prunable_weights(model), inputs)["fc.weight"]
    torch.testing.assert_close(actual.hessian[0], 2 * inputs.T @ inputs / 6)


def test_sequences_count_every_position():
    model, weights, _ = linear()
    inputs = draw(5, 3, IN)
    actual = layer_hessians(model, weights, inputs)["weight"]
    rows = inputs.reshape(15, IN)
    torch.testing.assert_close(actual.hessian[0], 2 * rows.T @ rows / 5)
    assert actual.num_vectors == 15


def test_h_sums_over_all_calls_of_a_layer():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    model, inputs = Twice(), draw(6, 3)
    second = model.fc(inputs).detach()
    actual = layer_hessians(model, prunable_weights(model), inputs)["fc.weight"]
    torch.testing.assert_close(actual.hessian[0], 2 * (inputs.T @ inputs + second.T @ second) / 6)


def test_model_is_not_changed():
    layers = nn.Linear(IN, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)
    model = tiny_networks.randomize_parameters(nn.Sequential(*layers), 0).double().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer_hessians(model, prunable_weights(model), correlated(N, IN))
    prune_in_steps(
        ExactObs().examiner(model, correlated(N, IN)), prunable_weights(model), 0.5, SCOPES["layer"]
    )
    sparse_gpt(model, draw(N, IN))(prunable_weights(model), 0.5, SCOPES["layer"])
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not module._forward_pre_hooks for module in model.modules())
