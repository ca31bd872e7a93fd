"""Rounds of `prunus.slim` with training between them."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.data.digits import load_digits
from prunus.errors import DensityError, SpecError, UnknownNameError

RECIPE = prunus.Recipe(epochs=1, batch_size=32, learning_rate=0.1)


@pytest.fixture(scope="module")
def data():
    return load_digits()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
    )


def test_rounds_keep_fractions_of_the_dense_network_and_train(data, tmp_path):
    x, model = data.train.inputs[:1], network()
    dense = sum(p.numel() for p in model.parameters())
    again = copy.deepcopy(model)
    settings = {"goal": "parameters", "criterion": "taylor", "refit": True, "checkpoints": tmp_path}
    rounds = prunus.slim_and_retrain(model, x, data, [0.6, 0.3], [RECIPE, RECIPE], **settings)
    assert [(pruning_round.number, len(pruning_round.epochs)) for pruning_round in rounds] == [(1, 1), (2, 1)]
    assert rounds[0].report.parameters[0] == dense
    assert rounds[1].report.parameters[0] == rounds[0].report.parameters[1] <= 0.6 * dense
    assert 0.25 * dense < sum(p.numel() for p in model.parameters()) <= 0.3 * dense
    assert prunus.evaluate(model, data.test).accuracy > 60
    epochs = []
    prunus.slim_and_retrain(again, x, data, [0.6, 0.3], [RECIPE, RECIPE], report=epochs.append, **settings)
    assert not epochs  # both rounds come from the checkpoints
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_own_function_trains_between_rounds(data):
    model, sizes = network(), []

    def fit(smaller):
        sizes.append(smaller[1].out_features)
        smaller.train()

    rounds = prunus.slim_and_retrain(model.eval(), data.train.inputs[:1], None, [1.0, 0.5, 0.5], fit=fit)
    assert sizes[0] == 24 > sizes[1] == sizes[2]
    assert not model.training
    assert [pruning_round.epochs for pruning_round in rounds] == [[], [], []]


def test_calibration_examples_of_an_iterator_serve_all_rounds(data):
    settings = {"fit": lambda model: None, "criterion": "activation"}
    models = [network(), network()]
    for model, examples in zip(models, (data.train.inputs[:50], iter([data.train.inputs[:50]])), strict=True):
        prunus.slim_and_retrain(
            model, data.train.inputs[:1], None, [0.6, 0.3], calibration=examples, **settings
        )
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in models), strict=True))


@pytest.mark.parametrize(
    ("fractions", "settings", "error", "message"),
    [
        ([], {}, DensityError, "decrease in"),
        ([0.3, 0.6], {"fit": print}, DensityError, "decrease in"),
        ([1.5], {"fit": print}, DensityError, "decrease in"),
        ([0.0], {"fit": print}, DensityError, "decrease in"),
        ([0.5], {"fit": print, "goal": "latency"}, UnknownNameError, "Unknown goal 'latency'"),
        ([0.5], {"fit": print, "macs": 0.9}, SpecError, "as goal and fractions, got macs"),
        ([0.5], {}, SpecError, "got 0 recipes"),
        (0.5, {"retrain": RECIPE}, SpecError, "Expected a list of densities and a list of recipes"),
        ([0.5], {"retrain": [RECIPE], "fit": print}, SpecError, "got 1 recipes and fit"),
        ([0.5], {"fit": 3}, SpecError, r"function \(model\) that"),
        ([0.5], {"fit": print, "checkpoints": "folder"}, SpecError, "either fit or checkpoints, got both"),
        ([0.5], {"fit": print, "report": print}, SpecError, "either fit or report, got both"),
    ],
)
def test_rounds_that_cannot_be_are_refused_before_any_work(data, fractions, settings, error, message):
    model = network()
    with pytest.raises(error, match=message):
        prunus.slim_and_retrain(model, data.train.inputs[:1], data, fractions, **settings)
    assert model[1].out_features == 24
