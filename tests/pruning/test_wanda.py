"""Wanda: scores from the norms of the inputs."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ModelError, StatisticsError
from prunus.pruning.criteria.activations import wanda
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.statistics import collect

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import tiny_networks
from layers import CONVOLUTIONS, convolution, correlated, draw, linear, relative_output_errors


@pytest.mark.parametrize("kind", ["linear", *CONVOLUTIONS])
def test_squared_score_is_the_error_of_removing_the_weight(kind):
    model, weights, inputs = linear() if kind == "linear" else convolution(kind)
    ((name, weight),) = weights.items()
    scores = wanda(collect(model, weights, {"input_norms"}, inputs))[name]
    before = model(inputs)
    for place in (0, weight.numel() // 2, weight.numel() - 1):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[place] = 0
        error = (changed(inputs) - before).detach().square().sum()
        assert float(scores.flatten()[place].square()) == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("scope", ["layer", "2:4", "1x4"])
def test_output_error_is_below_that_of_magnitude(scope):
    model, other = (tiny_networks.randomize_parameters(nn.Linear(64, 32), 0) for _ in range(2))
    weights = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    inputs = correlated(200, 64).float() * (2 * draw(64, role="scale")).exp().float()
    hessians, examples = layer_hessians(model, weights, inputs), (inputs, torch.zeros(200, dtype=torch.int64))
    prunus.prune(model, 0.5, criterion="wanda", scope=scope, calibration=examples)
    prunus.prune(other, 0.5, criterion="magnitude", scope=scope)
    by_inputs, by_magnitude = (
        relative_output_errors(hessians, weights, {"weight": pruned.weight})["weight"]
        for pruned in (model, other)
    )
    assert by_inputs < 0.7 * by_magnitude


def test_layers_of_sequences_and_several_calls_count_every_input():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False).double()

        def forward(self, x):
            return self.fc(self.fc(x))

    model, inputs = Twice(), draw(6, 5, 3)
    rows = torch.cat([inputs, model.fc(inputs).detach()]).reshape(-1, 3)
    norms = collect(model, prunable_weights(model), {"input_norms"}, inputs).input_norms
    torch.testing.assert_close(norms["fc.weight"], rows.square().sum(0).sqrt().expand(3, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_are_at_least_float32(dtype):
    model = tiny_networks.randomize_parameters(nn.Linear(8, 4), 0).to(dtype)
    stats = collect(model, prunable_weights(model), {"input_norms"}, draw(300, 8).to(dtype) * 100)
    assert stats.input_norms["weight"].dtype == torch.promote_types(dtype, torch.float32)
    assert wanda(stats)["weight"].isfinite().all()


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (nn.Linear(3, 2), torch.zeros(4, 3), StatisticsError, r"inputs of the layer of 'weight' are zero"),
        (nn.Linear(3, 2), torch.zeros(0, 3), StatisticsError, "at least one example"),
        (nn.ConvTranspose2d(2, 2, 2), torch.ones(1, 2, 4, 4), ModelError, r"ConvTranspose2d; exclude"),
    ],
)
def test_layers_without_norms_are_refused(model, inputs, error, message):
    with pytest.raises(error, match=message):
        collect(model, prunable_weights(model), {"input_norms"}, inputs)
