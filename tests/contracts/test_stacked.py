"""Laws of stacked training: each replicate trains as it would alone, and hears nothing of the others.

"As alone" is to rounding: after these 21 steps no weight is further from that of `train` than TOLERANCE; measured is a
fifth of it. The number of replicates, and the place among them, also change the rounding, and nothing else does.
"""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import DivergedError, LostClaimError, ModelError, PrunusError, SpecError
from prunus.nouns import IGNORE_INDEX, Dataset, Split
from prunus.seeds import generator
from prunus.tickets.watch import Watch
from prunus.training import Masked, Recipe, evaluate, train
from prunus.training.constraints import Free
from prunus.training.job import Job
from prunus.training.learning_rates import DECAYS
from prunus.training.optimisers import OPTIMISERS
from prunus.training.penalties import PENALTIES
from prunus.training.stacked import train_stacked
from prunus.training.state import State

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import small

RECIPE = Recipe(epochs=3, learning_rate=0.005, batch_size=24, momentum=0.9)
STEPS = 3 * 7
TOLERANCE = 2e-5
"""Of a weight, where weights are about 0.3."""

each_count = pytest.mark.parametrize("replicates", [1, 3])


def constraint(model, kind: str, seed: int):
    if kind == "free":
        return Free(model)
    names, draw = ("1.weight", "3.weight", "5.weight"), generator(seed, "held")
    masks = {name: torch.rand(model.get_parameter(name).shape, generator=draw) < 0.4 for name in names}
    values = {name: 0.1 * torch.randn(mask.shape, generator=draw) for name, mask in masks.items()}
    return Masked(model, masks, values if kind == "frozen" else None)


def watching(data, first=0, states=()):
    return Watch(data.validation, first=first, last=STEPS, every=4, states=states, test=data.test)


def job(data, recipe=RECIPE, seed=0, kind="free", start=None, model=None, **more) -> Job:
    model = small.mlp(seed) if model is None else model
    return Job(model, data, recipe, constraint(model, kind, seed), seed=seed, start=start, **more)


def of_a_part(data) -> Job:
    model = small.mlp(0)
    return Job(model, data, RECIPE, Free(model[1]))


def unlabeled(data) -> Dataset:
    """`data` with one training example that is to be ignored."""
    labels = data.train.labels.clone()
    labels[0] = IGNORE_INDEX
    return dataclasses.replace(data, train=Split(data.train.inputs, labels))


def distance(a, b) -> float:
    a, b = a.state_dict(), b.state_dict()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def check_as_alone(make, replicates):
    """`make(seed)` is a job; R of them stacked are as R of them alone."""
    alone, together = [make(seed) for seed in range(replicates)], [make(seed) for seed in range(replicates)]
    expected = [one.carry_out() for one in alone]
    found = train_stacked(together)
    for one, other, epochs, others in zip(alone, together, expected, found, strict=True):
        assert distance(one.model, other.model) < TOLERANCE
        assert distance(one.model, make(0).model) > 0.01
        assert [epoch.epoch for epoch in epochs] == [epoch.epoch for epoch in others]
        for mine, theirs in zip(epochs, others, strict=True):
            assert mine.training_loss == pytest.approx(theirs.training_loss, rel=1e-4)
            assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
    return alone, together


@each_count
@pytest.mark.parametrize("kind", ["free", "masked", "frozen"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_as_alone_with_every_optimiser(optimiser, kind, replicates, few):
    recipe = RECIPE.but(optimiser=optimiser, weight_decay=0.01, decay="cosine")
    check_as_alone(lambda seed: job(few, recipe, seed, kind), replicates)


@each_count
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_as_alone_with_every_penalty_and_learning_rate(penalty, decay, replicates, few):
    recipe = RECIPE.but(optimiser="sgd", penalty=penalty, penalty_strength=0.01, decay=decay)
    check_as_alone(lambda seed: job(few, recipe, seed, "masked"), replicates)


@each_count
@pytest.mark.parametrize("step", [0, 5, 7])
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "rmsprop"])
def test_as_alone_from_a_state(optimiser, step, replicates, few):
    recipe = RECIPE.but(optimiser=optimiser, decay="linear")

    def make(seed):
        seen = watching(few, states=(step,))
        train(small.mlp(seed), few, recipe, observer=seen, seed=seed)
        later = watching(few, first=step, states=(step, 9))
        return job(few, recipe, seed, "frozen", seen.states[step], small.mlp(9), observer=later)

    alone, together = check_as_alone(make, replicates)
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one.observer.curve, other.observer.curve, strict=True):
            assert (mine.step, mine.validation_loss) == (
                theirs.step,
                pytest.approx(theirs.validation_loss, rel=1e-4),
            )
        assert one.observer.states.keys() == other.observer.states.keys() == {step, 9}
        for mine, theirs in zip(one.observer.states.values(), other.observer.states.values(), strict=True):
            assert mine.optimiser.keys() == theirs.optimiser.keys()
            for a, b in ((mine.model, theirs.model), (mine.optimiser, theirs.optimiser)):
                assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5) for name in a)


@pytest.mark.parametrize("kind", ["masked", "frozen"])
def test_what_is_held_is_held_exactly(kind, few):
    jobs = [job(few, RECIPE.but(weight_decay=0.1), seed, kind) for seed in range(3)]
    broken = []

    class Looking(Watch):
        def observe(self, moment):
            broken.append(sum(one.constraint.broken() for one in jobs))

    looks = [Looking(few.validation, first=0, last=STEPS, every=1) for _ in jobs]
    train_stacked(
        [
            Job(o.model, few, o.recipe, o.constraint, o.seed, observer=w)
            for o, w in zip(jobs, looks, strict=True)
        ]
    )
    assert broken == [0] * 3 * (STEPS + 1)
    for one in jobs:
        holes = [w[f == 0] for w, f in zip(one.constraint.weights, one.constraint.factors, strict=True)]
        assert all(not torch.signbit(values[values == 0]).any() for values in holes)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_replicates_never_influence_one_another(optimiser, few):
    """Bit for bit where only the others are others; to rounding where their number is, or the place among them."""
    recipe = RECIPE.but(optimiser=optimiser)

    def end(seed, *order):
        jobs = [job(few, recipe, one, "masked") for one in order]
        train_stacked(jobs)
        return jobs[order.index(seed)].model

    for others in ((0, 1, 2), (5, 1, 9)):
        assert distance(end(1, 0, 1, 2), end(1, *others)) == 0
    for others in ((1,), (1, 4), (0, 2, 1)):
        assert distance(end(1, 0, 1, 2), end(1, *others)) < TOLERANCE
    assert distance(end(1, 0, 1, 2), end(2, 0, 1, 2)) > 0.01


def test_observers_change_nothing_and_see_each_its_own(few):
    bare, seen = ([job(few, seed=seed) for seed in range(3)] for _ in range(2))
    seen = [
        Job(one.model, few, RECIPE, one.constraint, one.seed, observer=watching(few, states=(10, STEPS)))
        for one in seen
    ]
    assert train_stacked(bare) == train_stacked(seen)
    for one, other in zip(bare, seen, strict=True):
        assert distance(one.model, other.model) == 0
        assert all(
            torch.equal(t, other.observer.states[STEPS].model[n]) for n, t in one.model.state_dict().items()
        )
        assert [point.step for point in other.observer.curve] == [0, 4, 8, 12, 16, 20, STEPS]
        end = evaluate(one.model, few.validation)
        assert other.observer.curve[-1].validation_loss == end.loss


def test_one_that_fails_does_not_stop_the_others(few):
    """One diverges, one loses its claim in the middle; the third trains as it would with sound ones beside it."""

    class Lost(Watch):
        def observe(self, moment):
            if moment.done == 8:
                raise LostClaimError("taken over")

    def jobs():
        return [job(few, RECIPE.but(optimiser="sgd"), seed) for seed in range(3)]

    sound, marred = jobs(), jobs()
    with torch.no_grad():
        marred[0].model.get_parameter("1.weight").fill_(1e30)
    lost = Lost(few.validation, first=0, last=STEPS, every=4)
    marred[2] = Job(marred[2].model, few, marred[2].recipe, marred[2].constraint, 2, observer=lost)
    expected, found = train_stacked(sound), train_stacked(marred)
    assert isinstance(found[0], DivergedError)
    assert isinstance(found[2], LostClaimError)
    assert found[1] == expected[1]
    assert distance(sound[1].model, marred[1].model) == 0


def test_reports_and_modes(few):
    said: list[tuple[int, int]] = []
    jobs = [
        job(few, seed=seed, report=lambda epoch, seed=seed: said.append((seed, epoch.epoch)))
        for seed in range(2)
    ]
    jobs[0].model.eval()
    train_stacked(jobs)
    assert said == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    assert [one.model.training for one in jobs] == [False, True]


def still(model):
    model.get_parameter("3.bias").requires_grad_(False)
    return model


def state(data, recipe=RECIPE, step=5):
    seen = watching(data, states=(step,))
    train(small.mlp(0), data, recipe, observer=seen)
    return seen.states[step]


def wide(seed):
    return small.drawn(nn.Sequential(nn.Flatten(), nn.Linear(64, 25), nn.ReLU(), nn.Linear(25, 10)), seed)


def no_relu(seed):
    return small.drawn(nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 10)), seed)


REFUSED = {
    "convolutions": (
        lambda d: [job(d, model=small.convolved(0))],
        ModelError,
        "on a CPU others train faster",
    ),
    "BatchNorm": (lambda d: [job(d, model=small.normed(0))], ModelError, "BatchNorm"),
    "dropout": (lambda d: [job(d, model=small.dropping(0))], ModelError, "dropout"),
    "a bridge": (lambda d: [job(d, model=small.residual(0))], ModelError, "more than its linear layers"),
    "tanh": (lambda d: [job(d, model=no_relu(0))], ModelError, "more than its linear layers"),
    "frozen layers": (lambda d: [job(d, model=still(small.mlp(0)))], ModelError, "'3.bias'"),
    "shapes": (lambda d: [job(d), job(d, model=wide(0))], ModelError, "different shapes"),
    "patience": (lambda d: [job(d, RECIPE.but(patience=3))], SpecError, "patience"),
    "recipes": (lambda d: [job(d), job(d, RECIPE.but(learning_rate=0.1))], SpecError, "one recipe"),
    "data": (lambda d: [job(d), job(d.first(100, 30))], SpecError, "one data set"),
    "constraints": (lambda d: [job(d), job(d, kind="masked")], SpecError, r"\['Free', 'Masked'\]"),
    "masks": (
        lambda d: [job(d, kind="masked"), other_masks(d)],
        SpecError,
        "masks are of different tensors",
    ),
    "steps": (
        lambda d: [job(d, start=state(d)), job(d, start=state(d, step=6))],
        SpecError,
        "different steps",
    ),
    "a part": (lambda d: [of_a_part(d)], SpecError, "constraint is of another module"),
    "no labels": (lambda d: [job(unlabeled(d))], SpecError, r"without a label \(-100\)"),
    "a state and none": (lambda d: [job(d, start=state(d, step=0)), job(d)], SpecError, "some do not"),
    "memories": (
        lambda d: [job(d, start=state(d)), job(d, start=State(5, state(d).model))],
        SpecError,
        "remember different things",
    ),
}


def other_masks(data):
    model = small.mlp(0)
    return Job(model, data, RECIPE, Masked(model, {"1.weight": torch.ones(24, 64, dtype=torch.bool)}))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_stacked_is_refused_before_anything_is_trained(what, few):
    make, error, said = REFUSED[what]
    jobs = make(few)
    before = [{n: t.clone() for n, t in one.model.state_dict().items()} for one in jobs]
    random = torch.get_rng_state()
    with pytest.raises(error, match=said):
        train_stacked(jobs)
    if what not in ("steps", "a state and none", "memories"):
        for one, old in zip(jobs, before, strict=True):
            assert all(torch.equal(t, old[n]) for n, t in one.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert issubclass(error, PrunusError)
