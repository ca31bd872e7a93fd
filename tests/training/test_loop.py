"""Training: masks hold with every optimizer, the same seeds give the same bits, a killed training continues."""

import copy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.errors import CheckpointError, DivergenceError, ModelError, SpecError
from prunus.masks import Masks
from prunus.models.initialization import build_model
from prunus.pruning.criteria.weights import random
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Layer
from prunus.pruning.statistics import Statistics
from prunus.training import EpochMetrics, Recipe, evaluate, train
from prunus.training.constraint import NoConstraint
from prunus.training.evaluation import best_index
from prunus.training.optimizers import OPTIMIZERS, PENALTIES
from prunus.training.state import clone_tensors
from prunus.training.trainer import Trainer
from prunus.types import Split

RECIPE = Recipe(epochs=3, learning_rate=0.01, batch_size=32)


def masks_from(model: nn.Module, density: float = 0.3) -> dict[str, torch.Tensor]:
    return Layer().select(random(Statistics(prunable_weights(model))), density)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_hold_after_every_step(optimizer, penalty, mlp, small_data):
    recipe = Recipe(
        epochs=1,
        learning_rate=0.05,
        batch_size=16,
        optimizer=optimizer,
        momentum=0.9,
        weight_decay=0.1,
        penalty=penalty,
        penalty_strength=0.01,
    )
    masks = masks_from(mlp)
    run = Trainer(mlp, recipe, Masks(mlp, masks))
    run.constraint.apply()
    kept_before = {name: mlp.get_parameter(name)[mask].clone() for name, mask in masks.items()}
    for _ in range(20):
        run.step(small_data.train.inputs[:32], small_data.train.labels[:32])
        for name, mask in masks.items():
            assert not mlp.get_parameter(name)[~mask].any()
    assert all((mlp.get_parameter(n)[m] != kept_before[n]).any() for n, m in masks.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_kept_weights_train_as_in_a_network_that_never_had_the_others(optimizer, small_data):
    """A masked Linear moves as a smaller Linear that has only the kept inputs."""
    recipe = Recipe(1, 0.02, 32, optimizer=optimizer, momentum=0.9, weight_decay=0.01)
    keep = torch.arange(64) % 3 == 0
    small = nn.Sequential(nn.Flatten(), nn.Linear(int(keep.sum()), 10))
    large = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    large[1].bias.data.copy_(small[1].bias.data)
    large[1].weight.data[:, keep] = small[1].weight.data
    masks = {"1.weight": keep.expand(10, 64).clone()}
    images, labels = small_data.train.inputs, small_data.train.labels
    runs = Trainer(small, recipe, NoConstraint(small)), Trainer(large, recipe, Masks(large, masks))
    runs[1].constraint.apply()
    for _ in range(10):
        runs[0].step(images.flatten(1)[:, keep], labels)
        runs[1].step(images, labels)
    assert torch.allclose(large[1].weight[:, keep], small[1].weight, atol=1e-5)


def test_same_seed_same_bits_and_another_seed_others(mlp, small_data):
    runs = {}
    for key, seed in (("one", 1), ("again", 1), ("other", 2)):
        runs[key] = copy.deepcopy(mlp)
        torch.rand(int(time.perf_counter_ns() % 7))  # the caller's random stream must not matter
        train(runs[key], small_data, RECIPE, seed=seed)
    assert same(runs["one"], runs["again"])
    assert not same(runs["one"], runs["other"])


def test_the_callers_random_stream_is_left_alone(mlp, small_data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(mlp, small_data, RECIPE)
    assert torch.equal(torch.rand(3), expected)


def test_the_models_mode_is_left_alone(mlp, small_data):
    for mode in (True, False):
        train(mlp.train(mode), small_data, RECIPE)
        assert mlp.training is mode
        evaluate(mlp, small_data.validation)
        assert mlp.training is mode


def test_training_learns_and_the_last_epoch_is_what_evaluate_says(mlp, digits):
    epochs = train(mlp, digits, Recipe(15, 0.003, 32, lr_schedule="cosine"))
    result = evaluate(mlp, digits.validation)
    assert (epochs[-1].validation_loss, epochs[-1].validation_accuracy) == (result.loss, result.accuracy)
    assert result.accuracy > 90


def test_evaluation_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    result = evaluate(nn.Identity(), Split(logits, torch.tensor([0, 1, 1])), batch_size=2)
    assert result.accuracy == pytest.approx(200 / 3)
    assert result.error == pytest.approx(100 / 3)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1, 1]))))


def test_patience_stops_and_goes_back_to_the_best(mlp, small_data):
    epochs = train(mlp, small_data, Recipe(200, 0.02, 16, patience=3))
    losses = [epoch.validation_loss for epoch in epochs]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 4 < 200
    assert evaluate(mlp, small_data.validation).loss == losses[best]


def batch_norm_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def train_until_stopped(
    small_data, **options
) -> tuple[nn.Module, list[EpochMetrics], list[dict[str, torch.Tensor]]]:
    """Train with patience; the model, the metrics and the state after each epoch."""
    model, states = batch_norm_model(), []
    report = options.pop("report", lambda epoch: None)

    def record(epoch: EpochMetrics) -> None:
        states.append(clone_tensors(model.state_dict()))
        report(epoch)

    epochs = train(model, small_data, Recipe(200, 0.02, 16, patience=4), report=record, **options)
    return model, epochs, states


def test_early_stopping_restores_the_parameters_and_buffers_of_the_best_epoch(small_data):
    model, epochs, states = train_until_stopped(small_data)
    losses = [epoch.validation_loss for epoch in epochs]
    best = best_index(losses)
    assert len(losses) == best + 5 < 200
    assert evaluate(model, small_data.validation).loss == losses[best]
    assert all(torch.equal(tensor, states[best][name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model[2].running_mean, states[-1]["2.running_mean"])


@pytest.mark.parametrize("epochs_after_best", [1, 3])
def test_best_epoch_is_restored_when_training_was_killed_after_it(epochs_after_best, small_data, tmp_path):
    uninterrupted, expected, _ = train_until_stopped(small_data)
    last = best_index([epoch.validation_loss for epoch in expected]) + 1 + epochs_after_best

    def kill(epoch: EpochMetrics) -> None:
        if epoch.epoch == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_until_stopped(small_data, checkpoint=tmp_path / "c", report=kill)
    resumed, epochs, states = train_until_stopped(small_data, checkpoint=tmp_path / "c")
    assert epochs == expected
    assert len(states) == len(expected) - last
    assert same(uninterrupted, resumed)


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_evaluation_of_the_last_epoch_only_changes_no_training(is_interrupted, mlp, small_data, tmp_path):
    uninterrupted, parts = copy.deepcopy(mlp), copy.deepcopy(mlp)
    expected = train(uninterrupted, small_data, RECIPE)
    reported = []
    if is_interrupted:
        with pytest.raises(KeyboardInterrupt):
            train(
                parts,
                small_data,
                RECIPE,
                checkpoint=tmp_path / "c",
                evaluate_every_epoch=False,
                progress=kill_in_epoch_3,
            )
        parts = copy.deepcopy(mlp)
    metrics = train(
        parts,
        small_data,
        RECIPE,
        checkpoint=tmp_path / "c",
        evaluate_every_epoch=False,
        report=reported.append,
    )
    assert metrics == expected[-1:] == reported
    assert same(uninterrupted, parts)


def kill_in_epoch_3(what: str, done: int, total: int) -> None:
    if what == "epoch 3 of 3":
        raise KeyboardInterrupt


def test_patience_without_evaluations_is_refused(mlp, small_data):
    with pytest.raises(SpecError, match="evaluation after every epoch for patience = 2"):
        train(mlp, small_data, RECIPE.replace(patience=2), evaluate_every_epoch=False)


def test_divergence_is_named_without_evaluations(mlp, small_data):
    with pytest.raises(DivergenceError, match="in training after epoch 1 of 5"):
        train(mlp, small_data, Recipe(5, 1e20, 32, optimizer="sgd"), evaluate_every_epoch=False)


@pytest.mark.parametrize("make", [lambda model, masks: masks, Masks], ids=["mapping", "Masks"])
def test_masks_may_be_a_mapping_or_bound_to_the_model(make, mlp, small_data):
    masks, other = masks_from(mlp), copy.deepcopy(mlp)
    train(other, small_data, RECIPE, constraint=Masks(other, masks))
    train(mlp, small_data, RECIPE, masks=make(mlp, masks))
    assert same(mlp, other)
    assert Masks(mlp, masks).verify() == 0
    with pytest.raises(SpecError, match="got masks and a NoConstraint"):
        train(mlp, small_data, RECIPE, masks=masks, constraint=NoConstraint(mlp))
    with pytest.raises(ModelError, match="Masks of another Sequential"):
        train(mlp, small_data, RECIPE, masks=Masks(other, masks))


def test_divergence_is_named(mlp, small_data):
    with pytest.raises(DivergenceError, match="learning rate 1e\\+20"):
        train(mlp, small_data, Recipe(5, 1e20, 32, optimizer="sgd"))


@pytest.mark.parametrize("patience", [None, 50])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_equals_uninterrupted(optimizer, patience, mlp, small_data, tmp_path):
    recipe = RECIPE.replace(optimizer=optimizer, momentum=0.9, lr_schedule="cosine", patience=patience)
    masks, path = masks_from(mlp), tmp_path / "checkpoint.safetensors"
    uninterrupted, parts = copy.deepcopy(mlp), copy.deepcopy(mlp)
    expected = train(uninterrupted, small_data, recipe, constraint=Masks(uninterrupted, masks))

    class Killed(Exception):
        pass

    def kill(epoch):
        if epoch.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(parts, small_data, recipe, constraint=Masks(parts, masks), checkpoint=path, report=kill)
    fresh = copy.deepcopy(mlp)
    assert train(fresh, small_data, recipe, constraint=Masks(fresh, masks), checkpoint=path) == expected
    assert same(uninterrupted, fresh)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_keeps_the_memory_order_of_convolutions(optimizer, small_data, tmp_path):
    recipe, path = RECIPE.replace(optimizer=optimizer, momentum=0.9), tmp_path / "c"

    def make() -> nn.Module:
        layers = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 10)
        return build_model("none", nn.Sequential(*layers), 0)

    uninterrupted, parts, fresh = make(), make(), make()
    assert uninterrupted[1].weight.is_contiguous(memory_format=torch.channels_last)
    masks = masks_from(uninterrupted)
    train(uninterrupted, small_data, recipe, constraint=Masks(uninterrupted, masks))

    def kill(epoch):
        if epoch.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, small_data, recipe, constraint=Masks(parts, masks), checkpoint=path, report=kill)
    train(fresh, small_data, recipe, constraint=Masks(fresh, masks), checkpoint=path)
    assert same(uninterrupted, fresh)


def test_a_checkpoint_of_another_run_is_refused(mlp, small_data, tmp_path):
    path, first = tmp_path / "checkpoint.safetensors", copy.deepcopy(mlp)
    expected = train(first, small_data, RECIPE, checkpoint=path)
    with pytest.raises(CheckpointError, match="its seed is 0, this run's 1\\)"):
        train(mlp, small_data, RECIPE, seed=1, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"its recipe has learning_rate = 0\.01, this one 1\.0\)"):
        train(mlp, small_data, RECIPE.replace(learning_rate=1.0), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"\(its constraint \(masks"):
        train(
            mlp, small_data, RECIPE, constraint=Masks(mlp, masks_from(mlp)), checkpoint=path, backend="dense"
        )
    assert train(mlp, small_data, RECIPE.replace(source="the same numbers"), checkpoint=path) == expected
    assert same(first, mlp)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(mlp, small_data, RECIPE, checkpoint=path)


def test_a_checkpoint_with_masks_is_hardly_larger_than_a_dense_one(small_data, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 10))
    sizes = []
    for name, constraint in (("dense", None), ("masked", Masks(model, masks_from(model)))):
        train(
            model,
            small_data,
            RECIPE.replace(optimizer="sgd"),
            constraint=constraint,
            checkpoint=tmp_path / name,
        )
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] <= 1.04 * sizes[0]


KILLED = """
import sys, torch
from pathlib import Path
from torch import nn
from prunus import load_data, train, Recipe
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
train(model, load_data("digits"), Recipe(30, 0.005, 8, lr_schedule="cosine"), seed=3, checkpoint=path,
      report=lambda epoch: print(epoch.epoch, flush=True))
print("weights", *(p.double().sum().item().hex() for p in model.parameters()), flush=True)
"""


def test_a_process_killed_and_started_again_ends_with_the_same_bits(tmp_path):
    def start(*arguments: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", KILLED, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    uninterrupted = start().communicate()[0].splitlines()[-1]
    path = tmp_path / "checkpoint.safetensors"
    killed = start(path)
    for line in killed.stdout:
        if line.strip() == "7":
            break
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert path.exists()
    lines = start(path).communicate()[0].splitlines()
    assert lines[0] in {"8", "9", "10", "11", "12"}
    assert lines[-1] == uninterrupted
    assert uninterrupted.startswith("weights")
