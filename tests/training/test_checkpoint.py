"""A checkpoint is used only by the run that wrote it, and only as it was written."""

import copy
import random
import shutil
import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import CheckpointError
from prunus.masks import Masks
from prunus.training import Recipe, train
from prunus.types import Dataset, Split

RECIPE = Recipe(epochs=2, learning_rate=0.01, batch_size=20)


class Functional(nn.Module):
    """Its activation is no module, so that it shows neither in the modules nor in the parameters."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(8, 6), nn.Linear(6, 3), activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


def network(seed=0, activation=F.relu):
    torch.manual_seed(seed)
    return Functional(activation)


def layers(seed=0, activation=nn.ReLU, dropout=0.1):
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(6)
    return nn.Sequential(nn.Linear(8, 6), norm, activation(), nn.Dropout(dropout), nn.Linear(6, 3))


def dataset(seed=0, n=60):
    draw = torch.Generator().manual_seed(seed)
    inputs, weights = torch.randn(n, 8, generator=draw), torch.randn(8, 3, generator=draw)
    train, rest = (
        Split(inputs, (inputs @ weights).argmax(1)),
        Split(inputs[:20], (inputs @ weights).argmax(1)[:20]),
    )
    return Dataset("linear", train, rest, rest, ("a", "b", "c"))


def one_entry_changed(data, part, of):
    """`data` with one input or label of a split changed."""
    split = getattr(data, part)
    inputs, labels = split.inputs.clone(), split.labels.clone()
    if of == "inputs":
        inputs[-1, -1] += 1e-6
    else:
        labels[-1] = (labels[-1] + 1) % 3
    changed = Split(inputs, labels)
    splits = (changed if name == part else getattr(data, name) for name in ("train", "validation", "test"))
    return Dataset(data.name, *splits, data.class_names)


def states_equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("make", [network, layers])
def test_finished_run_called_again_returns_the_same_result(make, tmp_path):
    first, second = make(), make()
    epochs = train(first, dataset(), RECIPE, checkpoint=tmp_path / "run")
    trained = []
    again = train(second, dataset(), RECIPE, checkpoint=tmp_path / "run", report=trained.append)
    assert (again, trained) == (epochs, [])
    assert states_equal(first, second)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("of", ["inputs", "labels"])
def test_checkpoint_of_other_data_is_refused(part, of, tmp_path):
    data = dataset()
    train(network(), data, RECIPE, checkpoint=tmp_path / "run")
    word = "training" if part == "train" else "validation"
    with pytest.raises(
        CheckpointError, match=rf"\(its {word} data were others\); delete it, or name another"
    ):
        train(network(), one_entry_changed(data, part, of), RECIPE, checkpoint=tmp_path / "run")
    train(
        network(), one_entry_changed(data, "test", of), RECIPE, checkpoint=tmp_path / "run"
    )  # plays no part


FROZEN, STILL = layers(), layers()
FROZEN[0].bias.requires_grad_(False)
STILL[3].eval()


@pytest.mark.parametrize(
    ("original", "other", "message"),
    [
        (network(), network(seed=1), "initial weights"),
        (network(), network(activation=torch.tanh), "another function of the same weights"),
        (layers(), layers(activation=nn.Tanh), "another structure"),
        (layers(), layers(dropout=0.2), "another structure"),
        (layers(), FROZEN, "another structure"),
        (layers(), STILL, "another structure"),
        (network(), layers(), "another structure"),
    ],
)
def test_checkpoint_of_another_model_is_refused_and_the_model_stays_as_it_was(
    original, other, message, tmp_path
):
    train(copy.deepcopy(original), dataset(), RECIPE, checkpoint=tmp_path / "run")
    model = copy.deepcopy(other)
    with pytest.raises(CheckpointError, match=message):
        train(model, dataset(), RECIPE, checkpoint=tmp_path / "run")
    assert states_equal(model, other)


class Stochastic(nn.Module):
    """What it does in training alone shows neither in its modules nor in its output in evaluation mode."""

    def __init__(self, p=0.1, scale=1.0, source=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.p, self.source = p, source
        self.first.weight.register_hook(lambda gradient: scale * gradient)

    def forward(self, x):
        noise = self.source.random() if self.training and self.source else 0.0
        return self.last(F.dropout(self.first(x).relu(), self.p, self.training)) + noise


@pytest.mark.parametrize("other", [{"p": 0.2}, {"p": 0.0}, {"scale": 2.0}])
def test_checkpoint_of_a_model_that_trains_otherwise_is_refused(other, tmp_path):
    train(Stochastic(), dataset(), RECIPE, checkpoint=tmp_path / "run")
    trained = []
    train(Stochastic(), dataset(), RECIPE, checkpoint=tmp_path / "run", report=trained.append)
    assert not trained
    with pytest.raises(CheckpointError, match="another function of the same weights, or other gradients"):
        train(Stochastic(**other), dataset(), RECIPE, checkpoint=tmp_path / "run")


def test_run_with_noise_that_torch_does_not_draw_continues_from_its_checkpoint(tmp_path):
    trained = []
    for seed in range(2):
        model = Stochastic(source=random.Random(seed))
        train(model, dataset(), RECIPE, checkpoint=tmp_path / "run", report=trained.append)
    assert len(trained) == RECIPE.epochs


def test_identity_of_a_checkpoint_changes_nothing_of_the_model(tmp_path):
    models = [layers(), layers()]
    models[0][0].weight.grad = torch.ones(6, 8)
    train(models[0], dataset(), RECIPE, checkpoint=tmp_path / "run")
    train(models[1], dataset(), RECIPE)
    assert states_equal(*models)


def test_checkpoint_may_be_named_by_a_string(tmp_path):
    train(network(), dataset(), RECIPE, checkpoint=str(tmp_path / "run"))
    done = prunus.compress(
        layers(), data=dataset(), preset=COMPRESSION, checkpoints=str(tmp_path / "compression")
    )
    again = prunus.compress(
        layers(), data=dataset(), preset=COMPRESSION, checkpoints=tmp_path / "compression"
    )
    assert states_equal(done.model, again.model)
    assert (tmp_path / "run").is_file()
    assert (tmp_path / "compression" / "finetune.safetensors").is_file()


def test_checkpoint_of_numbers_of_numpy_is_that_of_the_same_numbers(tmp_path):
    recipe = Recipe(
        epochs=np.int64(2), learning_rate=np.float32(0.01), batch_size=np.int32(20), lr_schedule="steps",
        milestones=(np.float32(0.5),),
    )  # fmt: skip
    train(network(), dataset(), recipe, checkpoint=tmp_path / "run", seed=np.int64(3))
    plain = recipe.replace(epochs=2, learning_rate=float(np.float32(0.01)), batch_size=20, milestones=(0.5,))
    epochs = []
    train(network(), dataset(), plain, checkpoint=tmp_path / "run", seed=3, report=epochs.append)
    assert not epochs  # the whole training comes from the checkpoint


def test_checkpoint_under_another_constraint_is_refused(tmp_path):
    mask = {"first.weight": torch.arange(48).reshape(6, 8) % 2 == 0}
    value = {"first.weight": torch.full((6, 8), 0.5)}
    made = {
        "none": lambda model: None,
        "mask": lambda model: Masks(model, mask),
        "other mask": lambda model: Masks(model, {"first.weight": ~mask["first.weight"]}),
        "values": lambda model: Masks(model, mask, value),
        "other values": lambda model: Masks(model, mask, {"first.weight": -value["first.weight"]}),
    }
    for other_name, make in made.items():
        model = network()
        train(model, dataset(), RECIPE, constraint=make(model), checkpoint=tmp_path / other_name)
        for name, other in made.items():
            model = network()
            if name == other_name:
                train(model, dataset(), RECIPE, constraint=other(model), checkpoint=tmp_path / other_name)
                continue
            with pytest.raises(CheckpointError, match="its constraint"):
                train(model, dataset(), RECIPE, constraint=other(model), checkpoint=tmp_path / other_name)
            assert states_equal(model, network())


def test_every_difference_is_named(tmp_path):
    train(network(), dataset(), RECIPE, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError) as raised:
        train(network(1), dataset(1), RECIPE.replace(batch_size=30), seed=4, checkpoint=tmp_path / "run")
    for words in (
        "batch_size = 20, this one 30",
        "seed is 0, this run's 4",
        "training data",
        "validation",
        "weights",
    ):
        assert words in str(raised.value)


def test_checkpoint_with_any_bit_flipped_is_refused(tmp_path):
    path = tmp_path / "run"
    train(layers(), dataset(), RECIPE.replace(patience=3), checkpoint=path)
    written = path.read_bytes()
    (header,) = struct.unpack("<Q", written[:8])
    for place in [*range(0, 8 + header, 101), *range(8 + header, len(written), 307), len(written) - 1]:
        damaged = bytearray(written)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        model = layers()
        with pytest.raises(CheckpointError, match="delete it"):
            train(model, dataset(), RECIPE.replace(patience=3), checkpoint=path)
        assert states_equal(model, layers())


def test_checkpoint_that_cannot_be_written_is_refused_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    trained = []
    for path in (tmp_path / "file" / "run", tmp_path):
        with pytest.raises(CheckpointError, match="choose another"):
            train(network(), dataset(), RECIPE, checkpoint=path, report=trained.append)
    assert not trained


ONCE = RECIPE.replace(epochs=1)
COMPRESSION = prunus.COMPRESSION_RECIPES["default"].replace(
    density=0.5, bits=2, rounds=1, retrain=ONCE, final_retrain=ONCE, finetune=ONCE
)


def test_deep_compression_from_checkpoints_of_other_data_or_weights_is_refused(tmp_path):
    done = prunus.compress(layers(), data=dataset(), preset=COMPRESSION, checkpoints=tmp_path)
    again = prunus.compress(layers(), data=dataset(), preset=COMPRESSION, checkpoints=tmp_path)
    assert states_equal(done.model, again.model)
    with pytest.raises(CheckpointError, match=r"prune-1\.safetensors .*its training data were others"):
        prunus.compress(layers(), data=dataset(5), preset=COMPRESSION, checkpoints=tmp_path)
    with pytest.raises(CheckpointError, match=r"prune-1\.safetensors .*its initial weights were others"):
        prunus.compress(layers(5), data=dataset(), preset=COMPRESSION, checkpoints=tmp_path)
    with pytest.raises(CheckpointError, match=r"finetune\.safetensors .*its constraint"):
        prunus.compress(layers(), data=dataset(), preset=COMPRESSION.replace(bits=1), checkpoints=tmp_path)


def test_a_folder_that_cannot_be_made_is_named_before_the_training(tmp_path):
    (tmp_path / "broken").symlink_to("nowhere")
    for folder in ("broken", "a\nb"):
        with pytest.raises(CheckpointError, match="No checkpoint can be written to"):
            train(network(), dataset(), RECIPE, checkpoint=tmp_path / folder / "c", report=pytest.fail)


def test_a_folder_that_vanishes_during_a_training_is_not_created_again(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()

    def remove(what, done, total):
        if done == 0:
            shutil.rmtree(folder)

    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        train(network(), dataset(), RECIPE, checkpoint=folder / "run", progress=remove)
    assert not folder.exists()
