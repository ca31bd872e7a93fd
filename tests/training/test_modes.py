"""Modes, frozen statistics and flags are after a call what they were before it, and hold during it."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import DivergenceError
from prunus.masks import Masks
from prunus.training import Recipe, evaluate, train
from prunus.training.modes import start_training
from prunus.types import Dataset, Split

RECIPE = Recipe(epochs=1, learning_rate=0.01, batch_size=20)
COMPRESSION = prunus.COMPRESSION_RECIPES["default"].replace(
    density=0.5, bits=2, rounds=1, retrain=RECIPE, final_retrain=RECIPE, finetune=RECIPE
)
NORMS = {
    "BatchNorm1d": lambda: (nn.BatchNorm1d(6), (6, 8)),
    "BatchNorm2d": lambda: (nn.BatchNorm2d(6), (6, 2, 4)),
    "BatchNorm3d": lambda: (nn.BatchNorm3d(6), (6, 2, 2, 2)),
    "SyncBatchNorm": lambda: (nn.SyncBatchNorm(6), (6, 8)),
    "InstanceNorm1d": lambda: (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (6, 8)),
    "InstanceNorm2d": lambda: (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (6, 2, 4)),
}


def network(norm="BatchNorm1d"):
    """Three layers with two normalizations, the second of the given kind, and a dropout."""
    torch.manual_seed(0)
    layer, shape = NORMS[norm]()
    first = nn.Linear(8, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Unflatten(1, shape)
    return nn.Sequential(*first, layer, nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3))


FREE, NORM, DROPOUT = "1", "4", "6"


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 8, generator=draw)
    split = Split(inputs, inputs[:, :3].argmax(1))
    return Dataset("three", split, split.take(20), split.take(20), ("a", "b", "c"))


def frozen(model, *names):
    for name in names:
        model.get_submodule(name).eval().requires_grad_(False)
    return model


def flags(model):
    modes = [module.training for module in model.modules()]
    return modes, [parameter.requires_grad for parameter in model.parameters()]


def masked_training(model, data):
    weights = prunus.prunable_weights(model)
    masks = {name: weight.detach().abs() > 0.1 for name, weight in weights.items()}
    train(model, data, RECIPE.replace(patience=2), constraint=Masks(model, masks))
    return model


def pruning(model, data):
    criterion, scope = prunus.CRITERIA["magnitude"], prunus.SCOPES["layer"]
    prunus.prune_and_retrain(model, data, [0.5], [RECIPE], criterion=criterion, scope=scope)
    return model


def sensitivity(model, data):
    prunus.sensitivity(model, data.validation, densities=(1.0, 0.5))
    return model


CALLS = {
    "train": masked_training,
    "prune_and_retrain": pruning,
    "compress": lambda model, data: prunus.compress(model, data=data, preset=COMPRESSION).model,
    "sensitivity": sensitivity,
    "evaluate": lambda model, data: (evaluate(model, data.test), model)[1],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_frozen_norm_keeps_its_statistics_and_every_module_its_mode(norm, call, data):
    for is_all_frozen in (True, False):
        model = frozen(network(norm), NORM, DROPOUT) if is_all_frozen else frozen(network(norm), NORM).eval()
        expected, before = flags(model), copy.deepcopy(model.get_submodule(NORM).state_dict())
        free = model.get_submodule(FREE).running_mean.clone()
        result = CALLS[call](model, data)
        assert flags(model) == flags(result) == expected
        for name, tensor in result.get_submodule(NORM).state_dict().items():
            assert torch.equal(tensor, before[name]), name
        trains = call not in ("sensitivity", "evaluate")
        assert torch.equal(result.get_submodule(FREE).running_mean, free) is not trains


def test_a_model_in_evaluation_mode_is_trained_as_one_in_training_mode(data):
    trained, loaded = network(), network().eval()
    assert train(trained, data, RECIPE) == train(loaded, data, RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))


def test_a_module_in_evaluation_mode_stays_in_it_while_the_rest_trains(data):
    """Dropout in evaluation mode is no dropout: bit for bit the training of a network without it."""
    without, still = network(), network()
    without[6], still[6] = nn.Identity(), still[6].eval()
    assert train(without, data, RECIPE) == train(still, data, RECIPE)


def test_only_frozen_norms_stay_in_evaluation_mode_when_all_of_the_model_is_in_it():
    model = nn.ModuleDict({
        "norm": nn.BatchNorm1d(2),
        "frozen": nn.BatchNorm1d(2).requires_grad_(False),
        "plain": nn.BatchNorm1d(2, affine=False),
        "linear": nn.Linear(2, 2).requires_grad_(False),
        "dropout": nn.Dropout(),
    }).eval()  # fmt: skip
    start_training(model)
    assert [name for name, module in model.named_modules() if not module.training] == ["frozen"]


class Merging(nn.Linear):
    """Overrides `train`, as layers do that merge weights for inference."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        assert self.merged is not self.training
        return super().forward(x)


def test_modes_are_set_by_the_method_that_a_module_may_override(data):
    model = nn.Sequential(nn.Linear(8, 4), Merging(4, 3))
    for mode in (True, False):
        train(model.train(mode), data, RECIPE)
        assert model[1].training is mode is not model[1].merged


def interrupt(epoch):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "rate", "report"), [(DivergenceError, 1e30, None), (KeyboardInterrupt, 0.01, interrupt)]
)
def test_modes_are_restored_after_an_error(error, rate, report, data):
    model = frozen(network(), NORM, DROPOUT)
    expected, recipe = flags(model), RECIPE.replace(learning_rate=rate, optimizer="sgd", epochs=3)
    with pytest.raises(error):
        train(model, data, recipe, report=report)
    assert flags(model) == expected


def test_modes_that_a_report_changes_are_set_again_for_the_next_epoch(data):
    quiet, loud = network(), network()
    recipe = RECIPE.replace(epochs=3)
    assert train(quiet, data, recipe) == train(loud, data, recipe, report=lambda epoch: loud.eval())
    assert loud.training
