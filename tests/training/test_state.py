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
from prunus.training.loop import Trainer, steps_per_epoch
from prunus.training.recipe import LR_SCHEDULES, OPTIMIZERS
from prunus.training.state import clone_tensors, state_to_tensors

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

import small  # noqa: E402

RECIPE = Recipe(epochs=3, learning_rate=0.01, batch_size=24, momentum=0.9)
STEPS = 3 * 7
"""160 examples: six batches of 24, and one of 16."""
MODELS = {"mlp": small.mlp, "normed": small.normed, "dropping": small.dropping, "convolved": small.convolved}

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def bits(model) -> dict[str, torch.Tensor]:
    return clone_tensors(model.state_dict())


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def held(model, kind: str):
    """No constraint, masks, or masks with pruned values."""
    if kind == "free":
        return NoConstraint(model)
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    draw = make_generator(3, "held")
    masks = {name: torch.rand(model.get_parameter(name).shape, generator=draw) < 0.4 for name in names}
    values = {name: torch.randn(mask.shape, generator=draw) for name, mask in masks.items()}
    return Masks(model, masks, values if kind == "frozen" else None)


def watch(data, first=0, every=5, states=(), count_violations=None) -> TrainingMonitor:
    return TrainingMonitor(
        data.validation,
        first_step=first,
        last_step=STEPS,
        eval_every=every,
        checkpoint_steps=states,
        test=data.test,
        count_violations=count_violations,
    )


class Counting(TrainingMonitor):
    """Writes down where it was asked to look."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.looked: list[int] = []

    def observe(self, moment):
        self.looked.append(moment.done)
        super().observe(moment)


@each_optimizer
@pytest.mark.parametrize("kind", ["free", "masked", "frozen"])
@pytest.mark.parametrize("step", [1, 7, 11, STEPS - 1])
def test_from_a_state_in_the_middle_as_if_never_interrupted(optimizer, kind, step, few):
    recipe = RECIPE.replace(optimizer=optimizer, lr_schedule="cosine")
    whole, seen = small.mlp(0), watch(few, states=(step,))
    expected = train(whole, few, recipe, constraint=held(whole, kind), observer=seen, seed=4)
    other = small.mlp(9)
    found = train(other, few, recipe, constraint=held(other, kind), start=seen.states[step], seed=4)
    assert equal(bits(whole), bits(other))
    assert [asdict(e) for e in found[1:]] == [asdict(e) for e in expected[-len(found) :]][1:]
    assert found[-1].validation_loss == expected[-1].validation_loss


@each_model
@pytest.mark.parametrize("lr_schedule", LR_SCHEDULES)
def test_whatever_the_network_and_the_learning_rate(make, lr_schedule, few):
    recipe = RECIPE.replace(lr_schedule=lr_schedule, weight_decay=0.01, penalty="l1", penalty_strength=1e-4)
    whole, seen = make(0), watch(few, states=(10,))
    train(whole, few, recipe, observer=seen, seed=4)
    other = make(9)
    train(other, few, recipe, start=seen.states[10], seed=4)
    assert equal(bits(whole), bits(other))


def test_another_seed_goes_another_way_from_the_same_state(few):
    seen = watch(few, states=(10,))
    train(small.mlp(0), few, RECIPE, observer=seen, seed=4)
    ends = []
    for seed in (4, 5):
        ends.append(small.mlp(0))
        train(ends[-1], few, RECIPE, start=seen.states[10], seed=seed)
    assert not equal(bits(ends[0]), bits(ends[1]))


def test_a_state_is_a_copy_and_using_it_leaves_it_alone(few):
    seen = watch(few, states=(0, 10))
    train(small.mlp(0), few, RECIPE, observer=seen)
    state = seen.states[10]
    before = clone_tensors(state_to_tensors(state))
    train(small.mlp(1), few, RECIPE, start=state)
    assert equal(before, state_to_tensors(state))
    assert equal(seen.states[0].model, bits(small.mlp(0)))
    assert not seen.states[0].optimizer
    assert state.optimizer


@each_model
@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("every", [1, 4, 1000])
def test_observers_are_called_when_due_and_change_nothing(make, first, every, few):
    start = None
    if first:
        seen = watch(few, states=(first,))
        train(make(0), few, RECIPE, observer=seen, seed=1)
        start = seen.states[first]
    alone, watched = make(0), make(0)
    expected = train(alone, few, RECIPE, start=start, seed=1)
    looking = Counting(
        few.validation, first_step=first, last_step=STEPS, eval_every=every, checkpoint_steps=(13,)
    )
    before = torch.get_rng_state()
    assert train(watched, few, RECIPE, start=start, observer=looking, seed=1) == expected
    assert torch.equal(before, torch.get_rng_state())
    assert equal(bits(alone), bits(watched))
    evaluated = [s for s in range(first, STEPS + 1) if s % every == 0 or s in (first, STEPS)]
    assert looking.looked == sorted({*evaluated, 13})
    assert [point.step for point in looking.curve] == evaluated
    assert list(looking.states) == [13]
    assert looking.start.step == first


@pytest.mark.parametrize("learning_rate", [0.01, 0.3])
def test_the_stop_is_the_lowest_validation_loss_and_its_weights_are_kept(learning_rate, few):
    """At the high rate the best is far from the end: training runs on all the same."""
    model = small.mlp(0)
    seen = watch(few, every=1)
    train(model, few, RECIPE.replace(learning_rate=learning_rate), observer=seen)
    losses = [point.validation_loss for point in seen.curve]
    assert len(losses) == STEPS + 1
    assert seen.stop is seen.curve[losses.index(min(losses))]
    end = evaluate(model, few.validation)
    assert (seen.curve[-1].validation_loss, seen.curve[-1].validation_accuracy) == (end.loss, end.accuracy)
    model.load_state_dict(seen.best)
    stop = evaluate(model, few.validation)
    assert (seen.stop.validation_loss, seen.stop.validation_accuracy) == (stop.loss, stop.accuracy)
    assert seen.stop.test_accuracy == evaluate(model, few.test).accuracy
    assert (learning_rate > 0.1) == (seen.stop.step < STEPS - 5)


def test_of_equal_losses_the_first_counts(few):
    """Without a learning rate nothing moves, and every evaluation is as good."""
    seen = watch(few, every=2)
    train(small.mlp(0), few, RECIPE.replace(learning_rate=0.0), observer=seen)
    assert len({point.validation_loss for point in seen.curve}) == 1
    assert seen.stop.step == 0


@each_optimizer
def test_frozen_values_stand_after_every_step(optimizer, few):
    model = small.mlp(0)
    constraint = held(model, "frozen")
    recipe = RECIPE.replace(optimizer=optimizer, weight_decay=0.1, penalty="l2", penalty_strength=0.1)
    run = Trainer(model, recipe, constraint)
    run.constraint.apply()
    expected = {name: (~mask, constraint.pruned_values[name]) for name, mask in constraint.items()}
    assert all(bool(value[holes].all()) and not value[~holes].any() for holes, value in expected.values())
    for _ in range(15):
        run.step(few.train.inputs[:32], few.train.labels[:32])
        assert constraint.verify() == 0
        for name, (holes, value) in expected.items():
            assert torch.equal(model.get_parameter(name)[holes], value[holes])
    for name, (holes, value) in expected.items():
        assert (model.get_parameter(name)[~holes] != value[~holes]).all()


@pytest.mark.parametrize("kind", ["masked", "frozen"])
def test_broken_counts(kind, few):
    model = small.mlp(0)
    constraint = held(model, kind)
    constraint.apply()
    assert constraint.verify() == 0
    weight, holes = model.get_parameter("3.weight"), ~constraint["3.weight"]
    with torch.no_grad():
        weight[~holes] += 1
        assert constraint.verify() == 0
        weight[holes] += (torch.arange(int(holes.sum())) < 5).float()
    assert constraint.verify() == 5
    seen = watch(few, count_violations=constraint.verify)
    run = Trainer(model, RECIPE, NoConstraint(model))
    for _ in range(2):
        seen.observe(run)
    assert seen.violations == 10


@each_model
@pytest.mark.parametrize("learning_rate", [0.01, 0.0])
@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_with_an_observer_equals_not_interrupted(make, epoch, learning_rate, few, tmp_path):
    """Without a learning rate, the best but for BatchNorm is the start, which the killed process alone saw."""
    path, recipe = tmp_path / "checkpoint", RECIPE.replace(learning_rate=learning_rate)

    def go(**more):
        model = make(0)
        seen = watch(few, every=3, states=(0, 4, 10))
        epochs = train(model, few, recipe, constraint=held(model, "masked"), observer=seen, seed=2, **more)
        return model, seen, epochs

    def kill(done):
        if done.epoch == epoch:
            raise KeyboardInterrupt

    whole, expected, epochs = go()
    with pytest.raises(KeyboardInterrupt):
        go(checkpoint=path, report=kill)
    model, seen, again = go(checkpoint=path)
    assert equal(bits(whole), bits(model))
    assert (seen.curve, again) == (expected.curve, epochs)
    assert equal(seen.best, expected.best)
    assert seen.states.keys() == {0, 4, 10} == expected.states.keys()
    for step, state in {**expected.states, "start": expected.start}.items():
        mine = seen.start if step == "start" else seen.states[step]
        assert mine.step == state.step
        assert equal(state_to_tensors(mine), state_to_tensors(state))


def test_checkpoint_of_a_training_with_an_observer_is_refused_without_one(few, tmp_path):
    path = tmp_path / "checkpoint"
    train(small.mlp(0), few, RECIPE, observer=watch(few), checkpoint=path)
    with pytest.raises(CheckpointError, match="training with no observer, got one with an observer"):
        train(small.mlp(0), few, RECIPE, checkpoint=path)


KILLED = """
import json, sys, torch
from dataclasses import asdict
from pathlib import Path
import small
from prunus import load_data, train, Recipe
from prunus.tickets.monitor import TrainingMonitor
from prunus.training.state import state_to_tensors
torch.set_num_threads(1)
data, model = load_data("digits"), small.dropping(0)
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

    whole = start("whole").communicate()[0].splitlines()
    assert whole[:-1] == [str(epoch + 1) for epoch in range(12)]
    moments = random.Random()
    done: list[str] = []
    for _ in range(4):
        process = start("killed")
        wanted = moments.randint(1, 3)
        for line in process.stdout:
            done.append(line.strip())
            wanted -= 1
            if not wanted:
                break
        try:
            process.wait(moments.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    last = start("killed").communicate()[0].splitlines()
    assert last[-1] == whole[-1]
    assert 4 <= len(set(done)) <= 12


def test_a_copied_network_is_another(few):
    """What the tests above lean on: they compare trainings of networks that share nothing."""
    one = small.mlp(0)
    two = copy.deepcopy(one)
    train(two, few, RECIPE)
    assert equal(bits(one), bits(small.mlp(0)))
    assert steps_per_epoch(RECIPE, few.train) * RECIPE.epochs == STEPS
