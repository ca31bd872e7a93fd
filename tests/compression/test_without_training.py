"""Compression without training, and the search for the smallest file within an accuracy budget."""

import copy
import math

import pytest
import torch
from torch import nn

import prunus
from prunus.compression import stages, without_training
from prunus.compression.accuracy_budget import BITS, Trial, find_smallest
from prunus.errors import AccuracyError, ModelError, SpecError
from prunus.pruning.methods import METHODS
from prunus.training import Recipe


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)) if digits.train.inputs.dim() == 2 else nn.Identity(),
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    prunus.train(model, digits, Recipe(6, 0.005, 32))
    return model


def test_file_has_the_requested_density_and_bits_and_loads_back(trained, digits, tmp_path):
    before = copy.deepcopy(trained.state_dict())
    result = prunus.compress(
        trained, tmp_path / "m", data=digits, train=False, density=0.5, bits=3, recalibrate=True
    )
    assert result.density == pytest.approx(0.5, abs=0.01)
    for name, tensor in result.quantized.items():
        assert torch.equal(result.model.get_parameter(name), tensor.dense())
        assert len(tensor.codebook) <= 8
    assert result.file_bytes == (tmp_path / "m").stat().st_size
    assert result.ratio == sum(t.nbytes for t in before.values()) / result.file_bytes
    assert result.epochs == []
    again = prunus.load(tmp_path / "m", into=copy.deepcopy(trained))
    assert prunus.evaluate(again, digits.validation) == result.stages[-1].validation
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


def test_outputs_are_closer_than_those_of_the_nearest_centroids(trained, digits, monkeypatch):
    options = {"data": digits, "train": False, "density": 0.5, "bits": 2}
    models = [prunus.compress(trained, **options).model]
    monkeypatch.setattr(without_training, "minimize_output_error", lambda nearest, *_, **__: nearest)
    models.append(prunus.compress(trained, **options).model)
    with torch.no_grad():
        dense, closer, nearest = (m.eval()(digits.test.inputs) for m in (copy.deepcopy(trained), *models))
    assert (closer - dense).square().mean() < 0.8 * (nearest - dense).square().mean()


@pytest.mark.parametrize("criterion", ["magnitude", "obs", "sparse_gpt"])
def test_hessians_are_collected_once_and_files_are_equal(criterion, trained, digits, tmp_path, monkeypatch):
    calls = []
    original = stages.layer_hessians
    monkeypatch.setattr(stages, "layer_hessians", lambda *a, **k: calls.append(a) or original(*a, **k))
    for name in ("a", "b"):
        prunus.compress(
            trained, tmp_path / name, data=digits, train=False, criterion=criterion, density=0.4, bits=3
        )
    assert len(calls) == 2
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_statistics_of_batchnorm_are_rounded_unless_frozen(trained, digits):
    options = {"data": digits, "train": False, "recalibrate": True}
    statistics = prunus.compress(trained, **options).model[2].running_var
    assert torch.equal(statistics, statistics.half().float())
    frozen = copy.deepcopy(trained)
    frozen[2].requires_grad_(False)
    frozen = prunus.compress(frozen, data=digits, train=False).model[2]
    assert torch.equal(frozen.running_var, trained[2].running_var)


def test_zeros_of_the_model_stay_zero(trained, digits):
    sparse = copy.deepcopy(trained)
    pruned = prunus.prune(sparse, 0.6)
    result = prunus.compress(sparse, data=digits, train=False, density=0.3, bits=4)
    for name, mask in result.masks.items():
        assert not (mask & ~pruned.masks[name]).any()
    assert result.density == pytest.approx(0.3, abs=0.01)


NO_EFFECT = {
    "rounds": 3,
    "train_first": True,
    "checkpoints": "folder",
    "epochs": {"finetune": 2},
    "learning_rate": 0.1,
    "augmentation": "shift",
    "optimizer": "sgd",
    "fit": lambda model, masks: None,
    "backend": "sparse",
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_options_without_effect_are_refused_before_work(name, trained, digits):
    with pytest.raises(SpecError, match=rf"an effect without training, got {name}; leave them out"):
        prunus.compress(trained, data=None, train=False, **{name: NO_EFFECT[name]})


BAD_BUDGETS = [
    ({"max_accuracy_drop": -1}, "0 to 100 percentage points, got -1"),
    ({"max_accuracy_drop": math.nan}, "got nan"),
    ({"max_accuracy_drop": True}, "got True"),
    ({"max_accuracy_drop": "1"}, "got '1'"),
    ({"max_accuracy_drop": 1.0, "density": 0.5}, "got 1.0 points and 0.5; leave one of them out"),
    ({"max_accuracy_drop": 101.0}, "0 to 100 percentage points, got 101"),
    ({"max_accuracy_drop": -1.0, "metric": len}, "0 or more units of the metric, got -1"),
    ({"max_accuracy_drop": 1.0, "scope": "2:4"}, "scope layer or global with max_accuracy_drop"),
    ({"dencity": 0.5}, r"got \['dencity'\]; correct the name"),
]


@pytest.mark.parametrize(("options", "message"), BAD_BUDGETS)
def test_options_that_contradict_are_refused_before_work(options, message, trained):
    with pytest.raises(SpecError, match=message):
        prunus.compress(trained, data=None, train=False, **options)


def test_file_names_the_criterion_and_the_schedule_of_a_user(trained, small_digits, tmp_path):
    def smallest(statistics):
        return {name: -weight.abs() for name, weight in statistics.weights.items()}

    def at_once(density, rounds):
        return [density]

    scores = smallest(prunus.Statistics(prunus.prunable_weights(trained)))
    for criterion, name in ((smallest, "smallest"), (METHODS["sparse_gpt"], "SparseGpt"), (scores, "dict")):
        prunus.compress(
            trained, tmp_path / "m", data=small_digits, fit=lambda model, masks: None, criterion=criterion,
            schedule=at_once, scope="layer", density=0.5, bits=2,
        )  # fmt: skip
        recipe = prunus.inspect(tmp_path / "m").metadata["recipe"]
        assert (recipe["criterion"], recipe["schedule"]) == (name, "at_once")


def test_search_finds_a_small_file_within_the_budget(trained, digits, tmp_path):
    result = prunus.compress(trained, tmp_path / "m", data=digits, train=False, max_accuracy_drop=1.0)
    before, *_, after = (stage.validation.accuracy for stage in result.stages)
    assert before - after <= 1.0
    fitting = [trial for trial in result.trials if trial.accuracy_drop <= 1.0]
    assert result.file_bytes == min(trial.file_bytes for trial in fitting) == (tmp_path / "m").stat().st_size
    assert any(trial.accuracy_drop > 1.0 for trial in result.trials)
    assert 4 <= len(result.trials) <= 10
    assert {trial.bits for trial in result.trials} > {4, 3}
    assert len(result.to_json()["trials"]) == len(result.trials)
    fixed = prunus.compress(trained, data=digits, train=False, max_accuracy_drop=1.0, bits=5)
    assert {trial.bits for trial in fixed.trials} == {None}
    assert all(len(tensor.codebook) <= 32 for tensor in fixed.quantized.values())
    assert fixed.file_bytes >= result.file_bytes


def test_search_trains_at_every_density_it_tries(trained, small_digits, tmp_path):
    recipe = prunus.COMPRESSION_RECIPES["default"].replace(
        rounds=1, schedule="one_shot", final_retrain=Recipe(2, 0.002, 32), finetune=Recipe(1, 3e-4, 32)
    )
    result = prunus.compress(
        trained, data=small_digits, preset=recipe, max_accuracy_drop=10.0, bits=4, checkpoints=tmp_path
    )
    before, *_, after = (stage.validation.accuracy for stage in result.stages)
    assert before - after <= 10.0
    assert len(result.epochs) == 3
    assert len(list(tmp_path.iterdir())) == len(result.trials) >= 4
    assert result.recipe.density in [trial.density for trial in result.trials]


def test_search_raises_where_nothing_fits(trained, digits, tmp_path):
    spoiled = copy.deepcopy(trained)
    with pytest.raises(AccuracyError, match=r"at most 0 points of validation accuracy, but the best of \d+"):
        prunus.compress(
            spoiled,
            tmp_path / "m",
            data=digits,
            train=False,
            max_accuracy_drop=0,
            bits=1,
            criterion="magnitude",
        )
    assert not (tmp_path / "m").exists()


def test_metric_that_is_nan_is_refused_before_the_search(trained, digits):
    for metric in (lambda outputs, batch: math.nan, lambda outputs, batch: math.inf):
        with pytest.raises(SpecError, match="Expected a finite metric of the dense model"):
            prunus.compress(trained, data=digits, train=False, max_accuracy_drop=1.0, metric=metric)


@pytest.mark.parametrize("best", [(0.5, 4), (0.9, 3), (0.05, 8), (0.28, 5), (0.02, 3)])
def test_search_finds_the_best_of_monotone_trials(best):
    """Accuracy falls with the density times the bits below a border; sizes are proportional to it."""
    border = best[0] * best[1]
    densities = [0.9, 0.7, 0.5, 0.28, 0.2, 0.1, 0.05, 0.02]

    def attempt(density, bits):
        product = density * bits
        return Trial(density, bits, 0.0 if product >= border - 1e-9 else 2.0, round(1e6 * product))

    trials = find_smallest(attempt, densities, BITS, 1.0)
    fitting = [trial.file_bytes for trial in trials if trial.accuracy_drop <= 1.0]
    lowest = max(i for i, density in enumerate(densities) if density * 4 >= border - 1e-9)
    near = densities[max(0, lowest - 3) : lowest + 4]
    products = [density * bits for density in near for bits in (3, 4, 5)]
    assert min(fitting) == round(1e6 * min(product for product in products if product >= border - 1e-9))
    assert len(trials) <= 9


@pytest.mark.parametrize(("needed", "bits"), [(5, {4, 5, 8}), (8, {4, 5, 8})])
def test_search_tries_more_bits_and_no_fewer_where_the_first_fit_nowhere(needed, bits):
    densities = [0.9, 0.7, 0.5, 0.28, 0.2, 0.1, 0.05, 0.02]
    trials = find_smallest(
        lambda density, number: Trial(density, number, 0.5 if number >= needed and density > 0.4 else 2.0, 1),
        densities, BITS, 1.0,
    )  # fmt: skip
    assert {trial.bits for trial in trials} == bits
    assert min(t.density for t in trials if t.accuracy_drop <= 1.0) == 0.5
    assert len(trials) <= 12


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.lstm(x.reshape(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.layer(x.reshape(-1, 8, 8)).flatten(1))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.ConvTranspose2d(1, 4, 3, stride=2), nn.Linear(4 * 17 * 17, 10)

    def forward(self, x):
        return self.fc(self.conv(x.reshape(-1, 1, 8, 8)).relu().flatten(1))


@pytest.mark.parametrize("make", [Recurrent, Attention, Transposed])
def test_layers_of_a_view_are_compressed_and_closer_than_the_nearest_centroids(
    make, digits, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    model = make()
    options = {"data": digits, "train": False, "density": 0.6, "criterion": "obs", "bits": 2}
    result = prunus.compress(model, tmp_path / "m", **options)
    assert result.density == pytest.approx(0.6, abs=0.01)
    state = prunus.load(tmp_path / "m", into=make()).state_dict()
    for name, tensor in result.quantized.items():
        assert torch.equal(result.model.get_parameter(name), tensor.dense())
        assert torch.equal(state[name], tensor.dense())
        assert torch.equal(tensor.dense() != 0, result.masks[name])
        assert len(tensor.codebook) <= 4
    monkeypatch.setattr(without_training, "minimize_output_error", lambda nearest, *_, **__: nearest)
    other = prunus.compress(model, **options).model
    with torch.no_grad():
        dense, closer, nearest = (m.eval()(digits.test.inputs) for m in (model, result.model, other))
    assert (closer - dense).square().mean() < (nearest - dense).square().mean()


def test_a_computed_weight_is_refused_before_any_training(digits):
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)))
    calls = []
    for options in ({"train": False}, {"train_first": True, "max_accuracy_drop": 5.0, "fit": calls.append}):
        with pytest.raises(ModelError, match="its weight is computed by the parametrization WeightNorm"):
            prunus.compress(model, data=digits, **options)
    assert not calls


def test_search_goes_on_after_a_metric_that_is_nan():
    drops = iter([math.nan, math.nan, 0.5, 0.5, 0.5])
    trials = find_smallest(lambda density, bits: Trial(density, bits, next(drops), 1), [0.9, 0.5], BITS, 1.0)
    assert [trial.accuracy_drop <= 1.0 for trial in trials].count(True) > 0


def test_regression_is_compressed_by_its_own_loss_and_metric(digits, tmp_path):
    """The inputs are reconstructed; batches are read by a function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 64))
    inputs = digits.train.inputs.flatten(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (model(inputs) - inputs).square().mean().backward()
        optimizer.step()
    splits = [
        prunus.Split(split.inputs.flatten(1), split.inputs.flatten(1))
        for split in (digits.train, digits.validation, digits.test)
    ]
    data = prunus.Dataset("reconstruction", *splits, ())
    task = {
        "forward": lambda model, batch: model(batch[0]),
        "loss": lambda output, batch: (output - batch[1]).square().mean(),
        "metric": lambda output, batch: -(output - batch[1]).square().mean(),
    }
    result = prunus.compress(model, tmp_path / "m", data=data, train=False, density=0.5, bits=4, **task)
    before, *_, after = (stage.validation for stage in result.stages)
    assert before.metric == pytest.approx(-before.loss, rel=1e-5)
    assert before.metric - 0.03 < after.metric < before.metric
    assert "metric -0.0" in str(result)
    assert result.to_json()["stages"][-1]["validation_error"] is None
    searched = prunus.compress(model, data=data, train=False, bits=5, max_accuracy_drop=0.005, **task)
    assert before.metric - searched.stages[-1].validation.metric <= 0.005
    assert 0.02 < searched.density < 0.95
    scaled = {**task, "metric": lambda output, batch: 1e5 * task["metric"](output, batch)}
    again = prunus.compress(model, data=data, train=False, bits=5, max_accuracy_drop=500.0, **scaled)
    assert again.file_bytes == searched.file_bytes
