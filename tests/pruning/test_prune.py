"""`prunus.prune`: one call that prunes in place, all or nothing, and reports what it costs."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import DensityError, NoEffectWarning, StatisticsError
from prunus.masks import mask_density
from prunus.pruning.methods import METHODS, pruning_method, sample_examples, with_options
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Global, Layer, NByM
from prunus.pruning.statistics import criterion
from prunus.seeds import derive_seed
from prunus.types import Dataset, Split


@pytest.fixture(scope="module")
def data():
    return prunus.load_data("digits").take(300, 100)


@pytest.fixture(scope="module")
def trained(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    prunus.train(model, data, prunus.Recipe(4, 0.01, 25))
    return model.eval()


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_prune_without_examples_keeps_the_largest_weights(model):
    weights = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    pruned = prunus.prune(model, 0.25, scope="global")
    masks = Global().select(
        {name: weight.abs() for name, weight in weights.items()}, 0.25, seed=derive_seed(0, "ties")
    )
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name), torch.where(mask, weights[name], 0.0))
    assert pruned.report.density == 0.25
    assert [row.error_after for row in pruned.report.rows] == [None, None]
    assert set(pruned.skipped) == {name for name, _ in model.named_parameters()} - set(masks)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["magnitude", "snip", *METHODS])
def test_prune_puts_the_result_of_the_method_into_the_model(name, model, data):
    """Also the update of the remaining weights, from examples of the training split alone."""
    method = with_options(pruning_method(name), num_examples=250)
    before = {n: weight.detach().clone() for n, weight in prunable_weights(model).items()}
    other = copy.deepcopy(model)
    if (
        name == "obd"
    ):  # the Levenberg-Marquardt diagonal needs a chain of layers without BatchNorm in batch mode
        pytest.importorskip("torch")
    only_train = Dataset(data.name, data.train, data.validation, NoSplit(), data.class_names)
    pruned = prunus.prune(model, 0.5, criterion=method, calibration=only_train, seed=3)
    examples = sample_examples(data.train, 250, derive_seed(3, "prune"))
    expected = method.prune(
        other, before, 0.5, Layer(), examples, seeds=(derive_seed(3, "prune"), derive_seed(3, "ties"))
    )
    for n, weight in expected.weights.items():
        assert torch.equal(model.get_parameter(n), weight)
    moved = any(bool((expected.weights[n] != before[n])[expected.masks[n]].any()) for n in before)
    assert moved == method.updates_weights
    assert [row.density for row in pruned.report.rows] == [
        mask_density({n: m}) for n, m in expected.masks.items()
    ]


class NoSplit:
    """Stands for a split that must not be used."""

    def __getattr__(self, name):
        raise AssertionError(f"the test split was used: {name}")


def test_errors_of_the_report_are_measured_on_the_validation_split(model, data):
    dense = copy.deepcopy(model)
    report = prunus.prune(model, 0.5, criterion="obs", calibration=data).report
    inputs = data.validation.inputs.flatten(1)
    output = F.linear(inputs, dense[1].weight).detach()
    change = F.linear(inputs, (model[1].weight - dense[1].weight).detach())
    assert report.rows[0].error_after == pytest.approx(
        float(change.square().sum() / output.square().sum()), rel=1e-4
    )
    assert report.rows[0].error_after < report.rows[0].error_before
    assert report.rows[0].seconds > 0
    assert report.damping > 0


def test_report_prints_a_table_and_is_json(model, data):
    report = prunus.prune(model, 0.5, scope="2:4", calibration=data).report
    assert all(word in str(report) for word in ("1.weight", "16 × 64", "50.00 % (50.00 %)", "error, zeroed"))
    found = json.loads(json.dumps(report.to_json()))
    assert [layer["name"] for layer in found["layers"]] == ["1.weight", "4.weight"]
    assert found["layers"][0]["shape"] == [16, 64]


def test_error_curves_give_layers_different_densities(model, data):
    report = prunus.prune(model, 0.4, criterion="obs", densities="error_curves", calibration=data).report
    assert report.density == pytest.approx(0.4, abs=0.01)
    assert report.density <= 474 / 1184  # 0.4 of 1184 weights, rounded
    assert report.rows[0].density != report.rows[1].density


def test_recalibrate_changes_batchnorm_statistics_alone(model, data):
    other = copy.deepcopy(model)
    prunus.prune(model, 0.5, calibration=data)
    report = prunus.prune(other, 0.5, calibration=data, recalibrate=True).report
    assert report.num_recalibrated == 1
    names = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert changed(model.state_dict(), other) == names


def test_prune_within_masks_keeps_pruned_weights_pruned(model):
    outer = Layer().select({n: torch.rand_like(w) for n, w in prunable_weights(model).items()}, 0.6)
    prunus.prune(model, 0.5, criterion="random", within=outer)
    for name, mask in outer.items():
        assert not model.get_parameter(name)[~mask].any()


def test_prune_accepts_functions_scores_and_values(model):
    @criterion()
    def smallest(stats):
        return {name: -weight.abs() for name, weight in stats.weights.items()}

    scores = {"1.weight": -model[1].weight.detach().abs()}
    models = [copy.deepcopy(model) for _ in range(3)]
    for one, given in zip(models, (smallest, smallest.function, scores), strict=True):
        prunus.prune(one, 0.5, criterion=given, scope=NByM(2, 4), include=["1.weight"])
    assert all(not changed(models[0].state_dict(), other) for other in models[1:])
    assert torch.equal(models[0][4].weight, model[4].weight)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
def test_prune_uses_forward_and_refuses_a_loss_that_is_not_used(data):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x, scale):
            return {"logits": scale * self.layer(x.flatten(1))}

    model, split = Scaled(), data.train.take(50)
    options = {"forward": lambda module, batch: module(batch, 2.0)["logits"], "calibration": split}
    for name in ("snip", "obs", "fisher"):
        report = prunus.prune(copy.deepcopy(model), 0.5, criterion=name, **options).report
        assert report.rows[0].error_after > 0
    with pytest.raises(StatisticsError, match="Expected no loss"):
        prunus.prune(model, 0.5, criterion="obs", loss="cross_entropy", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "obs"}, StatisticsError, "Expected calibration examples for the method"),
        ({"recalibrate": True}, StatisticsError, "Expected calibration examples for recalibrate=True"),
        ({"densities": "error_curves"}, StatisticsError, "examples for densities='error_curves'"),
        ({"densities": "best"}, DensityError, "Expected densities='error_curves'"),
        ({"densities": "error_curves", "scope": "2:4"}, DensityError, "Expected the scope 'layer'"),
        ({"forward": lambda module, batch: module(batch)}, StatisticsError, "examples for forward"),
        ({"loss": "cross_entropy"}, StatisticsError, "Expected no loss"),
        ({"criterion": "movement"}, StatisticsError, "'initial' for the criterion 'movement'"),
        ({"scope": "1:4"}, DensityError, r"Expected density 0\.25"),
    ],
)
def test_prune_changes_nothing_when_an_option_is_refused(options, error, message, model):
    before = state(model)
    with pytest.raises(error, match=message):
        prunus.prune(model, 0.5, **options)
    assert not changed(before, model)


def test_prune_changes_nothing_when_examples_do_not_fit(model):
    before = state(model)
    wrong = Split(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))
    for name in ("snip", "obs", "fisher"):
        with pytest.raises(StatisticsError):
            prunus.prune(model, 0.5, criterion=name, calibration=wrong, recalibrate=True)
    assert not changed(before, model)


def test_prune_to_density_one_warns(model):
    before = state(model)
    with pytest.warns(NoEffectWarning, match="Every weight is kept"):
        prunus.prune(model, 1.0)
    assert not changed(before, model)


def test_masks_of_the_result_hold_in_training(model, data):
    pruned = prunus.prune(model, 0.5, criterion=SparseGpt(num_examples=50), calibration=data)
    prunus.train(model, data, prunus.Recipe(1, 0.01, 50), constraint=pruned.masks)
    assert [float((model[i].weight != 0).float().mean()) for i in (1, 4)] == [0.5, 0.5]


def test_importing_the_module_does_not_hide_the_function():
    import prunus.pruning.prune

    assert callable(prunus.prune)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not callable(prunus.pruning.prune)
