"""Calibration inputs and models that cannot be used have named errors."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ModelError, StatisticsError
from prunus.masks import apply_masks
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import SCOPES
from prunus.pruning.sensitivity import sensitivity
from prunus.pruning.statistics import Statistics
from prunus.seeds import make_generator
from prunus.types import Split

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from objectives import sparse_gpt


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def examples(n=60):
    draw = make_generator(0, "examples")
    return Split(torch.randn(n, 16, generator=draw), torch.randint(0, 4, (n,), generator=draw))


@pytest.mark.parametrize(
    "inputs", [{"x": 1.0}, [[torch.ones(16).tolist()]], "inputs", 3.0, torch.ones(3, 16, device="meta")]
)
def test_calibration_inputs_that_are_no_tensor_with_values_are_refused(inputs):
    model = network()
    weights = {n: w.detach() for n, w in prunable_weights(model).items()}
    labels = torch.zeros(3, dtype=torch.int64)
    calls = [
        lambda: layer_hessians(model, weights, inputs),
        lambda: recalibrate_batchnorm(model, inputs),
        lambda: make_objective(model, weights, inputs, labels),
        lambda: sparse_gpt(model, inputs)(weights, 0.5, SCOPES["layer"]),
    ]
    for call in calls:
        with pytest.raises(
            StatisticsError,
            match=r"calibration inputs|Expected (batches|examples|inputs|at least one example)",
        ):
            call()


def test_forward_that_raises_another_error_is_refused_with_the_reason():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, batch):
            return self.layer(batch["pixels"] if isinstance(batch, dict) else batch.pixels)

    model = Needs()
    with pytest.raises(StatisticsError, match=r"does not take calibration inputs.*pixels"):
        layer_hessians(model, prunable_weights(model), torch.ones(3, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_scope_takes_every_float_type(dtype):
    weights = prunable_weights(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8)).to(dtype))
    scores = CRITERIA["magnitude"](Statistics(weights))
    for name, scope in SCOPES.items():
        masks = scope.select(scores, 0.5)
        assert sum(int(m.sum()) for m in masks.values()) == sum(m.numel() for m in masks.values()) / 2, name
        assert all(
            t.dtype == dtype for t in apply_masks({n: w.detach() for n, w in weights.items()}, masks).values()
        )


def test_recalibration_takes_layers_that_are_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(input=x)

    x = torch.randn(20, 3) + 5
    model, plain = ByKeyword(), nn.BatchNorm1d(3)
    assert recalibrate_batchnorm(model, x) == recalibrate_batchnorm(plain, x) == 1
    assert torch.equal(model.norm.running_mean, plain.running_mean)


def test_model_that_cannot_be_copied_is_refused_by_name():
    model = nn.Sequential(nn.Linear(16, 4))
    model.last_output = model(torch.ones(1, 16))  # a result of a computation
    for call in (
        lambda: sensitivity(model, examples()),
        lambda: prune_in_steps(
            ExactObs().examiner(model, examples().inputs), prunable_weights(model), 0.5, SCOPES["layer"]
        ),
    ):
        with pytest.raises(ModelError, match="Sequential cannot be copied"):
            call()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)


def test_progress_of_retraining_with_a_pruner_is_reported():
    steps = []
    split = examples()
    data = prunus.Dataset("toy", split, split, split, tuple("abcd"))
    prunus.prune_and_retrain(
        network(),
        data,
        [0.5],
        [prunus.Recipe(epochs=0, learning_rate=0.1, batch_size=20)],
        criterion="obs",
        scope=SCOPES["layer"],
        progress=lambda *step: steps.append(step),
    )
    assert any("calibration" in what for what, _, _ in steps)
