"""`prunus.lottery`: tickets from objects in memory, the same as those of a store."""

import importlib
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.data import DATASETS, image_folder
from prunus.errors import (
    DataError,
    InvariantWarning,
    ModelError,
    SpecError,
    StatisticsError,
    StoreError,
    TrainingError,
    UnknownNameError,
)
from prunus.masks import are_nested
from prunus.models import MODELS
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.lottery import _name
from prunus.tickets.ticket import PruningRates

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import tiny_networks

RECIPE = prunus.Recipe(epochs=2, learning_rate=0.01, batch_size=25)


@pytest.fixture(scope="module")
def data(digits):
    return digits.take(85, 28)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_objects_that_cannot_be_imported_give_a_verified_ticket(data):
    def make_model(seed):
        return tiny_networks.mlp(seed)

    levels = []
    result = prunus.lottery(make_model, data, rounds=2, recipe=RECIPE, report=levels.append)
    assert list(result.levels) == levels
    assert [level.level for level in levels] == [0, 1, 2]
    assert levels[0].density == 1.0
    assert result.verified
    for level in (1, 2):
        masks, weights = result.masks(level), result.weights(level)
        assert are_nested(masks, result.masks(level - 1))
        assert int(masks["1.weight"].sum()) == round(64 * 24 * 0.8**level)
        assert not any(weights[name][~mask].any() for name, mask in masks.items())
        make_model(0).load_state_dict(weights)
    assert len(repr(result)) < 2000  # no tensors
    with pytest.raises(SpecError, match="level from 0 to 2, got 3"):
        result.masks(3)
    with pytest.raises(SpecError, match=r"TicketSpec|BaselineSpec"):
        run_id(result.ticket)


def test_excluded_weights_have_no_masks(data):
    settings = {"rounds": 1, "recipe": RECIPE, "scope": "global", "mask1": "reinitialize"}
    result = prunus.lottery(tiny_networks.mlp, data, exclude=["5.*"], **settings)
    assert result.verified
    for level in (0, 1):
        assert list(result.masks(level)) == ["1.weight", "3.weight"]
    with pytest.raises(SpecError, match=r"list of patterns, got '5\.\*'; write \['5"):
        prunus.lottery(tiny_networks.mlp, data, exclude="5.*", **settings)


def test_a_store_gives_the_same_bits_and_is_used_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_networks, "few_digits", lambda: data, raising=False)
    names = {"rounds": 2, "recipe": RECIPE, "criterion": tiny_networks.by_column, "mask1": "permute"}
    in_memory = prunus.lottery(tiny_networks.mlp, data, **names)
    stored = prunus.lottery(tiny_networks.mlp, "tiny_networks:few_digits", store=tmp_path, **names)
    assert [replace(level, density=0) for level in stored.levels] == [
        replace(level, density=0) for level in in_memory.levels
    ]
    assert all(equal(stored.masks(level), in_memory.masks(level)) for level in range(3))
    assert all(equal(stored.weights(level), in_memory.weights(level)) for level in (0, 2))
    with pytest.raises(StoreError, match=r"\[0, 2\], got 1"):
        stored.weights(1)
    assert stored.ticket.criterion == "tiny_networks:by_column"
    store = Store(tmp_path)
    assert {run.id for run in store.runs()} == {run_id(stored.ticket), run_id(stored.ticket.baseline)}
    prunus.lottery("tiny_networks:mlp", "tiny_networks:few_digits", store=store, **names)
    assert all(run.attempts == 1 for run in store.runs())


@pytest.mark.parametrize("setting", ["model", "data", "criterion"])
def test_an_object_without_a_name_is_not_stored(setting, data, tmp_path):
    settings = {"model_fn": tiny_networks.mlp, "data": "digits", "criterion": "magnitude"}
    settings["model_fn" if setting == "model" else setting] = {
        "model": lambda: nn.Linear(64, 10),
        "data": data,
        "criterion": lambda statistics: statistics.weights,
    }[setting]
    with pytest.raises(SpecError, match=f"importable function for {setting} of a run in a store"):
        prunus.lottery(**settings, recipe=RECIPE, store=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_function_in_place_of_data_is_refused_where_nothing_is_stored(data):
    with pytest.raises(DataError, match=r"Expected a prunus\.Dataset, got a function"):
        prunus.lottery(tiny_networks.mlp, lambda: data, recipe=RECIPE)


def test_built_in_models_and_data_sets_are_stored_by_their_names():
    assert _name("model", MODELS["conv-2"]) == "conv-2"
    assert _name("data", DATASETS["mnist"]) == "mnist"
    assert len({MODELS["conv-2"], DATASETS["mnist"]}) == 2  # both are hashable


def test_values_are_used_in_place_of_names(data):
    result = prunus.lottery(
        tiny_networks.mlp,
        data,
        rounds=1,
        scope=prunus.SCOPES["global"],
        mask1=tiny_networks.half,
        mask0=tiny_networks.hundredth,
        pruning_rates=PruningRates(linear=0.5),
        recipe=RECIPE,
        replicate=1,
    )
    assert result.levels[1].density == 0.5
    masks, weights = result.masks(1), result.weights(1)
    assert all(bool((weights[name][~mask] == torch.tensor(0.01)).all()) for name, mask in masks.items())
    assert not equal(weights, prunus.lottery(tiny_networks.mlp, data, rounds=1, recipe=RECIPE).weights(1))


def test_a_broken_action_is_not_verified(data):
    with pytest.warns(InvariantWarning, match="mask-1"):
        result = prunus.lottery(
            tiny_networks.mlp, data, rounds=1, mask1=tiny_networks.not_rewound, recipe=RECIPE
        )
    assert [level.verified for level in result.levels] == [True, False]
    assert not result.verified


def test_unknown_names_are_refused_before_training(data):
    with pytest.raises(UnknownNameError, match="did you mean 'rewind'"):
        prunus.lottery(tiny_networks.mlp, data, mask1="rewound", recipe=RECIPE)
    with pytest.raises(SpecError, match="rounds as a whole number of at least 1, got 0"):
        prunus.lottery(tiny_networks.mlp, data, rounds=0, recipe=RECIPE)
    with pytest.raises(SpecError, match=r"PruningRates\(linear, conv, output\), got 0\.5"):
        prunus.lottery(tiny_networks.mlp, data, pruning_rates=0.5, recipe=RECIPE)
    with pytest.raises(DataError, match=r"a prunus\.Dataset, got a list"):
        prunus.lottery(tiny_networks.mlp, [data.train], rounds=1, recipe=RECIPE)
    with pytest.raises(ModelError, match="a function that returns a model, got a Sequential"):
        prunus.lottery(tiny_networks.mlp(0), data, recipe=RECIPE)


def test_no_module_shadows_a_public_name():
    """Importing a module `prunus.lottery` would bind the attribute `prunus.lottery` to it."""
    modules = {module.name for module in pkgutil.iter_modules(prunus.__path__)}
    for name in modules & set(prunus.__all__):
        assert getattr(prunus, name) is importlib.import_module(f"prunus.{name}")
    importlib.import_module("prunus.tickets.lottery")
    assert prunus.lottery.__module__ == "prunus.tickets.lottery"
    assert callable(prunus.lottery)


def test_a_training_loop_of_ones_own_trains_every_level(data):
    starts = []

    def fit(model, masks):
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        masks.attach(optimizer)
        model.train()
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train.inputs), data.train.labels).backward()
            optimizer.step()

    result = prunus.lottery(tiny_networks.mlp, data, rounds=2, fit=fit)
    assert result.verified
    assert len(starts) == 3
    for level in (1, 2):
        masks = result.masks(level)
        for name, mask in masks.items():
            assert torch.equal(starts[level][name], torch.where(mask, starts[0][name], 0.0))
            assert not result.weights(level)[name][~mask].any()
    assert all(level.stop_step in (0, 1) for level in result.levels)
    assert result.levels[2].final_validation_accuracy > 50
    with pytest.raises(SpecError, match=r"TicketSpec|BaselineSpec"):
        run_id(result.ticket)


def test_either_a_recipe_or_a_training_loop_of_ones_own(data, tmp_path):
    def fit(model, masks):
        raise AssertionError

    for settings in ({}, {"recipe": RECIPE, "fit": fit}, {"fit": fit, "store": tmp_path}, {"fit": 1}):
        with pytest.raises(SpecError, match=r"either a recipe or fit|fit to be a function"):
            prunus.lottery(tiny_networks.mlp, data, **settings)
    with pytest.raises(TrainingError, match="got 307 weights"):
        prunus.lottery(
            tiny_networks.mlp, data, rounds=1, fit=lambda model, masks: nn.init.ones_(model[1].weight)
        )


@pytest.mark.parametrize("criterion", ["large_final", "snip", "obd_hutchinson"])
def test_a_regression_has_a_ticket_with_its_own_loss(criterion):
    losses = []

    def loss(outputs, batch):
        losses.append(1)
        return nn.functional.huber_loss(outputs, batch[1])

    recipe = prunus.Recipe(epochs=8, learning_rate=0.02, batch_size=50)
    result = prunus.lottery(
        tiny_networks.regressor, tiny_networks.sums(), rounds=2, recipe=recipe, loss=loss, criterion=criterion
    )
    assert result.verified
    assert losses
    assert all(0 < level.final_test_loss < 0.5 for level in result.levels)
    assert all(level.stop_test_loss <= level.final_test_loss * 1.5 for level in result.levels)
    assert all(level.final_test_accuracy != level.final_test_accuracy for level in result.levels)


def test_a_regression_is_trained_by_fit_and_one_output_is_selected():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_networks.regressor(1)

        def forward(self, x):
            return {"first": x, "second": self.net(x)}

    data = tiny_networks.sums()

    def fit(model, masks):
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        masks.attach(optimizer)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(data.train.inputs)["second"], data.train.labels).backward()
            optimizer.step()

    task = {"forward": lambda model, batch: model(batch[0])["second"], "loss": "squared_error"}
    result = prunus.lottery(lambda: Two(), data, rounds=1, fit=fit, **task)
    assert result.verified
    assert [level.stop_step for level in result.levels] == [1, 1]
    with pytest.raises(StatisticsError, match=r"class|labels"):
        prunus.lottery(tiny_networks.regressor, data, rounds=1, recipe=RECIPE)


def test_a_task_is_part_of_the_identity_of_a_stored_ticket(tmp_path):
    names = {"rounds": 1, "recipe": RECIPE, "store": tmp_path}
    reference = "tiny_networks:absolute_error"
    for loss in (tiny_networks.absolute_error, reference, "squared_error"):
        stored = prunus.lottery(tiny_networks.regressor, "tiny_networks:sums", loss=loss, **names)
        assert stored.levels[1].final_test_loss > 0
        assert run_id(stored.ticket.baseline) != run_id(replace(stored.ticket.baseline, loss=None))
    assert len(list(Store(tmp_path).runs())) == 4
    with pytest.raises(SpecError, match="importable function for loss"):
        prunus.lottery("tiny_networks:regressor", "tiny_networks:sums", loss=lambda o, b: o.sum(), **names)
    with pytest.raises(UnknownNameError, match="Unknown loss 'mse'"):
        prunus.lottery("tiny_networks:regressor", "tiny_networks:sums", loss="mse", **names)


def test_images_of_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / part).mkdir(parents=True)
        for i in range(5):
            image.new("RGB", (8, 8)).save(tmp_path / part / f"{i}.png")
    data, read = prunus.load_data(str(tmp_path)), []
    read_image = image_folder.read_image
    monkeypatch.setattr(image_folder, "read_image", lambda *of: read.append(of) or read_image(*of))
    with pytest.raises(SpecError, match="data set in memory"):
        prunus.lottery(tiny_networks.mlp, data, rounds=1, recipe=RECIPE)
    assert len(read) <= 3  # one of each split, to check their shapes
    with pytest.raises(SpecError, match="data set in memory"):
        prunus.lottery("tiny_networks:mlp", str(tmp_path), rounds=1, recipe=RECIPE, store=tmp_path / "store")
    with pytest.raises(SpecError, match="data set in memory"):
        BaselineSpec(data=data).cost()
