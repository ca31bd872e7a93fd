"""`prunus.GradualPruning` prunes at the right steps of a training loop, within the masks of the round before."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import (
    CheckpointError,
    DensityError,
    ModelError,
    SpecError,
    StatisticsError,
    UnknownNameError,
)
from prunus.masks import are_nested

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(1))
SPLIT = prunus.Split(INPUTS, LABELS)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 4))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, optimizer, pruning, steps):
    """The steps at which the model was pruned, with the masks."""
    masks = {}
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(INPUTS), LABELS).backward()
        optimizer.step()
        if pruning.step():
            masks[pruning.num_steps] = dict(pruning.masks)
        assert pruning.masks is None or pruning.masks.verify() == 0
    return masks


CRITERIA = [
    {"criterion": "magnitude"},
    {"criterion": "random"},
    {"criterion": "snip", "calibration": SPLIT},
    {"criterion": "obs", "calibration": SPLIT},
]


@pytest.mark.parametrize("schedule", ["cubic", "iterative"])
@pytest.mark.parametrize("options", CRITERIA, ids=lambda options: options["criterion"])
def test_each_round_is_at_its_step_and_density_and_nested(schedule, options):
    """Zhu & Gupta 2017, eq. 1, and d^(t / n)."""
    model = network()
    optimizer = adamw(model)
    pruning = prunus.GradualPruning(schedule, model, 0.1, optimizer, rounds=4, every=3, begin=2, **options)
    masks = train(model, optimizer, pruning, 18)
    assert list(masks) == [5, 8, 11, 14]
    outer = None
    for step, inner in masks.items():
        t = (step - 2) / (4 * 3)
        expected = {"cubic": 1 - (1 - 0.1) * (1 - (1 - t) ** 3), "iterative": 0.1**t}[schedule]
        assert prunus.mask_density(inner) == pytest.approx(expected, abs=1 / 160)
        assert outer is None or are_nested(inner, outer)
        outer = inner
    assert pruning.is_finished
    assert pruning.density == pytest.approx(0.1)
    assert int(model[0].weight.count_nonzero() + model[2].weight.count_nonzero()) == 48


def test_a_schedule_of_ones_own_and_parts_of_the_model():
    model = network()
    optimizer = adamw(model)
    pruning = prunus.GradualPruning(
        lambda density, rounds: [0.9, density], model, 0.5, optimizer, rounds=2, every=1, exclude=["2.*"]
    )
    assert list(train(model, optimizer, pruning, 4)) == [1, 2]
    assert list(pruning.masks) == ["0.weight"]


@pytest.mark.parametrize("done", [1, 4])
def test_a_killed_training_continues_with_the_same_bits(done):
    """Before the first round, and after it."""

    def start(model):
        optimizer = adamw(model)
        pruning = prunus.GradualPruning(
            "cubic", model, 0.1, optimizer, rounds=3, every=2, begin=1, criterion="random", seed=7
        )
        return optimizer, pruning

    model = network()
    optimizer, pruning = start(model)
    train(model, optimizer, pruning, done)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    stored = save(pruning.state_dict())
    train(model, optimizer, pruning, 8 - done)

    resumed = network(1)
    optimizer, again = start(resumed)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    again.load_state_dict(load(stored))
    train(resumed, optimizer, again, 8 - done)
    assert all(torch.equal(again.masks[name], mask) for name, mask in pruning.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_compiled_model_is_pruned_under_the_names_of_its_module():
    model = network()
    compiled, optimizer = torch.compile(model, backend="eager"), adamw(model)
    settings = {"rounds": 2, "every": np.int64(1), "exclude": ["0.weight"]}
    pruning, other = (
        prunus.GradualPruning("cubic", trained, 0.25, optimizer, **settings) for trained in (compiled, model)
    )
    assert pruning.step()
    assert list(pruning.masks) == ["2.weight"]
    other.load_state_dict(pruning.state_dict())
    pruning.load_state_dict(other.state_dict())
    assert pruning.step()
    assert pruning.density == 0.25


def test_each_seed_and_each_round_has_random_scores_of_its_own():
    """With scores that were the same in two rounds, the second mask would be the best of the first."""
    masks = []
    for seed, rounds in ((0, 1), (1, 1), (0, 2)):
        model = network()
        optimizer = adamw(model)
        pruning = prunus.GradualPruning(
            "cubic", model, 0.2, optimizer, rounds=rounds, every=1, criterion="random", seed=seed
        )
        train(model, optimizer, pruning, rounds)
        masks.append(pruning.masks["0.weight"])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


CALIBRATION = (torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64))
BAD = [
    ({"density": 0.0}, DensityError, "0.0"),
    ({"density": 0.001}, DensityError, "keeps one of the"),
    ({"schedule": "linear"}, UnknownNameError, "schedule"),
    ({"rounds": 0}, DensityError, "0 rounds"),
    ({"every": 0}, SpecError, "every to be an integer of at least 1, got 0"),
    ({"begin": -1}, SpecError, "begin to be an integer of at least 0, got -1"),
    ({"scope": "2:4"}, DensityError, "0.5"),
    ({"exclude": ["*"]}, ModelError, "no"),
    ({"damping": 1}, SpecError, r"options of prunus\.prune, got damping"),
    ({"within": {}}, SpecError, "Expected no within"),
    ({"recalibrate": True}, StatisticsError, "calibration examples for recalibrate=True"),
    ({"refit": True}, StatisticsError, "calibration examples for refit=True"),
    ({"densities": "error_curves"}, StatisticsError, "calibration examples for densities="),
    ({"forward": lambda model, batch: model(batch[0])}, StatisticsError, "calibration examples for forward"),
    ({"criterion": "fisher"}, StatisticsError, "calibration examples for this method"),
    ({"loss": "squared_error"}, StatisticsError, "Expected no loss with this method"),
    ({"criterion": "fisher", "calibration": CALIBRATION, "loss": "nope"}, UnknownNameError, "loss 'nope'"),
    ({"progress": 3}, SpecError, "progress"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[", ".join(bad[0]) for bad in BAD])
def test_bad_settings_are_refused_at_once(changes, error, message):
    model = network()
    settings = {"schedule": "cubic", "density": 0.1, "rounds": 2, "every": 1, **changes}
    with pytest.raises(error, match=message):
        prunus.GradualPruning(
            settings.pop("schedule"), model, settings.pop("density"), adamw(model), **settings
        )


def test_an_optimizer_or_a_state_of_another_model_is_refused():
    model = network()
    with pytest.raises(ModelError, match="steps none"):
        prunus.GradualPruning("cubic", model, 0.5, adamw(network()), rounds=1, every=1)
    pruning = prunus.GradualPruning("cubic", model, 0.5, adamw(model), rounds=1, every=1)
    with pytest.raises(CheckpointError, match="num_steps"):
        pruning.load_state_dict({})
    with pytest.raises(ModelError, match="one bit per weight"):
        pruning.load_state_dict({"num_steps": torch.tensor(1), "masks/0.weight": torch.zeros(39).byte()})
    assert (pruning.num_steps, pruning.masks) == (0, None)
