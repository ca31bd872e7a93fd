"""`prunus.prune`: one call that prunes in place, all or nothing, and reports what it costs."""

import copy
import json
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.data.examples import sample_examples
from prunus.errors import DensityError, ModelError, NoEffectWarning, StatisticsError
from prunus.masks import mask_density
from prunus.pruning.methods import METHODS, pruning_method, with_options
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Global, Layer, NByM
from prunus.pruning.statistics import criterion
from prunus.seeds import derive_seed
from prunus.training.losses import LOSSES
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
    assert [row.error_updated for row in pruned.report.rows] == [None, None]
    assert set(pruned.skipped) == {name for name, _ in model.named_parameters()} - set(masks)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["magnitude", "snip", *METHODS])
def test_prune_puts_the_result_of_the_method_into_the_model(name, model, data):
    """Also the update of the remaining weights, from examples of the training split alone."""
    method = with_options(pruning_method(name), num_examples=250)
    before = {n: weight.detach().clone() for n, weight in prunable_weights(model).items()}
    other = copy.deepcopy(model)
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
    assert report.rows[0].error_updated == pytest.approx(
        float(change.square().sum() / output.square().sum()), rel=1e-4
    )
    assert report.rows[0].error_updated < report.rows[0].error_zeroed
    assert report.rows[0].seconds > 0
    assert report.damping > 0


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(2, 2, 3), nn.Conv1d(2, 2, 3)])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparse_gpt"])
def test_a_layer_that_is_called_without_examples_is_not_reached(layer, criterion):
    """As an expert that no token is sent to."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = copy.deepcopy(layer), copy.deepcopy(layer)

        def forward(self, x):
            return torch.cat([self.first(x), self.other(x[:0])]).flatten(1)

    inputs = torch.randn(20, *{1: (4,), 2: (2, 5), 3: (2, 5, 5)}[max(1, layer.weight.dim() - 1)])
    if criterion == "magnitude":
        report = prunus.prune(Experts(), 0.5, criterion=criterion, calibration=inputs).report
        assert report.rows[0].error_zeroed is not None
        assert "never reached the layer of 'other.weight'" in report.unmeasured["other.weight"]
    else:
        with pytest.raises(ModelError, match=r"never reached the layer of 'other\.weight'"):
            prunus.prune(Experts(), 0.5, criterion=criterion, calibration=inputs)


def test_report_prints_a_table_and_is_json(model, data):
    report = prunus.prune(model, 0.5, scope="2:4", calibration=data).report
    assert all(word in str(report) for word in ("1.weight", "16 × 64", "50.00 % (50.00 %)", "error, zeroed"))
    content = json.loads(json.dumps(report.to_json()))
    assert [layer["name"] for layer in content["layers"]] == ["1.weight", "4.weight"]
    assert content["layers"][0]["shape"] == [16, 64]
    assert content["predicted_increase"] is None
    assert content["unmeasured"] == {}
    report = prunus.prune(model, 0.25, criterion="fisher", calibration=data).report
    assert report.to_json()["predicted_increase"] == report.predicted_increase > 0


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


@pytest.mark.parametrize("recalibrate", [False, True])
def test_a_sparse_buffer_stays_as_it_is(recalibrate, model, data):
    model.register_buffer("graph", torch.eye(3).to_sparse())
    prunus.prune(model, 0.5, calibration=data, recalibrate=recalibrate)
    assert torch.equal(model.graph.to_dense(), torch.eye(3))


def test_prune_within_masks_keeps_pruned_weights_pruned(model):
    outer = Layer().select({n: torch.rand_like(w) for n, w in prunable_weights(model).items()}, 0.6)
    prunus.prune(model, 0.5, criterion="random", within=outer)
    for name, mask in outer.items():
        assert not model.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("method", ["magnitude", "sparse_gpt"])
def test_a_weight_without_an_earlier_mask_is_kept_as_a_whole(method, model, data):
    other, mask = copy.deepcopy(model), torch.rand_like(model[1].weight) < 0.6
    ones = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    options = {"criterion": method, "calibration": data.train.inputs}
    prunus.prune(model, 0.5, within={"1.weight": mask}, **options)
    prunus.prune(other, 0.5, within=ones | {"1.weight": mask}, **options)
    assert not changed(model.state_dict(), other)
    assert not model[1].weight[~mask].any()


def test_an_earlier_mask_may_have_any_name_of_a_tied_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = torch.eye(4, dtype=torch.bool)
    pruned = prunus.prune(model, 0.25, within={"1.weight": mask})
    assert torch.equal(pruned.masks["0.weight"], mask)
    pruned = prunus.prune(model, 2 / 16, within={"0.weight": mask, "1.weight": mask.cumsum(0) == 1})
    assert pruned.masks["0.weight"].sum() == 2
    assert not (pruned.masks["0.weight"] & ~mask).any()


def test_an_earlier_mask_of_a_weight_that_is_not_pruned_is_refused(model):
    """Training with the masks of the result would restore what it had pruned."""
    before = state(model)
    within = {"1.weight": torch.ones(16, 64, dtype=torch.bool), "4.weight": torch.rand(10, 16) < 0.5}
    with pytest.raises(ModelError, match=r"earlier masks of the weights to prune.* got one of '4\.weight'"):
        prunus.prune(model, 0.25, within=within, exclude=["4.*"])
    assert not changed(before, model)
    assert list(prunus.prune(model, 0.25, within=within, exclude=["1.*"]).masks) == ["4.weight"]


def test_a_model_that_cannot_be_copied_is_refused_by_name():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match="Sequential cannot be copied"):
        prunus.prune(model, 0.5)


def test_a_model_need_not_be_copied_where_weights_alone_are_used():
    model = nn.Sequential(nn.Linear(4, 4))
    model.lock = threading.Lock()
    assert prunus.prune(model, 0.5).density == 0.5


def test_prune_accepts_functions_scores_and_values(model):
    @criterion()
    def smallest(stats):
        return {name: -weight.abs() for name, weight in stats.weights.items()}

    scores = {"1.weight": -model[1].weight.detach().abs()}
    models = [copy.deepcopy(model) for _ in range(3)]
    for trial, choice in zip(models, (smallest, smallest.function, scores), strict=True):
        prunus.prune(trial, 0.5, criterion=choice, scope=NByM(2, 4), include=["1.weight"])
    assert all(not changed(models[0].state_dict(), other) for other in models[1:])
    assert torch.equal(models[0][4].weight, model[4].weight)


def test_scores_may_be_integers():
    model, within = nn.Linear(4, 2), torch.tensor([[True, True, True, False], [True, True, True, True]])
    scores = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    pruned = prunus.prune(model, 0.5, criterion={"weight": scores}, scope="2:4", within={"weight": within})
    assert pruned.masks["weight"].int().tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]


def test_calibration_may_be_a_dataset_a_split_or_a_tuple(model, data):
    split = data.train.take(60)
    results = []
    for calibration in (replace(data, train=split), split, (split.inputs, split.labels)):
        trial = copy.deepcopy(model)
        prunus.prune(trial, 0.5, criterion="obs", calibration=calibration)
        results.append(trial.state_dict())
    assert not changed(state(model), model)
    for result in results[1:]:
        assert all(torch.equal(tensor, results[0][name]) for name, tensor in result.items())


class Output:
    """An output as of other libraries."""

    def __init__(self, logits):
        self.logits = logits


class WithOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x, scale=1.0):
        return Output(scale * self.layer(x.flatten(1)))


class Plain(nn.Module):
    """The same outputs as a tensor."""

    def __init__(self, layer):
        super().__init__()
        self.layer = copy.deepcopy(layer)

    def forward(self, x):
        return 2.0 * self.layer(x.flatten(1))


def logits(module, batch):
    return module(batch[0], 2.0).logits


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", *METHODS])
def test_forward_reaches_the_statistics_or_is_refused(name, data):
    """With a forward that reads an output object, the weights are those of a model that returns a tensor."""
    torch.manual_seed(0)
    model, split = WithOutput(), data.train.take(50)
    plain = Plain(model.layer)
    if name == "obd":  # its recursion follows the operations of the model itself
        with pytest.raises(ModelError, match="recursion does not support WithOutput"):
            prunus.prune(model, 0.5, criterion=name, calibration=split, forward=logits)
        return
    report = prunus.prune(model, 0.5, criterion=name, calibration=split, forward=logits).report
    expected = prunus.prune(plain, 0.5, criterion=name, calibration=split).report
    assert torch.equal(model.layer.weight, plain.layer.weight)
    assert report.rows[0].error_updated == expected.rows[0].error_updated > 0


def test_recalibration_uses_forward(model, data):
    class TakesTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(model)

        def forward(self, x, scale):
            return Output(self.network(scale * x))

    network, split = TakesTwo(), data.train.take(60)
    options = {"criterion": "magnitude", "recalibrate": True, "calibration": split}
    report = prunus.prune(
        network, 0.5, forward=lambda module, batch: module(batch[0], 1.0).logits, **options
    ).report
    prunus.prune(model, 0.5, **options)
    assert report.num_recalibrated == 1
    assert torch.equal(network.network[2].running_mean, model[2].running_mean)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["snip", "gradient", "grasp", "fisher", "full_obs", "obd", "obd_hutchinson"])
def test_loss_reaches_the_statistics(name):
    """Regression: the derivatives are those of the squared error, so that outputs without weight do not count."""
    torch.manual_seed(1)
    inputs, model = torch.randn(80, 6), nn.Linear(6, 3, bias=False)
    targets = inputs @ torch.randn(6, 3)
    calls = []

    def value(outputs, targets):
        calls.append(targets.dtype)
        return LOSSES["squared_error"].value(outputs, targets)

    counted = replace(LOSSES["squared_error"], value=value)
    models = [copy.deepcopy(model) for _ in range(2)]
    for trial, loss in zip(models, ("squared_error", counted), strict=True):
        prunus.prune(trial, 0.5, criterion=name, calibration=(inputs, targets), loss=loss)
    assert calls
    assert set(calls) == {torch.float32}
    assert not changed(models[0].state_dict(), models[1])
    assert int(models[0].weight.count_nonzero()) == 9


@pytest.mark.parametrize("name", ["magnitude", "synflow", "obs", "sparse_gpt"])
def test_loss_that_is_not_differentiated_is_refused_by_the_name_of_the_method(name, model, data):
    with pytest.raises(StatisticsError, match="Expected no loss with this method") as caught:
        prunus.prune(model, 0.5, criterion=name, calibration=data, loss="squared_error")
    assert pruning_method(name).summary.rstrip(".") in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "obs"}, StatisticsError, "Expected calibration examples for this method"),
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


def test_prune_to_a_density_that_is_not_below_that_of_the_weights_warns(model):
    prunus.prune(model, 0.2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.warns(NoEffectWarning, match="Every pruned weight was zero before"):
        prunus.prune(model, 0.5)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_attached_masks_of_the_result_hold_in_a_training_loop(model, data):
    pruned = prunus.prune(model, 0.5)
    assert isinstance(pruned.masks, prunus.Masks)
    assert pruned.masks.model is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = pruned.masks.attach(optimizer)
    before = state(model)
    for batch, labels in zip(data.train.inputs.split(100), data.train.labels.split(100), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    assert masks.verify() == 0
    assert masks.density == pruned.report.density == 0.5
    assert changed(before, model) >= {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert [float((model[i].weight != 0).float().mean()) for i in (1, 4)] == [0.5, 0.5]


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
