"""Tickets: starting states, counts, masks, resume, and invariant reports that pass and that fail."""

import pickle
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from prunus.data.examples import sample_examples
from prunus.errors import (
    DensityError,
    InvariantWarning,
    ModelError,
    NoEffectWarning,
    SpecError,
    UnknownNameError,
)
from prunus.masks import Masks, are_nested, mask_density
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.density import num_to_keep
from prunus.pruning.methods import METHODS, CriterionMethod
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, Layer
from prunus.pruning.weight_layers import layer_kinds
from prunus.registry import import_object
from prunus.runs.directory import RunDirectory
from prunus.runs.spec import run_id
from prunus.seeds import derive_seed
from prunus.tickets import ticket as ticket_module
from prunus.tickets.baseline import BaselineSpec, load_saved_state, masks_name
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.mask0_actions import MASK0_ACTIONS
from prunus.tickets.mask1_actions import MASK1_ACTIONS
from prunus.tickets.monitor import TrainingMonitor
from prunus.tickets.supermask import Bernoulli, EdgePopup, Signed
from prunus.tickets.supermask.criterion_supermask import CriterionSupermaskSpec
from prunus.tickets.supermask.learned_supermask import LearnedSupermaskSpec
from prunus.tickets.ticket import REWINDING, PruningRates, TicketSpec
from prunus.training import Recipe, evaluate, train
from prunus.training.constraint import Constraint
from prunus.training.state import TrainingState
from prunus.types import Dataset
from tests.helpers import tickets

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import tiny_networks  # the module of the references "tiny_networks:NAME"

RECIPE = Recipe(epochs=2, learning_rate=0.02, batch_size=25, lr_schedule="linear")
DENSE = BaselineSpec(
    "tiny_networks:mlp", "digits", RECIPE, examples=85, eval_every=3, checkpoint_steps=(2, 5)
)
LEARNED = LearnedSupermaskSpec(DENSE, recipe=Recipe(2, 0.1, 20), samples=2)
FROZEN = "pruned weights have the values of the mask-0 action at every evaluation"
LAST = 8
"""Steps: two epochs of three batches of 25 and one of 10."""
NOTHING = PruningRates(0.0, 0.0, 0.0)
DIRECTORIES: dict[str, RunDirectory] = {}


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
    checkpoint: Path
    progress: None
    evaluate_every_epoch: bool
    backend: str


def done(spec, *needed, change=lambda training: training, directory=None) -> RunDirectory:
    """Carry out a run; `change` may alter the arguments of its trainings."""

    def changed_train(model, data, recipe, **arguments):
        return train(**vars(change(Training(model, data, recipe, **arguments))))

    with patch("prunus.tickets.baseline.train", changed_train):
        return tickets.run(spec, *needed, directory=directory)


def trained(spec: BaselineSpec | LearnedSupermaskSpec = DENSE) -> RunDirectory:
    """The dense training, or the learning of a mask, carried out once."""
    if run_id(spec) not in DIRECTORIES:
        DIRECTORIES[run_id(spec)] = done(
            spec, *(trained(dependency) for dependency in spec.dependencies().values())
        )
    return DIRECTORIES[run_id(spec)]


def trainings_of(spec, *needed) -> list[Training]:
    """The trainings of a run, in order, with what they started from."""
    trainings = []

    def note(training):
        trainings.append(training)
        return training

    done(spec, *needed, change=note)
    return trainings


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at(tensors, masks, num_kept=True):
    return {name: tensors[name][mask if num_kept else ~mask] for name, mask in masks.items()}


def rest(model, masks):
    return {name: tensor for name, tensor in model.items() if name not in masks}


def rows(directory):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in directory.rows()]


def figures(directory):
    """The rows without their invariant reports."""
    return [{key: value for key, value in row.items() if key != "invariants"} for row in rows(directory)]


def masks_at(directory, level):
    return directory.load_masks(masks_name(level))


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_invariants_hold_for_every_combination_of_actions(mask1, mask0):
    spec = TicketSpec(DENSE, rounds=2, pruning_rates=PruningRates(0.4), mask1=mask1, mask0=mask0)
    if mask1 == "supermask":
        spec = replace(spec, rounds=1, masks_from=LEARNED)
    directory = done(spec, *(trained(dependency) for dependency in spec.dependencies().values()))
    assert [row["level"] for row in directory.rows()] == list(range(1, spec.rounds + 1))
    for row in directory.rows():
        assert row["invariants"]["passed"], row["invariants"]
        held = MASK0_ACTIONS[mask0].freezes
        assert row["invariants"]["evaluations"] == (4 if held else 0)  # at steps 0, 3, 6 and 8
        assert (FROZEN in row["invariants"]["checks"]) == held
        assert len(row["invariants"]["checks"]) >= 8


def test_masks_are_checked_to_be_nested_only_if_selected_within_earlier_ones():
    """And where another's masks are taken, of which that is known."""
    iterative = TicketSpec(DENSE, rounds=2, criterion="random")
    single = replace(iterative, schedule="one_shot")
    nested_checks = {}
    for name, spec in {
        "iterative": iterative,
        "one-shot": single,
        "of iterative": TicketSpec(DENSE, rounds=2, masks_from=iterative),
        "of one-shot": TicketSpec(DENSE, rounds=2, masks_from=single),
    }.items():
        directory = done(
            spec,
            *(
                done(other, trained()) if other != DENSE else trained()
                for other in spec.dependencies().values()
            ),
        )
        nested = are_nested(masks_at(directory, 2), masks_at(directory, 1))
        checks = [row["invariants"]["checks"] for row in directory.rows()]
        assert all(row["invariants"]["passed"] for row in directory.rows())
        nested_checks[name] = (nested, *("the masks are nested" in statements for statements in checks))
    assert nested_checks == {
        "iterative": (True, True, True),
        "one-shot": (False, False, False),
        "of iterative": (True, False, True),
        "of one-shot": (False, False, False),
    }


def test_arguments_modified_by_criteria_and_actions_do_not_affect_the_ticket():
    """A criterion that meddles gives the ticket it would have given; an action that does fails an invariant check."""
    honest = TicketSpec(DENSE, rounds=2)
    drifted = done(replace(honest, criterion="tiny_networks:drifting"), trained())
    assert rows(drifted) == rows(done(honest, trained()))
    assert equal(drifted.load_tensors("final"), done(honest, trained()).load_tensors("final"))
    with pytest.warns(InvariantWarning, match="every kept weight equals that of the rewind step"):
        directory = done(replace(honest, mask1="tiny_networks:mutating"), trained())
    first, point = directory.rows()[0], load_saved_state(trained(), 0).model
    failed = [sentence for sentence, holds in first["invariants"]["checks"].items() if not holds]
    assert failed == ["mask-1: every kept weight equals that of the rewind step"]
    assert equal(masks_at(directory, 1), masks_at(done(honest, trained()), 1))
    assert equal(point, DENSE.make_network().state_dict())


@pytest.mark.parametrize("mask1", REWINDING)
def test_gradients_of_a_criterion_are_those_of_the_start_of_the_last_training(mask1):
    """With its biases, which the action rewinds or keeps."""
    baseline = replace(DENSE, model="tiny_networks:normed")
    tiny_networks.GRADIENTS.clear()
    spec = TicketSpec(baseline, rounds=2, mask1=mask1, criterion="tiny_networks:recording_gradients")
    trainings = trainings_of(spec, trained(baseline))
    model, data = baseline.make_network().eval(), baseline.load_data().train
    starts = load_saved_state(trained(baseline), 0), trainings[0].observer.start
    for gradients, start in zip(tiny_networks.GRADIENTS, starts, strict=True):
        model.load_state_dict(start.model)
        model.zero_grad()
        nn.functional.cross_entropy(model(data.inputs), data.labels).backward()
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, model.get_parameter(name).grad, atol=1e-6)


@pytest.mark.parametrize("criterion", ["large_final", "snip"])
def test_score_at_selects_the_scored_weights(criterion):
    spec = TicketSpec(DENSE, rounds=1, criterion=criterion)
    default, initial, final = (
        masks_at(done(replace(spec, score_at=at), trained()), 1) for at in ("", "initialization", "trained")
    )
    assert not equal(initial, final)
    assert equal(default, final if criterion == "large_final" else initial)
    if criterion == "large_final":
        weights = load_saved_state(trained(), 0).model
        densities = {"1.weight": 0.8, "3.weight": 0.8, "5.weight": 0.9}
        assert equal(initial, Layer().select({name: weights[name].abs() for name in densities}, densities))


def test_supermask_action_starts_from_the_network_of_the_supermask():
    """Its weights, signs and scale, whatever kind of mask it is; only biases are trained before anything else is."""
    for mask, weights in ((Signed(0.05), "signed_kaiming"), (Bernoulli(rescale=True), "signed_glorot")):
        learned = replace(LEARNED, mask=mask, weights=weights)
        (training,) = trainings_of(
            TicketSpec(DENSE, rounds=1, masks_from=learned, mask1="supermask"), trained(), trained(learned)
        )
        model = DENSE.make_network()
        model.load_state_dict(training.observer.start.model)
        row = trained(learned).rows()[0]
        assert evaluate(model, DENSE.load_data().test).accuracy == row["most_likely_final_test_accuracy"]
        for settings in ({"mask1": "rewind"}, {"mask1": "signed_constant"}, {"mask1": "rewind_rescaled"}):
            with pytest.raises(SpecError, match="mask1='supermask'"):
                TicketSpec(DENSE, rounds=1, masks_from=learned, **settings).cost()
        assert TicketSpec(DENSE, rounds=1, masks_from=learned, mask1="reinitialize").cost()


def test_densities_from_a_learned_mask_keeps_as_many_weights_of_every_layer():
    spec = TicketSpec(DENSE, rounds=1, densities_from=LEARNED)
    directory, expected = done(spec, trained(), trained(LEARNED)), masks_at(trained(LEARNED), 1)
    num_kept = masks_at(directory, 1)
    assert {n: int(m.sum()) for n, m in num_kept.items()} == {n: int(m.sum()) for n, m in expected.items()}
    assert len({mask_density({n: m}) for n, m in num_kept.items()}) == len(num_kept)
    assert not equal(num_kept, expected)
    final = {name: trained().load_tensors("final")[name].abs() for name in num_kept}
    assert equal(
        num_kept, Layer().select(final, {name: mask_density({name: mask}) for name, mask in expected.items()})
    )
    assert directory.rows()[0]["invariants"]["passed"]
    control = TicketSpec(DENSE, rounds=1, mask1="reinitialize", masks_from=spec)
    assert equal(masks_at(done(control, trained(), directory), 1), num_kept)


def test_levels_have_one_identity_in_any_order():
    single = TicketSpec(DENSE, rounds=3, schedule="one_shot")
    assert run_id(replace(single, levels=(3, 1, 2))) == run_id(single)
    assert run_id(replace(single, levels=(3, 1, 3))) == run_id(replace(single, levels=(1, 3)))
    assert replace(single, levels=(3, 1)).trained_levels == (1, 3)


@pytest.mark.parametrize(
    ("lr_schedule", "stands"), [("cosine", True), ("linear", False), ("constant", False)]
)
def test_fine_tuning_warns_when_the_last_learning_rate_vanishes(lr_schedule, stands):
    dense = replace(DENSE, recipe=RECIPE.replace(lr_schedule=lr_schedule, epochs=20))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoEffectWarning)
        done(TicketSpec(dense, rounds=1, mask1="finetune"), trained(dense))
    assert [bool(re.search("weights hardly move", str(warning.message))) for warning in caught] == [
        True
    ] * stands


@pytest.mark.parametrize("model", ["mlp", "normed"])
@pytest.mark.parametrize("schedule", ["iterative", "one_shot"])
@pytest.mark.parametrize("step", [0, 2])
def test_weights_are_rewound_in_every_round(model, schedule, step):
    dense = replace(DENSE, model=f"tiny_networks:{model}")
    spec = TicketSpec(dense, rounds=3, schedule=schedule, rewind_step=step)
    point = load_saved_state(trained(dense), step)
    trainings = trainings_of(spec, trained(dense))
    directory = done(spec, trained(dense))
    assert len(trainings) == 3
    for level, training in enumerate(trainings, start=1):
        masks, start = masks_at(directory, level), training.observer.start
        assert start.step == step
        assert equal(at(start.model, masks), at(point.model, masks))
        assert not any(tensor.any() for tensor in at(start.model, masks, num_kept=False).values())
        assert equal(rest(start.model, masks), rest(point.model, masks))
        assert equal(start.optimizer, point.optimizer)
        assert bool(point.optimizer) == (step > 0)
        assert training.observer.curve[-1].step == LAST
    assert not equal(directory.load_tensors("final"), point.model)


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "rmsprop"])
@pytest.mark.parametrize("model", ["mlp", "normed", "dropping", "convolved"])
def test_ticket_that_prunes_nothing_equals_the_baseline(model, optimizer, step):
    """Weights, buffers, the optimizer's memory, the order of examples, dropout and the learning rate go on."""
    recipe = RECIPE.replace(optimizer=optimizer, momentum=0.9, weight_decay=0.01)
    dense = replace(DENSE, model=f"tiny_networks:{model}", recipe=recipe)
    with pytest.warns(NoEffectWarning, match="Level 1 prunes nothing"):
        directory = done(TicketSpec(dense, rounds=1, pruning_rates=NOTHING, rewind_step=step), trained(dense))
    assert equal(directory.load_tensors("final"), trained(dense).load_tensors("final"))
    (row,), (before,) = directory.rows(), trained(dense).rows()
    assert row["invariants"]["passed"]
    for metric in ("final_validation_loss", "final_test_accuracy"):
        assert row[metric] == before[metric]


@pytest.mark.parametrize("mask1", REWINDING)
def test_other_tensors_and_learning_rate_follow_the_mask1_action(mask1):
    """BatchNorm and its statistics, biases, the optimizer's memory and the learning rate, as the action says."""
    dense = replace(DENSE, model="tiny_networks:normed")
    spec = TicketSpec(dense, rounds=2, mask1=mask1, rewind_step=5)
    trainings, directory, action = (
        trainings_of(spec, trained(dense)),
        done(spec, trained(dense)),
        MASK1_ACTIONS[mask1],
    )
    point, ends = load_saved_state(trained(dense), 5), [trained(dense).load_tensors("final")]
    ends.append(done(replace(spec, rounds=1), trained(dense)).load_tensors("final"))
    for level, training in enumerate(trainings, start=1):
        start, masks = training.observer.start, masks_at(directory, level)
        source = point.model if action.other_tensors == "rewind" else ends[level - 1]
        assert "2.running_mean" in rest(start.model, masks)
        assert equal(rest(start.model, masks), rest(source, masks))
        assert equal(start.optimizer, point.optimizer if action.other_tensors == "rewind" else {})
        assert (training.recipe.lr_schedule, training.recipe.learning_rate) == (
            ("linear", 0.02) if action.learning_rate == "schedule" else ("constant", 0.02 / LAST)
        )
    assert not equal(rest(point.model, masks), rest(ends[0], masks))
    assert not equal(rest(ends[0], masks), rest(ends[1], masks))


@pytest.mark.parametrize("model", ["mlp", "normed", "convolved"])
@pytest.mark.parametrize("schedule", ["iterative", "one_shot"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_are_exact_and_biases_are_never_pruned(model, schedule, scope):
    dense, rates = (
        replace(DENSE, model=f"tiny_networks:{model}"),
        PruningRates(linear=0.3, conv=0.2, output=0.1),
    )
    network = dense.make_network()
    names = list(prunable_weights(network))
    assert all(name.endswith("weight") and network.get_parameter(name).dim() > 1 for name in names)
    directory = done(
        TicketSpec(dense, rounds=4, schedule=schedule, scope=scope, pruning_rates=rates), trained(dense)
    )
    rate = {
        **{name: getattr(rates, kind) for name, kind in layer_kinds(network).items()},
        names[-1]: rates.output,
    }
    sizes = {name: network.get_parameter(name).numel() for name in names}
    for level in range(1, 5):
        masks = masks_at(directory, level)
        num_kept = {name: int(mask.sum()) for name, mask in masks.items()}
        assert list(masks) == names
        if scope == "layer":
            assert num_kept == {name: num_to_keep((1 - rate[name]) ** level, sizes[name]) for name in names}
        else:
            assert sum(num_kept.values()) == num_to_keep(0.7**level, sum(sizes.values()))
        assert directory.rows()[level - 1]["density"] == mask_density(masks)
    zeros = {
        name: int((tensor == 0).sum())
        for name, tensor in directory.load_tensors("final").items()
        if "running" not in name
    }
    assert zeros == {name: sizes[name] - num_kept[name] if name in names else 0 for name in zeros}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_excluded_weights_are_neither_pruned_nor_redrawn(scope):
    ticket = TicketSpec(DENSE, rounds=2, scope=scope, exclude=("5.weight",))
    control = replace(ticket, mask1="reinitialize", masks_from=ticket)
    directory = done(ticket, trained())
    other = done(control, trained(), directory)
    masks = masks_at(directory, 2)
    assert list(masks) == ["1.weight", "3.weight"]
    num_kept = [int(mask.sum()) for mask in masks.values()]
    assert sum(num_kept) == num_to_keep(0.64, 1920) if scope == "global" else num_kept == [983, 246]
    initial = load_saved_state(trained(), 0).model["5.weight"]
    for each in (directory, other):
        assert all(row["invariants"]["passed"] for row in each.rows())
        assert not (each.load_tensors("final")["5.weight"] == 0).any()
        assert not torch.equal(each.load_tensors("final")["5.weight"], initial)


@pytest.mark.parametrize(
    ("scope", "rate", "rounds"), [("2:4", 0.5, 1), ("1:4", 0.75, 1), ("1x4", 0.3, 3), ("2x2", 0.5, 2)]
)
def test_ticket_with_a_sparsity_pattern_passes_its_invariants(scope, rate, rounds):
    spec = TicketSpec(DENSE, rounds=rounds, scope=scope, pruning_rates=PruningRates(rate, rate, rate))
    directory = done(spec, trained())
    for level, row in enumerate(directory.rows(), start=1):
        assert row["invariants"]["passed"]
        assert row["density"] == pytest.approx((1 - rate) ** level, abs=0.02)
        for mask in masks_at(directory, level).values():
            tiles = mask.reshape(len(mask), -1, 4 if scope != "2x2" else 2).sum(-1)
            if scope == "2x2":
                tiles = tiles.reshape(len(mask) // 2, 2, -1).sum(1)
            assert set(tiles.unique().tolist()) <= ({int(scope[0])} if ":" in scope else {0, 4})


def test_density_that_a_pattern_cannot_reach_is_refused_before_training():
    """Without a dense training."""
    spec = TicketSpec(DENSE, rounds=2, scope="2:4", pruning_rates=PruningRates(0.5, 0.5, 0.5))
    with pytest.raises(DensityError, match="2:4"):
        spec.cost()
    assert replace(spec, schedule="one_shot", levels=(1,)).cost()
    assert replace(spec, rounds=1).trained_levels == (1,)
    with_other_masks = replace(spec, masks_from=TicketSpec(DENSE, rounds=2))
    assert with_other_masks.trained_levels == (1, 2), "whose masks are taken is asked, not who takes them"


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")  # the network is hardly trained
@pytest.mark.parametrize("name", METHODS)
def test_ticket_uses_the_masks_of_a_pruning_method_at_the_trained_weights(name):
    baseline = replace(DENSE, model="tiny_networks:normed")
    ticket = TicketSpec(baseline, criterion=name, rounds=2, pruning_rates=PruningRates(0.5, 0.5, 0.5))
    directory = done(ticket, trained(baseline))
    assert [row["invariants"]["passed"] for row in directory.rows()] == [True, True]
    first, second = masks_at(directory, 1), masks_at(directory, 2)
    assert are_nested(second, first)
    assert all(int(mask.sum()) == num_to_keep(0.5, mask.numel()) for mask in first.values())
    model, method = baseline.make_network(), METHODS[name]
    model.load_state_dict(trained(baseline).load_tensors("final"))
    seeds = derive_seed(0, "criterion", 1), derive_seed(0, "ties", 1)
    examples = sample_examples(baseline.load_data().train, method.num_examples, seeds[0])
    densities = dict.fromkeys(first, 0.5)
    expected = method.prune(model, prunable_weights(model), densities, Layer(), examples, seeds=seeds)
    assert equal(first, expected.masks)


@pytest.mark.parametrize("criterion", ["large_final", "random", "movement", "snip"])
def test_iterative_masks_are_nested_and_the_first_equals_the_one_shot_mask(criterion):
    spec = TicketSpec(DENSE, rounds=3, criterion=criterion)
    directory, single = done(spec, trained()), done(replace(spec, schedule="one_shot"), trained())
    masks = [masks_at(directory, level) for level in (1, 2, 3)]
    assert are_nested(masks[1], masks[0])
    assert are_nested(masks[2], masks[1])
    assert not are_nested(masks[0], masks[1])
    assert equal(masks[0], masks_at(single, 1))
    assert figures(directory)[0] == figures(single)[0]
    assert not equal(masks[1], masks_at(single, 2))


def test_one_shot_levels_are_pruned_from_the_dense_network():
    spec = TicketSpec(DENSE, rounds=3, schedule="one_shot")
    directory, final = done(spec, trained()), trained().load_tensors("final")
    for level in (1, 2, 3):
        density = {"1.weight": 0.8**level, "3.weight": 0.8**level, "5.weight": 0.9**level}
        scores = {name: final[name].abs() for name in density}
        assert equal(masks_at(directory, level), Layer().select(scores, density))
    alone = done(replace(spec, levels=(3,)), trained())
    assert equal(masks_at(alone, 3), masks_at(directory, 3))
    assert rows(alone) == rows(directory)[2:]
    assert equal(alone.load_tensors("final"), directory.load_tensors("final"))


def test_masks_from_uses_exactly_those_masks_and_redraws_differ():
    ticket = TicketSpec(
        DENSE, rounds=2, pruning_rates=PruningRates(0.5, 0.5, 0.5), scope="global", criterion="movement"
    )
    source = done(ticket, trained())
    control = TicketSpec(DENSE, rounds=2, mask1="reinitialize", masks_from=ticket)
    starts = []
    for redraw in (0, 1, 0):
        spec = replace(control, redraw=redraw)
        directory, trainings = done(spec, trained(), source), trainings_of(spec, trained(), source)
        for level in (1, 2):
            assert equal(masks_at(directory, level), masks_at(source, level))
            assert directory.rows()[level - 1]["invariants"]["passed"]
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
    assert control.dependencies() == {"baseline": DENSE, "masks": ticket}


def test_baseline_is_not_changed_by_tickets():
    fresh = done(DENSE)
    for mask1, mask0 in (("rewind", "zero"), ("permute", "freeze_init"), ("finetune", "train")):
        spec = TicketSpec(DENSE, rounds=1, mask1=mask1, mask0=mask0)
        done(spec, trained())
        assert spec.dependencies() == {"baseline": DENSE}
    for name in ("state-0", "state-2", "state-5", "final"):
        assert equal(trained().load_tensors(name), fresh.load_tensors(name))
    assert equal(load_saved_state(fresh, 0).model, DENSE.make_network().state_dict())
    assert [row["step"] for row in fresh.curve()] == [0, 3, 6, 8]


def test_same_seeds_give_the_same_bits_and_replicates_differ():
    finals, masks = [], []
    for replicate in (0, 0, 1):
        dense = replace(DENSE, replicate=replicate)
        spec = TicketSpec(
            dense, rounds=2, criterion="random", mask1="permute", mask0="freeze_init_zero_reshuffled"
        )
        directory = done(spec, done(dense))
        finals.append(directory.load_tensors("final"))
        masks.append(masks_at(directory, 2))
    assert equal(finals[0], finals[1])
    assert equal(masks[0], masks[1])
    assert not any(torch.equal(finals[0][name], finals[2][name]) for name in finals[0])
    assert not any(torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


def test_random_roles_have_independent_seeds():
    """The masks of a random criterion do not hang on what an action draws, nor the order of examples on either."""
    spec = TicketSpec(DENSE, rounds=2, criterion="random")
    directories = [done(replace(spec, mask1=mask1), trained()) for mask1 in ("rewind", "permute")]
    assert equal(masks_at(directories[0], 1), masks_at(directories[1], 1))
    single = done(replace(spec, schedule="one_shot"), trained())
    assert not are_nested(masks_at(single, 2), masks_at(single, 1))
    assert len({training.seed for training in trainings_of(spec, trained())}) == 1


def test_stored_accuracies_are_those_of_the_saved_weights():
    spec = TicketSpec(
        replace(DENSE, recipe=RECIPE.replace(learning_rate=0.5, lr_schedule="constant")),
        rounds=2,
        pruning_rates=PruningRates(0.5),
    )
    trainings, directory = trainings_of(spec, trained(spec.baseline)), done(spec, trained(spec.baseline))
    model, data = spec.baseline.make_network(), spec.baseline.load_data()
    assert len({len(split) for split in (data.train, data.test)}) == 2
    for training, row in zip(trainings, directory.rows(), strict=True):
        losses = [point.validation_loss for point in training.observer.curve]
        assert row["stop_step"] == training.observer.curve[losses.index(min(losses))].step
        model.load_state_dict(training.observer.best)
        assert row["stop_test_accuracy"] == evaluate(model, data.test).accuracy
        assert row["stop_validation_loss"] == evaluate(model, data.validation).loss
        assert row["steps"] == LAST
    model.load_state_dict(directory.load_tensors("final"))
    assert row["final_test_accuracy"] == evaluate(model, data.test).accuracy
    assert any(row["stop_step"] < LAST for row in directory.rows())


def test_pruned_weights_under_train_start_at_zero_and_move():
    spec = TicketSpec(DENSE, rounds=2, mask0="train")
    trainings, directory = trainings_of(spec, trained()), done(spec, trained())
    for level, training in enumerate(trainings, start=1):
        pruned_weights = at(training.observer.start.model, masks_at(directory, level), num_kept=False)
        assert not any(values.any() for values in pruned_weights.values())
    assert all(
        values.any()
        for values in at(directory.load_tensors("final"), masks_at(directory, 2), num_kept=False).values()
    )
    assert are_nested(masks_at(directory, 2), masks_at(directory, 1))


@pytest.mark.parametrize("step", [0, 5])
def test_user_criterion_and_actions_are_used(step):
    spec = TicketSpec(
        DENSE,
        rounds=2,
        criterion="tiny_networks:by_column",
        mask1="tiny_networks:half",
        mask0="tiny_networks:hundredth",
    )
    directory, trainings = done(spec, trained()), trainings_of(spec, trained())
    masks, start = masks_at(directory, 2), trainings[1].observer.start.model
    assert not masks["1.weight"][:, 0].any()
    assert masks["1.weight"][:, -1].all()
    assert equal(at(start, masks), at({n: load_saved_state(trained(), 0).model[n] / 2 for n in masks}, masks))
    for tensors in (start, directory.load_tensors("final")):
        assert all(
            (values == torch.tensor(0.01)).all() for values in at(tensors, masks, num_kept=False).values()
        )
    assert all(row["invariants"]["passed"] for row in directory.rows())
    assert "mask-1: kept weights are half of what they were" in directory.rows()[0]["invariants"]["checks"]
    late = done(replace(spec, rewind_step=step), trained())
    assert late.rows()[0]["steps"] == LAST


@pytest.mark.parametrize(
    ("settings", "error", "expected_message"),
    [
        ({"criterion": "nothing"}, UnknownNameError, "criterion"),
        (
            {"criterion": CriterionMethod(CRITERIA["snip"], num_steps=3)},
            SpecError,
            "criterion 'snip' without num_examples and num_steps in a ticket, got 1024 examples and 3 steps",
        ),
        ({"mask1": "rewound"}, UnknownNameError, "did you mean 'rewind'"),
        ({"mask0": "zeros"}, UnknownNameError, "did you mean 'zero'"),
        ({"mask1": "tiny_networks:nobody"}, UnknownNameError, "has no 'nobody'"),
        (
            {"mask1": "tiny_networks:function"},
            SpecError,
            "Expected tiny_networks:function to be a Mask1Action",
        ),
        ({"mask0": "tiny_networks:half"}, SpecError, "Expected tiny_networks:half to be a Mask0Action"),
        ({"scope": "nothing"}, UnknownNameError, "scope"),
        (
            {"scope": "2:4", "pruning_rates": PruningRates(0.5, 0.5, 0.5)},
            DensityError,
            r"density 0\.5 of .* 2:4 keeps .* got 0\.25",
        ),
        ({"scope": "2:4", "rounds": 1}, DensityError, r"density 0\.5 of .* 2:4 keeps .* got 0\.8"),
        (
            {"scope": "1:5", "pruning_rates": PruningRates(0.8, 0.8, 0.8)},
            DensityError,
            "got 64; exclude",
        ),
        ({"schedule": "cubic"}, SpecError, "iterative or one_shot"),
        ({"levels": (1,)}, SpecError, "no levels for an iterative ticket"),
        ({"levels": (3,), "schedule": "one_shot"}, SpecError, r"\[3\]"),
        ({"score_at": "end"}, SpecError, "initialization or trained, got 'end'"),
        ({"num_scoring_examples": 0}, SpecError, "num_scoring_examples of at least 1"),
        ({"rounds": 0}, SpecError, "rounds as a whole number of at least 1, got 0"),
        ({"rounds": 1.5}, SpecError, "rounds as a whole number of at least 1, got 1.5"),
        ({"rewind_step": 3}, SpecError, r"\(2, 5\)"),
        ({"rewind_step": 2, "mask1": "permute"}, SpecError, "rewind_step = 0 for permute"),
        ({"pruning_rates": PruningRates(linear=1.0)}, SpecError, r"pruning_rates\.linear .*got 1\.0"),
        ({"pruning_rates": PruningRates(output=-0.1)}, SpecError, r"pruning_rates\.output .*got -0\.1"),
        ({"masks_from": TicketSpec(DENSE, rounds=1)}, SpecError, "levels that the source of the masks has"),
        (
            {"masks_from": TicketSpec(DENSE, rounds=2), "exclude": ("5.weight",)},
            SpecError,
            r"source of the masks to exclude the same weights, \('5.weight',\), got \(\)",
        ),
        (
            {"masks_from": LEARNED, "exclude": ("5.weight",), "rounds": 1},
            SpecError,
            "source of the masks to exclude",
        ),
        (
            {"densities_from": LEARNED, "exclude": ("5.weight",), "rounds": 1},
            SpecError,
            "source of the masks to exclude",
        ),
        *(
            (
                {key: replace(source, baseline=replace(DENSE, model="lenet-5")), "rounds": 1},
                SpecError,
                "Expected masks of a network with the weights of tiny_networks:mlp, got masks of lenet-5",
            )
            for key, source in (
                ("masks_from", TicketSpec(DENSE, rounds=1)),
                ("masks_from", LEARNED),
                ("densities_from", LEARNED),
            )
        ),
        ({"exclude": ("9.*",)}, ModelError, "9"),
        ({"mask1": "supermask"}, SpecError, "Expected a learned supermask in masks_from"),
        ({"densities_from": LEARNED}, SpecError, "Expected one round.*rounds = 2"),
        (
            {"rounds": 60},
            DensityError,
            r"Level 30 of the ticket is too sparse; use fewer rounds.*384 weights of '3.weight'",
        ),
        ({"criterion": "full_obs", "baseline": replace(DENSE, model="lenet-300-100")}, ModelError, "16,384"),
    ],
)
def test_invalid_ticket_is_refused(settings, error, expected_message):
    with pytest.raises(error, match=expected_message):
        done(TicketSpec(**{"baseline": DENSE, "rounds": 2, **settings}), trained(), trained())


@pytest.mark.parametrize(
    ("dense", "expected_message"),
    [
        (replace(DENSE, eval_every=0), "eval_every of at least 1, got 0"),
        (replace(DENSE, examples=0), "examples of at least 1, got 0"),
        (replace(DENSE, recipe=RECIPE.replace(epochs=0)), "recipe.epochs of at least 1, got 0"),
        (replace(DENSE, recipe=RECIPE.replace(batch_size=0)), "recipe.batch_size of at least 1, got 0"),
        (replace(DENSE, recipe=RECIPE.replace(patience=3)), "full length"),
        (replace(DENSE, checkpoint_steps=(8,)), "step 8"),
        (replace(DENSE, checkpoint_steps=(-1,)), "step -1"),
    ],
)
def test_invalid_baseline_is_refused(dense, expected_message):
    with pytest.raises(SpecError, match=expected_message):
        done(dense)
    if not dense.checkpoint_steps or dense.checkpoint_steps == DENSE.checkpoint_steps:
        with pytest.raises(SpecError, match=expected_message):
            TicketSpec(dense).cost()


TIED = replace(DENSE, model="tiny_networks:tied")


@pytest.mark.parametrize("mask1", ["rewind", "reinitialize", "signed_constant", "finetune"])
def test_weight_with_several_names_has_the_same_value_under_all(mask1):
    spec = TicketSpec(TIED, rounds=2, mask1=mask1, mask0="train")
    starts = []

    def recorded(training):
        starts.append(training.start.model)
        return training

    directory = done(spec, trained(TIED), change=recorded)
    assert [row["invariants"]["passed"] for row in directory.rows()] == [True, True]
    assert spec.tied_names == {"head.weight": "embed.weight", "out.weight": "embed.weight"}
    for level, start in zip((1, 2), starts, strict=True):
        pruned = ~directory.load_masks(masks_name(level))["embed.weight"]
        assert not start["embed.weight"][pruned].any()
        assert all(torch.equal(start[name], start[first]) for name, first in spec.tied_names.items())
    rates = {name: round(1 - density, 2) for name, density in spec.density_at(1).items()}
    assert rates == {"embed.weight": 0.1, "hidden.weight": 0.2, "again.weight": 0.2}


@pytest.mark.parametrize("mask", [Bernoulli(), EdgePopup()])
def test_masks_over_a_weight_with_several_names_pass_their_invariants(mask):
    learned = done(LearnedSupermaskSpec(TIED, mask, recipe=RECIPE), trained(TIED))
    ticket = TicketSpec(TIED, rounds=2, schedule="one_shot")
    scored = done(CriterionSupermaskSpec(ticket, "initial"), trained(TIED))
    assert all(row["invariants"]["passed"] for row in [*learned.rows(), *scored.rows()[1:]])
    losses = [row["final_test_accuracy"] for row in scored.rows()]
    assert len(set(losses)) > 1


@pytest.mark.parametrize("kind", [LearnedSupermaskSpec, InstabilitySpec])
def test_fit_trains_neither_a_mask_nor_copies_of_a_network(kind):
    """It would train the weights under the mask, and both copies in the same order."""
    with pytest.raises(SpecError, match="Expected a baseline that is trained by a recipe"):
        kind(replace(DENSE, fit=lambda model, masks: None)).check()


def test_instability_without_a_ticket_has_no_level():
    with pytest.raises(SpecError, match="Expected level = 0 without a ticket, got 9"):
        InstabilitySpec(DENSE, level=9).check()


def test_benchmark_of_the_invariant_checks_repeats_the_trainings_of_a_run(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import invariant_checks

    monkeypatch.setattr(invariant_checks, "make_ticket", lambda epochs: TicketSpec(DENSE, rounds=2))
    assert "LeNet-300-100, 2 levels" in invariant_checks.run(rounds=1, epochs=1)


def test_specs_are_pickled_without_resolved_values_and_keep_their_identity():
    spec = TicketSpec(DENSE, rounds=2, mask1="permute_rescaled", masks_from=TicketSpec(DENSE, rounds=2))
    identity = run_id(spec)
    spec.check()
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec
    assert vars(copy).keys() >= {"_run_id", "rounds"}
    assert "mask1_action" not in vars(copy)
    assert run_id(copy) == identity
    assert copy.trained_levels == (1, 2)


def test_ticket_resolves_its_names_once(monkeypatch):
    spec, resolved = TicketSpec(DENSE, rounds=2), []
    original = ticket_module.pruning_method
    monkeypatch.setattr(ticket_module, "pruning_method", lambda name: resolved.append(name) or original(name))
    done(spec, trained())
    spec.cost()
    assert resolved == ["large_final"]


@pytest.mark.parametrize(
    "kind", [BaselineSpec, TicketSpec, InstabilitySpec, LearnedSupermaskSpec, CriterionSupermaskSpec]
)
def test_procedure_of_every_spec_can_be_imported(kind):
    assert callable(import_object(kind.procedure))


class Killed(BaseException):
    """What no procedure catches."""


class Fragile(RunDirectory):
    """A directory whose process dies before a given number of writes."""

    def __init__(self, path: Path, writes_left: int) -> None:
        super().__init__(path)
        self.writes_left = writes_left

    def _count_write(self) -> None:
        if self.writes_left == 0:
            raise Killed
        self.writes_left -= 1

    def save_tensors(self, *arguments):
        self._count_write()
        super().save_tensors(*arguments)

    def append_row(self, *arguments):
        self._count_write()
        super().append_row(*arguments)

    def append_curve(self, *arguments):
        self._count_write()
        super().append_curve(*arguments)

    def remove(self, *arguments):
        self._count_write()
        super().remove(*arguments)


def tensor_names(directory: RunDirectory) -> set[str]:
    names = {path.stem for path in directory.path.glob("*.safetensors")}
    return {name for name in names if not name.startswith("training")}


PROCEDURES = {
    "baseline": DENSE,
    "iterative": TicketSpec(DENSE, rounds=3, mask0="freeze_init"),
    "one-shot": TicketSpec(DENSE, rounds=2, schedule="one_shot"),
    "instability": InstabilitySpec(DENSE, 5, points=3),
}


@pytest.mark.parametrize("name", PROCEDURES)
def test_procedure_killed_between_any_two_writes_and_resumed_gives_the_same_results(name):
    spec = PROCEDURES[name]
    needed = [trained(dependency) for dependency in spec.dependencies().values()]
    uninterrupted = done(spec, *needed)
    for num_writes in range(1000):
        directory = tickets.new_directory(Fragile, num_writes)
        try:
            done(spec, *needed, directory=directory)
        except Killed:
            directory.writes_left = 1000
            done(spec, *needed, directory=directory)
        else:
            break
        assert not list(directory.path.glob("training-*")), "a checkpoint is left behind"
        assert rows(directory) == rows(uninterrupted)
        assert directory.curve() == uninterrupted.curve()
        masks = {name for name in tensor_names(uninterrupted) if name.startswith("masks")}
        assert tensor_names(directory) == tensor_names(uninterrupted)
        assert all(equal(directory.load_masks(name), uninterrupted.load_masks(name)) for name in masks)
        others = tensor_names(uninterrupted) - masks
        assert all(equal(directory.load_tensors(name), uninterrupted.load_tensors(name)) for name in others)
    assert 4 <= num_writes < 1000


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({"mask1": "tiny_networks:not_rewound"}, "mask-1: every kept weight equals "),
        ({"mask1": "tiny_networks:shifted"}, "mask-1: every kept weight equals "),
        ({"mask0": "tiny_networks:not_zero"}, "mask-0: every pruned weight is zero"),
        (
            {"mask0": "tiny_networks:meddling"},
            "mask-0: every kept weight equals the value of the mask-1 action",
        ),
    ],
)
def test_broken_action_violates_invariants_and_the_run_continues(settings, failed):
    spec = TicketSpec(DENSE, rounds=2, **settings)
    with pytest.warns(InvariantWarning, match=f"Invariants violated: {failed}"):
        directory = done(spec, trained())
    assert [row["level"] for row in directory.rows()] == [1, 2]
    for row in directory.rows():
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
    return dict(training.constraint)


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
    "pruned weights drift": (leaking, FROZEN),
    "a bias is not rewound": (with_("1.bias", a_little), "biases and buffers are rewound"),
    "a mean is not rewound": (with_("2.running_mean", a_little), "biases and buffers are rewound"),
    "a count is not rewound": (
        with_("2.num_batches_tracked", lambda t: t.add_(1)),
        "biases and buffers are rewound",
    ),
    "a kept weight is another": (
        with_("1.weight", a_kept_one),
        "mask-0: every kept weight equals the value of the mask-1 action",
    ),
    "the optimizer forgets": (starting(optimizer=lambda state: {}), "the optimizer state is rewound"),
    "the optimizer remembers otherwise": (
        starting(optimizer=lambda state: {key: value * 2 for key, value in state.optimizer.items()}),
        "the optimizer state is rewound",
    ),
    "it starts later": (
        starting(step=lambda state: state.step + 1),
        "the start of the training was observed",
    ),
}


@pytest.mark.parametrize("what", MEDDLED)
def test_training_that_differs_from_its_arguments_violates_invariants(what):
    """The procedure is right here, and who carries out its trainings is not."""
    change, sentence = MEDDLED[what]
    dense = replace(DENSE, model="tiny_networks:normed")
    with pytest.warns(InvariantWarning, match=sentence):
        directory = done(TicketSpec(dense, rounds=2, rewind_step=5), trained(dense), change=change)
    for row in directory.rows():
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
        (OneTooFew(), "large_final", [1, 2], "every layer keeps exactly its number of weights"),
        (NotNested(), "small_final", [2], "the masks are nested"),
    ],
)
def test_wrong_masks_violate_invariants(scope, criterion, levels, sentence, monkeypatch):
    monkeypatch.setitem(SCOPES, "broken", scope)
    with pytest.warns(InvariantWarning, match=sentence):
        directory = done(TicketSpec(DENSE, rounds=2, criterion=criterion, scope="broken"), trained())
    failed = {
        row["level"]: [s for s, holds in row["invariants"]["checks"].items() if not holds]
        for row in directory.rows()
    }
    assert failed == {level: [sentence] if level in levels else [] for level in (1, 2)}


@pytest.mark.parametrize(
    "ticket", [None, TicketSpec(DENSE, rounds=2, pruning_rates=PruningRates(0.4))], ids=["dense", "ticket"]
)
def test_instability_trains_two_copies_and_evaluates_the_line_between_them(ticket):
    needed = [trained()] + ([done(ticket, trained())] if ticket else [])
    spec = InstabilitySpec(DENSE, 5, ticket=ticket, level=2 if ticket else 0, points=5)
    trainings, directory = trainings_of(spec, *needed), done(spec, *needed)
    state, ends = (
        load_saved_state(trained(), 5),
        [directory.load_tensors("copy-1"), directory.load_tensors("copy-2")],
    )
    masks = masks_at(needed[1], 2) if ticket else {}
    for training in trainings:
        assert training.start.step == 5
        assert equal(rest(training.start.model, masks), rest(state.model, masks))
        assert equal(at(training.start.model, masks), at(state.model, masks))
        assert equal(training.start.optimizer, state.optimizer)
    for end in ends:
        assert not any(values.any() for values in at(end, masks, num_kept=False).values())
    assert not equal(*ends)
    model, test = DENSE.make_network(), DENSE.load_data().test
    for row in directory.rows():
        between = {n: (1 - row["alpha"]) * ends[0][n] + row["alpha"] * ends[1][n] for n in ends[0]}
        model.load_state_dict(between)
        assert abs(row["test_error"] - evaluate(model, test).error) < 101 / len(test)
    errors = [row["test_error"] for row in directory.rows()]
    assert [row["alpha"] for row in directory.rows()] == [0, 0.25, 0.5, 0.75, 1]
    assert directory.rows()[-1]["barrier"] == max(errors) - (errors[0] + errors[-1]) / 2 >= 0


def test_instability_refuses_a_ticket_of_another_network_before_any_run():
    ticket = TicketSpec(replace(DENSE, model="lenet-5"), rounds=1)
    with pytest.raises(SpecError, match="weights of tiny_networks:mlp, got masks of lenet-5"):
        InstabilitySpec(DENSE, 5, ticket=ticket, level=1).cost()
