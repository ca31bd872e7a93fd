"""A training that is observed, interrupted and resumed gives the same bits as one that is not."""

import copy
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from prunus.errors import CheckpointError
from prunus.masks import Masks
from prunus.seeds import make_generator
from prunus.tickets.monitor import TrainingMonitor
from prunus.training import Recipe, evaluate, train
from prunus.training.constraint import NoConstraint
from prunus.training.optimizers import OPTIMIZERS
from prunus.training.recipe import LR_SCHEDULES
from prunus.training.state import clone_tensors, random_state, set_random_state, state_to_tensors
from prunus.training.trainer import Trainer, steps_per_epoch

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

import tiny_networks  # noqa: E402

RECIPE = Recipe(epochs=3, learning_rate=0.01, batch_size=24, momentum=0.9)
STEPS = 3 * 7
"""160 examples: six batches of 24, and one of 16."""
MODELS = {
    "mlp": tiny_networks.mlp,
    "normed": tiny_networks.normed,
    "dropping": tiny_networks.dropping,
    "convolved": tiny_networks.convolved,
}

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def bits(model) -> dict[str, torch.Tensor]:
    return clone_tensors(model.state_dict())


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def make_constraint(model, kind: str):
    """No constraint, masks, or masks with pruned values."""
    if kind == "free":
        return NoConstraint(model)
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    draw = make_generator(3, "held")
    masks = {name: torch.rand(model.get_parameter(name).shape, generator=draw) < 0.4 for name in names}
    values = {name: torch.randn(mask.shape, generator=draw) for name, mask in masks.items()}
    return Masks(model, masks, values if kind == "frozen" else None)


def make_monitor(data, first=0, every=5, states=(), count_violations=None) -> TrainingMonitor:
    return TrainingMonitor(
        data.validation,
        first_step=first,
        last_step=STEPS,
        eval_every=every,
        checkpoint_steps=states,
        test=data.test,
        count_violations=count_violations,
    )


class RecordingMonitor(TrainingMonitor):
    """A monitor that records the steps after which it observes."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.observed_steps: list[int] = []

    def observe(self, view):
        self.observed_steps.append(view.done)
        super().observe(view)


@each_optimizer
@pytest.mark.parametrize("kind", ["free", "masked", "frozen"])
@pytest.mark.parametrize("step", [1, 7, 11, STEPS - 1])
def test_training_from_a_captured_state_equals_uninterrupted_training(optimizer, kind, step, small_data):
    recipe = RECIPE.replace(optimizer=optimizer, lr_schedule="cosine")
    uninterrupted, monitor = tiny_networks.mlp(0), make_monitor(small_data, states=(step,))
    expected = train(
        uninterrupted,
        small_data,
        recipe,
        constraint=make_constraint(uninterrupted, kind),
        observer=monitor,
        seed=4,
    )
    other = tiny_networks.mlp(9)
    metrics = train(
        other, small_data, recipe, constraint=make_constraint(other, kind), start=monitor.states[step], seed=4
    )
    assert equal(bits(uninterrupted), bits(other))
    assert [asdict(e) for e in metrics[1:]] == [asdict(e) for e in expected[-len(metrics) :]][1:]
    assert metrics[-1].validation_loss == expected[-1].validation_loss


@each_model
@pytest.mark.parametrize("lr_schedule", LR_SCHEDULES)
def test_training_from_a_captured_state_for_every_model_and_schedule(make, lr_schedule, small_data):
    recipe = RECIPE.replace(lr_schedule=lr_schedule, weight_decay=0.01, penalty="l1", penalty_strength=1e-4)
    uninterrupted, monitor = make(0), make_monitor(small_data, states=(10,))
    train(uninterrupted, small_data, recipe, observer=monitor, seed=4)
    other = make(9)
    train(other, small_data, recipe, start=monitor.states[10], seed=4)
    assert equal(bits(uninterrupted), bits(other))


def test_seeds_give_different_weights_from_the_same_state(small_data):
    monitor = make_monitor(small_data, states=(10,))
    train(tiny_networks.mlp(0), small_data, RECIPE, observer=monitor, seed=4)
    ends = []
    for seed in (4, 5):
        ends.append(tiny_networks.mlp(0))
        train(ends[-1], small_data, RECIPE, start=monitor.states[10], seed=seed)
    assert not equal(bits(ends[0]), bits(ends[1]))


def test_captured_state_is_a_copy_that_training_does_not_change(small_data):
    monitor = make_monitor(small_data, states=(0, 10))
    train(tiny_networks.mlp(0), small_data, RECIPE, observer=monitor)
    state = monitor.states[10]
    before = clone_tensors(state_to_tensors(state))
    train(tiny_networks.mlp(1), small_data, RECIPE, start=state)
    assert equal(before, state_to_tensors(state))
    assert equal(monitor.states[0].model, bits(tiny_networks.mlp(0)))
    assert not monitor.states[0].optimizer
    assert state.optimizer


@each_model
@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("every", [1, 4, 1000])
def test_observers_are_called_when_due_and_change_nothing(make, first, every, small_data):
    start = None
    if first:
        monitor = make_monitor(small_data, states=(first,))
        train(make(0), small_data, RECIPE, observer=monitor, seed=1)
        start = monitor.states[first]
    alone, watched = make(0), make(0)
    expected = train(alone, small_data, RECIPE, start=start, seed=1)
    monitor = RecordingMonitor(
        small_data.validation, first_step=first, last_step=STEPS, eval_every=every, checkpoint_steps=(13,)
    )
    before = torch.get_rng_state()
    assert train(watched, small_data, RECIPE, start=start, observer=monitor, seed=1) == expected
    assert torch.equal(before, torch.get_rng_state())
    assert equal(bits(alone), bits(watched))
    evaluated = [s for s in range(first, STEPS + 1) if s % every == 0 or s in (first, STEPS)]
    assert monitor.observed_steps == sorted({*evaluated, 13})
    assert [point.step for point in monitor.curve] == evaluated
    assert list(monitor.states) == [13]
    assert monitor.start.step == first


@pytest.mark.parametrize("learning_rate", [0.01, 0.3])
def test_early_stopping_step_has_the_lowest_validation_loss_and_its_weights_are_saved(
    learning_rate, small_data
):
    """At the high learning rate the best step is far from the last one; training does not stop early."""
    model = tiny_networks.mlp(0)
    monitor = make_monitor(small_data, every=1)
    train(model, small_data, RECIPE.replace(learning_rate=learning_rate), observer=monitor)
    losses = [point.validation_loss for point in monitor.curve]
    assert len(losses) == STEPS + 1
    assert monitor.stop is monitor.curve[losses.index(min(losses))]
    end = evaluate(model, small_data.validation)
    assert (monitor.curve[-1].validation_loss, monitor.curve[-1].validation_accuracy) == (
        end.loss,
        end.accuracy,
    )
    model.load_state_dict(monitor.best)
    stop = evaluate(model, small_data.validation)
    assert (monitor.stop.validation_loss, monitor.stop.validation_accuracy) == (stop.loss, stop.accuracy)
    assert monitor.stop.test_accuracy == evaluate(model, small_data.test).accuracy
    assert (learning_rate > 0.1) == (monitor.stop.step < STEPS - 5)


def test_first_of_equal_losses_is_the_early_stopping_step(small_data):
    """At learning rate 0 all evaluations are equal."""
    monitor = make_monitor(small_data, every=2)
    train(tiny_networks.mlp(0), small_data, RECIPE.replace(learning_rate=0.0), observer=monitor)
    assert len({point.validation_loss for point in monitor.curve}) == 1
    assert monitor.stop.step == 0


@each_optimizer
def test_pruned_values_hold_after_every_step(optimizer, small_data):
    model = tiny_networks.mlp(0)
    constraint = make_constraint(model, "frozen")
    recipe = RECIPE.replace(optimizer=optimizer, weight_decay=0.1, penalty="l2", penalty_strength=0.1)
    run = Trainer(model, recipe, constraint)
    run.constraint.apply()
    expected = {name: (~mask, constraint.pruned_values[name]) for name, mask in constraint.items()}
    assert all(bool(value[pruned].all()) and not value[~pruned].any() for pruned, value in expected.values())
    for _ in range(15):
        run.step(small_data.train.inputs[:32], small_data.train.labels[:32])
        assert constraint.verify() == 0
        for name, (pruned, value) in expected.items():
            assert torch.equal(model.get_parameter(name)[pruned], value[pruned])
    for name, (pruned, value) in expected.items():
        assert (model.get_parameter(name)[~pruned] != value[~pruned]).all()


@pytest.mark.parametrize("kind", ["masked", "frozen"])
def test_violations_are_counted(kind, small_data):
    model = tiny_networks.mlp(0)
    constraint = make_constraint(model, kind)
    constraint.apply()
    assert constraint.verify() == 0
    weight, pruned = model.get_parameter("3.weight"), ~constraint["3.weight"]
    with torch.no_grad():
        weight[~pruned] += 1
        assert constraint.verify() == 0
        weight[pruned] += (torch.arange(int(pruned.sum())) < 5).float()
    assert constraint.verify() == 5
    monitor = make_monitor(small_data, count_violations=constraint.verify)
    run = Trainer(model, RECIPE, NoConstraint(model))
    for _ in range(2):
        monitor.observe(run)
    assert monitor.violations == 10


@each_model
@pytest.mark.parametrize("learning_rate", [0.01, 0.0])
@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_with_an_observer_equals_not_interrupted(make, epoch, learning_rate, small_data, tmp_path):
    """At learning rate 0 the best step is the first, which only the interrupted process observed."""
    path, recipe = tmp_path / "checkpoint", RECIPE.replace(learning_rate=learning_rate)

    def run(**more):
        model = make(0)
        monitor = make_monitor(small_data, every=3, states=(0, 4, 10))
        epochs = train(
            model,
            small_data,
            recipe,
            constraint=make_constraint(model, "masked"),
            observer=monitor,
            seed=2,
            **more,
        )
        return model, monitor, epochs

    def kill(done):
        if done.epoch == epoch:
            raise KeyboardInterrupt

    uninterrupted, expected, epochs = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, report=kill)
    model, monitor, again = run(checkpoint=path)
    assert equal(bits(uninterrupted), bits(model))
    assert (monitor.curve, again) == (expected.curve, epochs)
    assert equal(monitor.best, expected.best)
    assert monitor.states.keys() == {0, 4, 10} == expected.states.keys()
    for step, state in {**expected.states, "start": expected.start}.items():
        observed = monitor.start if step == "start" else monitor.states[step]
        assert observed.step == state.step
        assert equal(state_to_tensors(observed), state_to_tensors(state))


def test_checkpoint_of_a_training_with_an_observer_is_refused_without_one(small_data, tmp_path):
    path = tmp_path / "checkpoint"
    train(tiny_networks.mlp(0), small_data, RECIPE, observer=make_monitor(small_data), checkpoint=path)
    with pytest.raises(CheckpointError, match="training with no observer, got one with an observer"):
        train(tiny_networks.mlp(0), small_data, RECIPE, checkpoint=path)


KILLED = """
import json, sys, torch
from dataclasses import asdict
from pathlib import Path
import tiny_networks
from prunus import load_data, train, Recipe
from prunus.tickets.monitor import TrainingMonitor
from prunus.training.state import state_to_tensors
torch.set_num_threads(1)
data, model = load_data("digits"), tiny_networks.dropping(0)
recipe = Recipe(12, 0.005, 16, lr_schedule="cosine")
seen = TrainingMonitor(data.validation, first_step=0, last_step=12 * 82, eval_every=40, checkpoint_steps=(0, 100, 500))
train(model, data, recipe, seed=3, observer=seen, checkpoint=Path(sys.argv[1]),
      report=lambda epoch: print(epoch.epoch, flush=True))
def sums(tensors):
    return {name: tensor.double().sum().item().hex() for name, tensor in tensors.items()}
print(json.dumps([
    sums(model.state_dict()), sums(seen.best), [asdict(point) for point in seen.curve],
    {step: sums(state_to_tensors(state)) for step, state in {**seen.states, -1: seen.start}.items()},
], sort_keys=True), flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n{KILLED}"]
        return subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)

    uninterrupted = start("whole").communicate()[0].splitlines()
    assert uninterrupted[:-1] == [str(epoch + 1) for epoch in range(12)]
    moments = random.Random()
    done: list[str] = []
    for _ in range(4):
        process = start("killed")
        lines_left = moments.randint(1, 3)
        for line in process.stdout:
            done.append(line.strip())
            lines_left -= 1
            if not lines_left:
                break
        try:
            process.wait(moments.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    last = start("killed").communicate()[0].splitlines()
    assert last[-1] == uninterrupted[-1]
    assert 4 <= len(set(done)) <= 12


def test_copied_model_shares_no_weights(small_data):
    """The tests above compare trainings of models that share no tensors."""
    first = tiny_networks.mlp(0)
    second = copy.deepcopy(first)
    train(second, small_data, RECIPE)
    assert equal(bits(first), bits(tiny_networks.mlp(0)))
    assert steps_per_epoch(RECIPE, small_data.train) * RECIPE.epochs == STEPS


def test_random_state_of_a_gpu_is_kept_with_that_of_the_cpu(monkeypatch):
    """No GPU is needed: its generator is replaced by a tensor."""
    device, generator = torch.device("cuda", 1), {1: torch.tensor([7, 8, 9], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator[device.index])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: generator.update({device.index: state})
    )
    state = random_state(device)
    expected, generator[1] = torch.rand(4), torch.zeros(3, dtype=torch.uint8)
    set_random_state(state, device)
    assert torch.equal(torch.rand(4), expected)
    assert generator[1].tolist() == [7, 8, 9]
    set_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
    set_random_state(random_state(torch.device("cpu")), device)  # written by a training on the CPU
    assert generator[1].tolist() == [7, 8, 9]
