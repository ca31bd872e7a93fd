"""Laws of tickets: what starts from what, counts, masks, receipts that pass and receipts that fail."""

import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from prunus.errors import (
    DensityError,
    InvariantWarning,
    ModelError,
    NoEffectWarning,
    SpecError,
    UnknownNameError,
)
from prunus.pruning.density import num_to_keep
from prunus.pruning.masks import are_nested
from prunus.pruning.prunable import layer_kinds, prunable_weights
from prunus.pruning.scopes import SCOPES, Layer
from prunus.pruning.statistics import collect
from prunus.runs.spec import run_id
from prunus.seeds import make_generator
from prunus.tickets.artifacts import InMemoryArtifacts
from prunus.tickets.baseline import BaselineSpec, load_saved_state
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.mask0 import MASK0_ACTIONS
from prunus.tickets.mask1 import MASK1_ACTIONS
from prunus.tickets.monitor import TrainingMonitor
from prunus.tickets.procedure import mask_key
from prunus.tickets.supermask import Bernoulli, Signed
from prunus.tickets.supermask.learned_supermask import LearnedSupermaskSpec
from prunus.tickets.ticket import REWINDING, PruningRates, TicketSpec
from prunus.training import Masks, Recipe, evaluate, train
from prunus.training.constraints import Constraint
from prunus.training.state import TrainingState
from prunus.types import Dataset, Split, mask_density

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import small  # the module that "small:NAME" means

RECIPE = Recipe(epochs=2, learning_rate=0.02, batch_size=25, lr_schedule="linear")
DENSE = BaselineSpec("small:mlp", "digits", RECIPE, examples=85, every=3, states=(2, 5))
LEARNED = LearnedSupermaskSpec(DENSE, recipe=Recipe(2, 0.1, 20), samples=2)
HELD = "pruned weights are what the action says at every evaluation"
LAST = 8
"""Steps: two epochs of three batches of 25 and one of 10."""
NOTHING = PruningRates(0.0, 0.0, 0.0)
SHELVES: dict[str, InMemoryArtifacts] = {}


@dataclass
class Training:
    """The arguments of a call of `train`."""

    model: nn.Module
    data: Dataset
    recipe: Recipe
    constraint: Constraint
    seed: int
    start: TrainingState | None
    observer: TrainingMonitor
    checkpoint: None
    progress: None


def done(spec, *needed, change=lambda training: training, shelf=None):
    """Carry out a run; `change` may alter the arguments of its trainings."""
    shelf = InMemoryArtifacts() if shelf is None else shelf

    def changed_train(model, data, recipe, **arguments):
        return train(**vars(change(Training(model, data, recipe, **arguments))))

    with patch("prunus.tickets.baseline.train", changed_train):
        spec.run(shelf, needed)
    return shelf


def trained(spec: BaselineSpec | LearnedSupermaskSpec = DENSE) -> InMemoryArtifacts:
    """The dense training, or the learning of a mask, carried out once."""
    if run_id(spec) not in SHELVES:
        SHELVES[run_id(spec)] = done(spec, *(trained(one) for one in spec.needs()))
    return SHELVES[run_id(spec)]


def trainings_of(spec, *needed) -> list[Training]:
    """The trainings of a run, in order, with what they started from."""
    found = []

    def note(training):
        found.append(training)
        return training

    done(spec, *needed, change=note)
    return found


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at(tensors, masks, kept=True):
    return {name: tensors[name][mask if kept else ~mask] for name, mask in masks.items()}


def rest(model, masks):
    return {name: tensor for name, tensor in model.items() if name not in masks}


def rows(shelf):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in shelf.rows()]


def figures(shelf):
    """The rows without their receipts."""
    return [{key: value for key, value in row.items() if key != "invariants"} for row in rows(shelf)]


def masks_at(shelf, level):
    return shelf.get_masks(mask_key(level))


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_every_combination_of_actions_has_a_receipt_that_passes(mask1, mask0):
    spec = TicketSpec(DENSE, rounds=2, rates=PruningRates(0.4), mask1=mask1, mask0=mask0)
    if mask1 == "supermask":
        spec = replace(spec, rounds=1, masks_from=LEARNED)
    shelf = done(spec, *(trained(one) for one in spec.needs()))
    assert [row["level"] for row in shelf.rows()] == list(range(1, spec.rounds + 1))
    for row in shelf.rows():
        assert row["invariants"]["passed"], row["invariants"]
        held = MASK0_ACTIONS[mask0].frozen
        assert row["invariants"]["evaluations"] == (4 if held else 0)  # at steps 0, 3, 6 and 8
        assert (HELD in row["invariants"]["checks"]) == held
        assert len(row["invariants"]["checks"]) >= 8


def test_masks_are_said_to_be_nested_where_they_are_made_so():
    """And where another's masks are taken, of which that is known."""
    iterative = TicketSpec(DENSE, rounds=2, criterion="random")
    single = replace(iterative, schedule="one_shot")
    said = {}
    for name, spec in {
        "iterative": iterative,
        "one-shot": single,
        "of iterative": TicketSpec(DENSE, rounds=2, masks_from=iterative),
        "of one-shot": TicketSpec(DENSE, rounds=2, masks_from=single),
    }.items():
        shelf = done(spec, *(done(one, trained()) if one != DENSE else trained() for one in spec.needs()))
        nested = are_nested(masks_at(shelf, 2), masks_at(shelf, 1))
        checks = [row["invariants"]["checks"] for row in shelf.rows()]
        assert all(row["invariants"]["passed"] for row in shelf.rows())
        said[name] = (nested, *("the masks are nested" in one for one in checks))
    assert said == {
        "iterative": (True, True, True),
        "one-shot": (False, False, False),
        "of iterative": (True, False, True),
        "of one-shot": (False, False, False),
    }


def test_what_criteria_and_actions_do_to_what_they_are_given_reaches_nothing():
    """A criterion that meddles gives the ticket it would have given; an action that does fails its receipt."""
    honest = TicketSpec(DENSE, rounds=2)
    drifted = done(replace(honest, criterion="small:drifting"), trained())
    assert rows(drifted) == rows(done(honest, trained()))
    assert equal(drifted.get("final"), done(honest, trained()).get("final"))
    with pytest.warns(InvariantWarning, match="every kept weight is the rewind point's"):
        shelf = done(replace(honest, mask1="small:mutating"), trained())
    first, point = shelf.rows()[0], load_saved_state(trained(), "state-0").model
    failed = [sentence for sentence, holds in first["invariants"]["checks"].items() if not holds]
    assert failed == ["mask-1: every kept weight is the rewind point's"]
    assert equal(masks_at(shelf, 1), masks_at(done(honest, trained()), 1))
    assert equal(point, DENSE.network().state_dict())


@pytest.mark.parametrize("mask1", REWINDING)
def test_statistics_are_those_of_the_network_as_its_training_started(mask1):
    """With its biases, which the action rewinds or keeps."""
    dense = replace(DENSE, model="small:normed")
    small.COLLECTED.clear()
    spec = TicketSpec(dense, rounds=2, mask1=mask1, criterion="small:recording")
    trainings = trainings_of(spec, trained(dense))
    model, train = dense.network(), dense.dataset().train
    order = torch.randperm(len(train), generator=make_generator(dense.replicate, "probe"))
    chosen = order[: spec.num_scoring_examples]
    examples = Split(train.inputs[chosen], train.labels[chosen])
    starts = load_saved_state(trained(dense), "state-0"), trainings[0].observer.start
    for gradients, start in zip(small.COLLECTED, starts, strict=True):
        model.load_state_dict(start.model)
        stats = collect(model, prunable_weights(model), {"gradients"}, examples)
        assert equal(gradients, stats.gradients)


def test_a_ticket_from_a_supermask_starts_as_the_supermask_works():
    """Its weights, signs and scale, whatever kind of mask it is; only biases are trained before anything else is."""
    for mask, weights in ((Signed(0.05), "signed_kaiming"), (Bernoulli(rescale=True), "signed_glorot")):
        learned = replace(LEARNED, mask=mask, weights=weights)
        (training,) = trainings_of(
            TicketSpec(DENSE, rounds=1, masks_from=learned, mask1="supermask"), trained(), trained(learned)
        )
        model = DENSE.network()
        model.load_state_dict(training.observer.start.model)
        row = trained(learned).rows()[0]
        assert evaluate(model, DENSE.dataset().test).accuracy == row["most_likely_final_test_accuracy"]
        for settings in ({"mask1": "rewind"}, {"mask1": "signed_constant"}, {"mask1": "rewind_rescaled"}):
            with pytest.raises(SpecError, match="mask1='supermask'"):
                TicketSpec(DENSE, rounds=1, masks_from=learned, **settings).cost()
        assert TicketSpec(DENSE, rounds=1, masks_from=learned, mask1="reinitialize").cost()


def test_a_ticket_as_dense_as_a_learned_mask_keeps_as_many_weights_of_every_layer():
    spec = TicketSpec(DENSE, rounds=1, densities_from=LEARNED)
    shelf, wanted = done(spec, trained(), trained(LEARNED)), masks_at(trained(LEARNED), 1)
    kept = masks_at(shelf, 1)
    assert {n: int(m.sum()) for n, m in kept.items()} == {n: int(m.sum()) for n, m in wanted.items()}
    assert len({mask_density({n: m}) for n, m in kept.items()}) == len(kept)
    assert not equal(kept, wanted)
    final = {name: trained().get("final")[name].abs() for name in kept}
    assert equal(
        kept, Layer().select(final, {name: mask_density({name: mask}) for name, mask in wanted.items()})
    )
    assert shelf.rows()[0]["invariants"]["passed"]
    control = TicketSpec(DENSE, rounds=1, mask1="reinitialize", masks_from=spec)
    assert equal(masks_at(done(control, trained(), shelf), 1), kept)


def test_levels_are_one_run_however_they_are_written():
    single = TicketSpec(DENSE, rounds=3, schedule="one_shot")
    assert run_id(replace(single, levels=(3, 1, 2))) == run_id(single)
    assert run_id(replace(single, levels=(3, 1, 3))) == run_id(replace(single, levels=(1, 3)))
    assert replace(single, levels=(3, 1)).trained_levels() == (1, 3)


@pytest.mark.parametrize(
    ("lr_schedule", "stands"), [("cosine", True), ("linear", False), ("constant", False)]
)
def test_fine_tuning_at_a_rate_of_nothing_warns(lr_schedule, stands):
    dense = replace(DENSE, recipe=RECIPE.replace(lr_schedule=lr_schedule, epochs=20))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoEffectWarning)
        done(TicketSpec(dense, rounds=1, mask1="finetune"), trained(dense))
    assert [bool(re.search("next to nothing moves", str(one.message))) for one in caught] == [True] * stands


@pytest.mark.parametrize("model", ["mlp", "normed"])
@pytest.mark.parametrize("schedule", ["iterative", "one_shot"])
@pytest.mark.parametrize("step", [0, 2])
def test_weights_are_rewound_in_every_round(model, schedule, step):
    dense = replace(DENSE, model=f"small:{model}")
    spec = TicketSpec(dense, rounds=3, schedule=schedule, rewind_step=step)
    point = load_saved_state(trained(dense), f"state-{step}")
    trainings = trainings_of(spec, trained(dense))
    shelf = done(spec, trained(dense))
    assert len(trainings) == 3
    for level, training in enumerate(trainings, start=1):
        masks, start = masks_at(shelf, level), training.observer.start
        assert start.step == step
        assert equal(at(start.model, masks), at(point.model, masks))
        assert not any(tensor.any() for tensor in at(start.model, masks, kept=False).values())
        assert equal(rest(start.model, masks), rest(point.model, masks))
        assert equal(start.optimizer, point.optimizer)
        assert bool(point.optimizer) == (step > 0)
        assert training.observer.curve[-1].step == LAST
    assert not equal(shelf.get("final"), point.model)


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "rmsprop"])
@pytest.mark.parametrize("model", ["mlp", "normed", "dropping", "convolved"])
def test_a_ticket_that_prunes_nothing_is_the_dense_training(model, optimizer, step):
    """Weights, buffers, the optimizer's memory, the order of examples, dropout and the learning rate go on."""
    recipe = RECIPE.replace(optimizer=optimizer, momentum=0.9, weight_decay=0.01)
    dense = replace(DENSE, model=f"small:{model}", recipe=recipe)
    with pytest.warns(NoEffectWarning, match="Level 1 prunes nothing"):
        shelf = done(TicketSpec(dense, rounds=1, rates=NOTHING, rewind_step=step), trained(dense))
    assert equal(shelf.get("final"), trained(dense).get("final"))
    (row,), (before,) = shelf.rows(), trained(dense).rows()
    assert row["invariants"]["passed"]
    for metric in ("final_validation_loss", "final_test_accuracy"):
        assert row[metric] == before[metric]


@pytest.mark.parametrize("mask1", REWINDING)
def test_what_goes_with_the_weights(mask1):
    """BatchNorm and its statistics, biases, the optimizer's memory and the learning rate, as the action says."""
    dense = replace(DENSE, model="small:normed")
    spec = TicketSpec(dense, rounds=2, mask1=mask1, rewind_step=5)
    trainings, shelf, action = (
        trainings_of(spec, trained(dense)),
        done(spec, trained(dense)),
        MASK1_ACTIONS[mask1],
    )
    point, ends = load_saved_state(trained(dense), "state-5"), [trained(dense).get("final")]
    ends.append(done(replace(spec, rounds=1), trained(dense)).get("final"))
    for level, training in enumerate(trainings, start=1):
        start, masks = training.observer.start, masks_at(shelf, level)
        source = point.model if action.rest == "rewound" else ends[level - 1]
        assert "2.running_mean" in rest(start.model, masks)
        assert equal(rest(start.model, masks), rest(source, masks))
        assert equal(start.optimizer, point.optimizer if action.rest == "rewound" else {})
        assert (training.recipe.lr_schedule, training.recipe.learning_rate) == (
            ("linear", 0.02) if action.rate == "schedule" else ("constant", 0.02 / LAST)
        )
    assert not equal(rest(point.model, masks), rest(ends[0], masks))
    assert not equal(rest(ends[0], masks), rest(ends[1], masks))


@pytest.mark.parametrize("model", ["mlp", "normed", "convolved"])
@pytest.mark.parametrize("schedule", ["iterative", "one_shot"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_are_exact_and_biases_are_never_pruned(model, schedule, scope):
    dense, rates = replace(DENSE, model=f"small:{model}"), PruningRates(linear=0.3, conv=0.2, output=0.1)
    network = dense.network()
    names = list(prunable_weights(network))
    assert all(name.endswith("weight") and network.get_parameter(name).dim() > 1 for name in names)
    shelf = done(TicketSpec(dense, rounds=4, schedule=schedule, scope=scope, rates=rates), trained(dense))
    rate = {
        **{name: getattr(rates, kind) for name, kind in layer_kinds(network).items()},
        names[-1]: rates.output,
    }
    sizes = {name: network.get_parameter(name).numel() for name in names}
    for level in range(1, 5):
        masks = masks_at(shelf, level)
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        assert list(masks) == names
        if scope == "layer":
            assert kept == {name: num_to_keep((1 - rate[name]) ** level, sizes[name]) for name in names}
        else:
            assert sum(kept.values()) == num_to_keep(0.7**level, sum(sizes.values()))
        assert shelf.rows()[level - 1]["density"] == mask_density(masks)
    zeros = {
        name: int((tensor == 0).sum()) for name, tensor in shelf.get("final").items() if "running" not in name
    }
    assert zeros == {name: sizes[name] - kept[name] if name in names else 0 for name in zeros}


@pytest.mark.parametrize(
    ("scope", "rate", "rounds"), [("2:4", 0.5, 1), ("1:4", 0.75, 1), ("1x4", 0.3, 3), ("2x2", 0.5, 2)]
)
def test_a_ticket_may_have_a_pattern_and_its_receipt_holds(scope, rate, rounds):
    spec = TicketSpec(DENSE, rounds=rounds, scope=scope, rates=PruningRates(rate, rate, rate))
    shelf = done(spec, trained())
    for level, row in enumerate(shelf.rows(), start=1):
        assert row["invariants"]["passed"]
        assert row["density"] == pytest.approx((1 - rate) ** level, abs=0.02)
        for mask in masks_at(shelf, level).values():
            tiles = mask.reshape(len(mask), -1, 4 if scope != "2x2" else 2).sum(-1)
            if scope == "2x2":
                tiles = tiles.reshape(len(mask) // 2, 2, -1).sum(1)
            assert set(tiles.unique().tolist()) <= ({int(scope[0])} if ":" in scope else {0, 4})


def test_a_pattern_that_no_level_can_have_is_known_from_the_plan():
    """Without a dense training."""
    spec = TicketSpec(DENSE, rounds=2, scope="2:4", rates=PruningRates(0.5, 0.5, 0.5))
    with pytest.raises(DensityError, match="2:4"):
        spec.cost()
    assert replace(spec, schedule="one_shot", levels=(1,)).cost()
    assert replace(spec, rounds=1).trained_levels() == (1,)
    taken = replace(spec, masks_from=TicketSpec(DENSE, rounds=2))
    assert taken.trained_levels() == (1, 2), "whose masks are taken is asked, not who takes them"


@pytest.mark.parametrize("criterion", ["large_final", "random", "movement", "snip"])
def test_iterative_masks_are_nested_and_the_first_is_the_one_shot_one(criterion):
    spec = TicketSpec(DENSE, rounds=3, criterion=criterion)
    shelf, single = done(spec, trained()), done(replace(spec, schedule="one_shot"), trained())
    masks = [masks_at(shelf, level) for level in (1, 2, 3)]
    assert are_nested(masks[1], masks[0])
    assert are_nested(masks[2], masks[1])
    assert not are_nested(masks[0], masks[1])
    assert equal(masks[0], masks_at(single, 1))
    assert figures(shelf)[0] == figures(single)[0]
    assert not equal(masks[1], masks_at(single, 2))


def test_one_shot_levels_come_straight_from_the_dense_network():
    spec = TicketSpec(DENSE, rounds=3, schedule="one_shot")
    shelf, final = done(spec, trained()), trained().get("final")
    for level in (1, 2, 3):
        density = {"1.weight": 0.8**level, "3.weight": 0.8**level, "5.weight": 0.9**level}
        scores = {name: final[name].abs() for name in density}
        assert equal(masks_at(shelf, level), Layer().select(scores, density))
    alone = done(replace(spec, levels=(3,)), trained())
    assert equal(masks_at(alone, 3), masks_at(shelf, 3))
    assert rows(alone) == rows(shelf)[2:]
    assert equal(alone.get("final"), shelf.get("final"))


def test_masks_of_takes_exactly_those_masks_and_draws_differ():
    ticket = TicketSpec(
        DENSE, rounds=2, rates=PruningRates(0.5, 0.5, 0.5), scope="global", criterion="movement"
    )
    source = done(ticket, trained())
    control = TicketSpec(DENSE, rounds=2, mask1="reinitialize", masks_from=ticket)
    starts = []
    for draw in (0, 1, 0):
        spec = replace(control, draw=draw)
        shelf, trainings = done(spec, trained(), source), trainings_of(spec, trained(), source)
        for level in (1, 2):
            assert equal(masks_at(shelf, level), masks_at(source, level))
            assert shelf.rows()[level - 1]["invariants"]["passed"]
        starts.append([training.observer.start.model for training in trainings])
    (first, second), others, again = starts
    assert equal(first, again[0])
    assert equal(second, again[1])
    assert not equal(first, others[0])
    assert not equal(first, second)
    assert (
        rows(done(replace(control, levels=(2,)), trained(), source))
        == rows(done(control, trained(), source))[1:]
    )
    assert control.needs() == (DENSE, ticket)


def test_one_dense_training_serves_all_and_is_left_as_it_was():
    fresh = done(DENSE)
    for mask1, mask0 in (("rewind", "zero"), ("permute", "freeze_init"), ("finetune", "train_on")):
        spec = TicketSpec(DENSE, rounds=1, mask1=mask1, mask0=mask0)
        done(spec, trained())
        assert spec.needs() == (DENSE,)
    for name in ("state-0", "state-2", "state-5", "final"):
        assert equal(trained().get(name), fresh.get(name))
    assert equal(load_saved_state(fresh, "state-0").model, DENSE.network().state_dict())
    assert [row["step"] for row in fresh.curve()] == [0, 3, 6, 8]


def test_same_seeds_same_bits_and_other_replicates_others():
    finals, masks = [], []
    for replicate in (0, 0, 1):
        dense = replace(DENSE, replicate=replicate)
        spec = TicketSpec(
            dense, rounds=2, criterion="random", mask1="permute", mask0="freeze_init_zero_reshuffled"
        )
        shelf = done(spec, done(dense))
        finals.append(shelf.get("final"))
        masks.append(masks_at(shelf, 2))
    assert equal(finals[0], finals[1])
    assert equal(masks[0], masks[1])
    assert not any(torch.equal(finals[0][name], finals[2][name]) for name in finals[0])
    assert not any(torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


def test_random_roles_are_seeds_of_their_own():
    """The masks of a random criterion do not hang on what an action draws, nor the order of examples on either."""
    spec = TicketSpec(DENSE, rounds=2, criterion="random")
    shelves = [done(replace(spec, mask1=mask1), trained()) for mask1 in ("rewind", "permute")]
    assert equal(masks_at(shelves[0], 1), masks_at(shelves[1], 1))
    single = done(replace(spec, schedule="one_shot"), trained())
    assert not are_nested(masks_at(single, 2), masks_at(single, 1))
    assert len({training.seed for training in trainings_of(spec, trained())}) == 1


def test_the_stored_accuracies_are_those_of_the_kept_weights():
    spec = TicketSpec(
        replace(DENSE, recipe=RECIPE.replace(learning_rate=0.5, lr_schedule="constant")),
        rounds=2,
        rates=PruningRates(0.5),
    )
    trainings, shelf = trainings_of(spec, trained(spec.dense)), done(spec, trained(spec.dense))
    model, data = spec.dense.network(), spec.dense.dataset()
    assert len({len(split) for split in (data.train, data.test)}) == 2
    for training, row in zip(trainings, shelf.rows(), strict=True):
        losses = [point.validation_loss for point in training.observer.curve]
        assert row["stop_step"] == training.observer.curve[losses.index(min(losses))].step
        model.load_state_dict(training.observer.best)
        assert row["stop_test_accuracy"] == evaluate(model, data.test).accuracy
        assert row["stop_validation_loss"] == evaluate(model, data.validation).loss
        assert row["steps"] == LAST
    model.load_state_dict(shelf.get("final"))
    assert row["final_test_accuracy"] == evaluate(model, data.test).accuracy
    assert any(row["stop_step"] < LAST for row in shelf.rows())


def test_weights_that_train_on_start_at_zero_and_move():
    spec = TicketSpec(DENSE, rounds=2, mask0="train_on")
    trainings, shelf = trainings_of(spec, trained()), done(spec, trained())
    for level, training in enumerate(trainings, start=1):
        holes = at(training.observer.start.model, masks_at(shelf, level), kept=False)
        assert not any(values.any() for values in holes.values())
    assert all(values.any() for values in at(shelf.get("final"), masks_at(shelf, 2), kept=False).values())
    assert are_nested(masks_at(shelf, 2), masks_at(shelf, 1))


@pytest.mark.parametrize("step", [0, 5])
def test_a_criterion_and_actions_of_ones_own(step):
    spec = TicketSpec(
        DENSE, rounds=2, criterion="small:by_column", mask1="small:half", mask0="small:hundredth"
    )
    shelf, trainings = done(spec, trained()), trainings_of(spec, trained())
    masks, start = masks_at(shelf, 2), trainings[1].observer.start.model
    assert not masks["1.weight"][:, 0].any()
    assert masks["1.weight"][:, -1].all()
    assert equal(
        at(start, masks), at({n: load_saved_state(trained(), "state-0").model[n] / 2 for n in masks}, masks)
    )
    for tensors in (start, shelf.get("final")):
        assert all((values == torch.tensor(0.01)).all() for values in at(tensors, masks, kept=False).values())
    assert all(row["invariants"]["passed"] for row in shelf.rows())
    assert "mask-1: kept weights are half of what they were" in shelf.rows()[0]["invariants"]["checks"]
    late = done(replace(spec, rewind_step=step), trained())
    assert late.rows()[0]["steps"] == LAST


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"criterion": "nothing"}, UnknownNameError, "criterion"),
        ({"mask1": "rewound"}, UnknownNameError, "did you mean 'rewind'"),
        ({"mask0": "zeros"}, UnknownNameError, "did you mean 'zero'"),
        ({"mask1": "small:nobody"}, UnknownNameError, "has no 'nobody'"),
        ({"mask1": "small:function"}, SpecError, "small:function was to be a Mask1Action"),
        ({"mask0": "small:half"}, SpecError, "small:half was to be a Mask0Action"),
        ({"scope": "nothing"}, UnknownNameError, "scope"),
        (
            {"scope": "2:4", "rates": PruningRates(0.5, 0.5, 0.5)},
            DensityError,
            r"density 0\.5 of .* 2:4 keeps .* got 0\.25",
        ),
        ({"scope": "2:4", "rounds": 1}, DensityError, r"density 0\.5 of .* 2:4 keeps .* got 0\.8"),
        (
            {"scope": "1:5", "rates": PruningRates(0.8, 0.8, 0.8)},
            DensityError,
            "got 64; exclude",
        ),
        ({"schedule": "cubic"}, SpecError, "iterative, one_shot"),
        ({"levels": (1,)}, SpecError, "passes through every level"),
        ({"levels": (3,), "schedule": "one_shot"}, SpecError, r"\[3\]"),
        ({"rounds": 0}, SpecError, "0 rounds"),
        ({"rewind_step": 3}, SpecError, r"\(2, 5\)"),
        ({"rewind_step": 2, "mask1": "permute"}, SpecError, "not to step 2"),
        ({"rates": PruningRates(linear=1.0)}, SpecError, "rates.linear is 1.0"),
        ({"rates": PruningRates(output=-0.1)}, SpecError, "rates.output is -0.1"),
        ({"masks_from": TicketSpec(DENSE, rounds=1)}, SpecError, "other levels"),
        ({"mask1": "supermask"}, SpecError, "must name the supermask"),
        ({"densities_from": LEARNED}, SpecError, "has one round.*rounds is 2"),
        (
            {"rounds": 60},
            DensityError,
            r"Level 30 would keep none of the 384 weights of '3.weight'.*fewer rounds",
        ),
        ({"criterion": "full_obs", "dense": replace(DENSE, model="lenet-300-100")}, ModelError, "16,384"),
    ],
)
def test_a_ticket_that_cannot_be_is_refused_in_a_sentence(settings, error, said):
    with pytest.raises(error, match=said):
        done(TicketSpec(**{"dense": DENSE, "rounds": 2, **settings}), trained(), trained())


@pytest.mark.parametrize(
    ("dense", "said"),
    [
        (replace(DENSE, every=0), "every is 0"),
        (replace(DENSE, examples=0), "examples is 0"),
        (replace(DENSE, recipe=RECIPE.replace(epochs=0)), "recipe.epochs is 0"),
        (replace(DENSE, recipe=RECIPE.replace(batch_size=0)), "recipe.batch_size is 0"),
        (replace(DENSE, recipe=RECIPE.replace(patience=3)), "full length"),
        (replace(DENSE, states=(8,)), "step 8"),
        (replace(DENSE, states=(-1,)), "step -1"),
    ],
)
def test_a_dense_training_that_cannot_be_is_refused_in_a_sentence(dense, said):
    with pytest.raises(SpecError, match=said):
        done(dense)
    if not dense.states or dense.states == DENSE.states:
        with pytest.raises(SpecError, match=said):
            TicketSpec(dense).cost()


class Killed(BaseException):
    """What no procedure catches."""


class Fragile(InMemoryArtifacts):
    """A shelf whose process dies before the write of that number."""

    def __init__(self, dies_at: int) -> None:
        super().__init__()
        self.left = dies_at

    def _write(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def put(self, *arguments):
        self._write()
        super().put(*arguments)

    def append(self, *arguments):
        self._write()
        super().append(*arguments)

    def append_curve(self, *arguments):
        self._write()
        super().append_curve(*arguments)

    def drop(self, *arguments):
        self._write()
        super().drop(*arguments)


PROCEDURES = {
    "dense": DENSE,
    "iterative": TicketSpec(DENSE, rounds=3, mask0="freeze_init"),
    "one-shot": TicketSpec(DENSE, rounds=2, schedule="one_shot"),
    "instability": InstabilitySpec(DENSE, 5, points=3),
}


@pytest.mark.parametrize("name", PROCEDURES)
def test_killed_between_any_two_writes_and_taken_up(name):
    spec = PROCEDURES[name]
    needed = [trained(need) for need in spec.needs()]
    whole = done(spec, *needed)
    for moment in range(1000):
        shelf = Fragile(moment)
        try:
            done(spec, *needed, shelf=shelf)
        except Killed:
            shelf.left = 1000
            done(spec, *needed, shelf=shelf)
        else:
            break
        assert rows(shelf) == rows(whole)
        assert shelf.curve() == whole.curve()
        kept = {name for name in shelf._tensors if not name.startswith("training")}
        assert kept == {name for name in whole._tensors if not name.startswith("training")}
        assert all(equal(shelf.get(name), whole.get(name)) for name in kept)
    assert 4 <= moment < 1000


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({"mask1": "small:not_rewound"}, "mask-1: every kept weight is "),
        ({"mask1": "small:shifted"}, "mask-1: every kept weight is "),
        ({"mask0": "small:not_zero"}, "mask-0: every pruned weight is zero"),
        ({"mask0": "small:meddling"}, "mask-0: every kept weight is what the mask-1 action made it"),
    ],
)
def test_a_broken_action_fails_its_receipt_and_the_run_goes_on(settings, failed):
    spec = TicketSpec(DENSE, rounds=2, **settings)
    with pytest.warns(InvariantWarning, match=f"The receipt fails: {failed}"):
        shelf = done(spec, trained())
    assert [row["level"] for row in shelf.rows()] == [1, 2]
    for row in shelf.rows():
        assert not row["invariants"]["passed"]
        (sentence,) = (sentence for sentence, holds in row["invariants"]["checks"].items() if not holds)
        assert sentence.startswith(failed)


class Leaking(Masks):
    """A mask that is applied before training, and then forgotten."""

    def apply(self):
        if not hasattr(self, "once"):
            super().apply()
        self.once = True


def leaking(training):
    return replace(training, constraint=Leaking(training.model, masks_in(training)))


def masks_in(training):
    constraint = training.constraint
    return {name: factor != 0 for name, factor in zip(constraint.names, constraint.factors, strict=True)}


def starting(**changes):
    return lambda training: replace(
        training, start=replace(training.start, **{k: f(training.start) for k, f in changes.items()})
    )


def with_(name, change):
    def changed(state):
        model = {n: t.clone() for n, t in state.model.items()}
        change(model[name])
        return model

    return starting(model=changed)


def a_little(tensor):
    tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(9.0))


def a_kept_one(tensor):
    place = tensor.view(-1).nonzero()[0]
    tensor.view(-1)[place] = torch.nextafter(tensor.view(-1)[place], torch.tensor(9.0))


MEDDLED = {
    "pruned weights drift": (leaking, "pruned weights are what the action says at every evaluation"),
    "a bias is not rewound": (with_("1.bias", a_little), "biases and buffers are rewound"),
    "a mean is not rewound": (with_("2.running_mean", a_little), "biases and buffers are rewound"),
    "a count is not rewound": (
        with_("2.num_batches_tracked", lambda t: t.add_(1)),
        "biases and buffers are rewound",
    ),
    "a kept weight is another": (
        with_("1.weight", a_kept_one),
        "mask-0: every kept weight is what the mask-1 action made it",
    ),
    "the optimizer forgets": (starting(optimizer=lambda state: {}), "the optimizer is rewound"),
    "the optimizer remembers otherwise": (
        starting(optimizer=lambda state: {key: value * 2 for key, value in state.optimizer.items()}),
        "the optimizer is rewound",
    ),
    "it starts later": (starting(step=lambda state: state.step + 1), "the start was seen"),
}


@pytest.mark.parametrize("what", MEDDLED)
def test_a_training_that_is_not_as_asked_fails_the_receipt(what):
    """The procedure is right here, and who carries out its trainings is not."""
    change, sentence = MEDDLED[what]
    dense = replace(DENSE, model="small:normed")
    with pytest.warns(InvariantWarning, match=sentence):
        shelf = done(TicketSpec(dense, rounds=2, rewind_step=5), trained(dense), change=change)
    for row in shelf.rows():
        assert [s for s, holds in row["invariants"]["checks"].items() if not holds] == [sentence]


class OneTooFew(Layer):
    def select(self, scores, density, within=None, seed=0):
        masks = super().select(scores, density, within, seed)
        name = next(iter(masks))
        masks[name].view(-1)[masks[name].view(-1).nonzero()[0]] = False
        return masks


class NotNested(Layer):
    def select(self, scores, density, within=None, seed=0):
        return super().select(scores, density, None, seed)


@pytest.mark.parametrize(
    ("scope", "criterion", "levels", "sentence"),
    [
        (OneTooFew(), "large_final", [1, 2], "every layer keeps exactly its count"),
        (NotNested(), "small_final", [2], "the masks are nested"),
    ],
)
def test_masks_that_are_wrong_fail_the_receipt(scope, criterion, levels, sentence, monkeypatch):
    monkeypatch.setitem(SCOPES, "broken", scope)
    with pytest.warns(InvariantWarning, match=sentence):
        shelf = done(TicketSpec(DENSE, rounds=2, criterion=criterion, scope="broken"), trained())
    failed = {
        row["level"]: [s for s, holds in row["invariants"]["checks"].items() if not holds]
        for row in shelf.rows()
    }
    assert failed == {level: [sentence] if level in levels else [] for level in (1, 2)}


@pytest.mark.parametrize(
    "ticket", [None, TicketSpec(DENSE, rounds=2, rates=PruningRates(0.4))], ids=["dense", "ticket"]
)
def test_two_copies_part_at_a_step_and_the_line_between_them_is_walked(ticket):
    needed = [trained()] + ([done(ticket, trained())] if ticket else [])
    spec = InstabilitySpec(DENSE, 5, ticket=ticket, level=2 if ticket else 0, points=5)
    trainings, shelf = trainings_of(spec, *needed), done(spec, *needed)
    state, ends = load_saved_state(trained(), "state-5"), [shelf.get("copy-1"), shelf.get("copy-2")]
    masks = masks_at(needed[1], 2) if ticket else {}
    for training in trainings:
        assert training.start.step == 5
        assert equal(rest(training.start.model, masks), rest(state.model, masks))
        assert equal(at(training.start.model, masks), at(state.model, masks))
        assert equal(training.start.optimizer, state.optimizer)
    for end in ends:
        assert not any(values.any() for values in at(end, masks, kept=False).values())
    assert not equal(*ends)
    model, test = DENSE.network(), DENSE.dataset().test
    for row in shelf.rows():
        between = {n: (1 - row["alpha"]) * ends[0][n] + row["alpha"] * ends[1][n] for n in ends[0]}
        model.load_state_dict(between)
        assert abs(row["test_error"] - evaluate(model, test).error) < 101 / len(test)
    errors = [row["test_error"] for row in shelf.rows()]
    assert [row["alpha"] for row in shelf.rows()] == [0, 0.25, 0.5, 0.75, 1]
    assert shelf.rows()[-1]["barrier"] == max(errors) - (errors[0] + errors[-1]) / 2 >= 0
