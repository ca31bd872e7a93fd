"""Every pruning method prunes exactly, under every kind of scope, in schedules, Deep Compression and tickets."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.data.examples import sample_examples
from prunus.errors import ModelError, StatisticsError, UnknownNameError
from prunus.masks import are_nested, mask_density
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.density import num_to_keep
from prunus.pruning.methods import METHODS, CriterionMethod, pruning_method, with_options
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.schedules import iterative
from prunus.pruning.scopes import SCOPES
from prunus.pruning.statistics import collect
from prunus.training import Recipe, evaluate, train
from prunus.types import Split

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import tiny_networks

# These networks are hardly trained: an update for a minimum of the error may lose more than none.
pytestmark = pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")

GRADIENT_CRITERIA = ("snip", "gradient", "grasp", "synflow")
ALL = (*METHODS, *GRADIENT_CRITERIA)
MOVING = ("obs", "sparse_gpt", "admm", "fisher", "full_obs")
SINGLE_STEP = ("sparse_gpt", "admm")
each = pytest.mark.parametrize("name", ALL)


def tiny(seed):
    """64-8-8-10."""
    layers = nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10)
    return tiny_networks.randomize_parameters(nn.Sequential(nn.Flatten(), *layers), seed)


@pytest.fixture(scope="module")
def data():
    return prunus.load_data("digits").take(300, 100)


@pytest.fixture(scope="module")
def model(data):
    trained = tiny(0)
    train(trained, data, Recipe(6, 0.01, 25), seed=0)
    return trained


def prune(name, model, split, density, scope="layer", *, weights=None, seeds=(0, 0), **arguments):
    """Prune with 60 examples and the options of a method among `arguments`."""
    options = {
        key: arguments.pop(key) for key in ("damping", "num_steps", "num_examples") if key in arguments
    }
    method = with_options(pruning_method(name), **({"num_examples": 60} | options))
    examples = sample_examples(split, method.num_examples, seeds[0])
    weights = prunable_weights(model) if weights is None else weights
    return method.prune(model, weights, density, scope, examples, seeds=seeds, **arguments)


@each
@pytest.mark.parametrize("scope", ["layer", "global", "2:4", "1x2"])
def test_every_method_prunes_exactly_under_every_kind_of_scope(name, scope, model, data):
    before = copy.deepcopy(model.state_dict())
    weights = prunable_weights(model)
    done = prune(name, model, data.train, 0.5, scope, seeds=(0, 1))
    if scope == "global":
        assert mask_density(done.masks) == num_to_keep(0.5, sum(w.numel() for w in weights.values())) / sum(
            w.numel() for w in weights.values()
        )
    else:
        assert all(float(mask.double().mean()) == 0.5 for mask in done.masks.values())
    for key, mask in done.masks.items():
        assert not done.weights[key][~mask].any()
        assert torch.isfinite(done.weights[key]).all()
        moved = not torch.equal(done.weights[key][mask], weights[key].detach()[mask])
        assert moved is (name in MOVING)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", MOVING)
def test_update_is_better_than_none_on_the_network_itself(name, model, data):
    weights = prunable_weights(model)
    damping = {"fisher": 1e-3, "full_obs": 1e-3}.get(name)
    options = {"num_examples": 300, "damping": damping, "num_steps": 1 if name in SINGLE_STEP else 4}
    done = prune(name, model, data.train, 0.5, **options)
    bare = {key: weights[key].detach() * mask for key, mask in done.masks.items()}
    losses = []
    for tensors in (done.weights, bare):
        trial = copy.deepcopy(model)
        trial.load_state_dict({**trial.state_dict(), **tensors})
        losses.append(evaluate(trial, data.train).loss)
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", ["obs", "fisher", "obd"])
def test_results_are_reproducible_and_equal_to_pruning_in_steps(name, model, data):
    """`obs` by hand: the same examples and steps."""
    weights = prunable_weights(model)
    done = prune(name, model, data.train, 0.4, seeds=(0, 3))
    again = prune(name, model, data.train, 0.4, seeds=(0, 3))
    assert all(torch.equal(done.weights[key], again.weights[key]) for key in weights)
    if name == "obs":
        draw = torch.randperm(300, generator=prunus.seeds.make_generator(0, "calibration"))[:60]
        hand = prune_in_steps(
            ExactObs().examiner(model, data.train.inputs[draw]), weights, 0.4, SCOPES["layer"], seed=3
        )
        assert all(torch.equal(done.weights[key], hand.weights[key]) for key in weights)


def test_examples_depend_on_the_seed(model, data):
    weights = prunable_weights(model)
    first, other = (prune("obs", model, data.train, 0.4, seeds=(seed, 0), num_examples=40) for seed in (0, 1))
    assert any(not torch.equal(first.weights[key], other.weights[key]) for key in weights)


def test_exact_obs_prunes_in_the_pattern_of_the_scope(model, data):
    """Deleted with the pattern in mind, what 2:4 keeps costs less than what it keeps of single deletions."""
    weights, examples = prunable_weights(model), sample_examples(data.train, 60, 0)
    with_pattern = prune("obs", model, data.train, 0.5, "2:4")
    unstructured = ExactObs().examiner(model, examples.inputs)
    without_pattern = prune_in_steps(unstructured, weights, 0.5, SCOPES["2:4"])
    assert with_pattern.predicted_increase < without_pattern.predicted_increase


@pytest.mark.parametrize("name", [name for name in ALL if name not in SINGLE_STEP])
def test_two_steps_are_two_prunings_with_recomputed_scores(name, model, data):
    all_at_once = prune(name, model, data.train, 0.4, num_steps=2)
    one_step = prune(name, model, data.train, 0.4)
    assert mask_density(all_at_once.masks) == mask_density(one_step.masks)
    assert any(
        not torch.equal(all_at_once.weights[key], one_step.weights[key]) for key in all_at_once.weights
    )


@pytest.mark.parametrize("name", ["sparse_gpt", "admm", "magnitude"])
def test_steps_that_change_nothing_are_refused(name):
    with pytest.raises(StatisticsError, match="Expected 1 step"):
        with_options(pruning_method(name), num_steps=2)


def test_seconds_are_of_all_examinations(model, data):
    weights, layer = prunable_weights(model), SCOPES["layer"]
    examine, states = ExactObs().examiner(model, data.train.inputs[:60]), []

    def noted(weights, masks):
        states.append(examine(weights, masks))
        return states[-1]

    done = prune_in_steps(noted, weights, 0.3, layer, num_steps=3, num_recomputations=3)
    assert len(states) == 3
    for name in weights:
        assert done.seconds[name] == pytest.approx(sum(state.seconds[name] for state in states))
        assert all(0 < state.seconds[name] < done.seconds[name] for state in states)


@pytest.mark.parametrize("name", ["obd", "obd_hutchinson", "magnitude", *GRADIENT_CRITERIA])
def test_damping_where_nothing_is_inverted_is_refused(name):
    with pytest.raises(
        StatisticsError, match=r"nothing is inverted.*obs, sparse_gpt, admm, fisher, full_obs"
    ):
        with_options(pruning_method(name), damping=0.1)


@pytest.mark.parametrize("name", ["snip", "gradient"])
def test_criterion_masks_are_those_of_its_scores_at_the_present_weights(name, model, data):
    weights, examples = prunable_weights(model), sample_examples(data.train, 60, 0)
    scores = CRITERIA[name](collect(model, weights, {"gradients"}, examples))
    result = prune(name, model, data.train, 0.3)
    expected = SCOPES["layer"].select(scores, 0.3)
    assert all(torch.equal(result.masks[key], expected[key]) for key in weights)


def test_no_example_is_refused(model, data):
    with pytest.raises(StatisticsError, match="at least one"):
        sample_examples(Split(data.train.inputs[:0], data.train.labels[:0]), 10, 0)
    with pytest.raises(StatisticsError, match="at least 1"):
        with_options(METHODS["obs"], num_examples=0)
    with pytest.raises(StatisticsError, match="got none"):
        METHODS["obs"].prune(model, prunable_weights(model), 0.5, "layer")


@pytest.mark.parametrize("fewer", ["labels", "inputs"])
def test_split_with_a_label_too_many_or_too_few_is_refused(fewer, model, data):
    inputs, labels = data.train.inputs[:50], data.train.labels[:50]
    split = Split(inputs, labels[:40]) if fewer == "labels" else Split(inputs[:40], labels)
    pattern = rf"one entry per example .*\({len(split.inputs)}, 1, 8, 8\), \({len(split.labels)},\)"
    with pytest.raises(StatisticsError, match=pattern):
        sample_examples(split, 10, 0)
    with pytest.raises(StatisticsError, match=pattern):
        METHODS["obs"].prune(model, prunable_weights(model), 0.5, "layer", split)


@each
def test_inputs_of_another_shape_are_refused(name, model, data):
    examples = Split(torch.ones(20, 1, 7, 7), data.train.labels[:20])
    with pytest.raises(
        StatisticsError, match=r"Sequential does not take calibration inputs of shape \(\d+, 1, 7, 7\)"
    ):
        prune(name, model, examples, 0.5)


@each
def test_layer_that_is_never_reached_is_named(name, data):
    model = tiny_networks.mlp(0)
    model[1].spare = tiny_networks.randomize_parameters(nn.Linear(4, 4), 0)
    with pytest.raises(ModelError, match=r"never reached the layer of '1.spare.weight'.*exclude"):
        prune(name, model, data.train, 0.5)
    prune(name, model, data.train, 0.5, weights=prunable_weights(model, exclude=["1.spare.*"]))


@pytest.mark.parametrize("name", [name for name in ALL if name != "synflow"])
def test_layer_without_information_in_the_examples_is_named(name, model, data):
    """Of inputs that are all zero; what comes after it has its biases to look at."""
    examples = Split(torch.zeros(20, 1, 8, 8), data.train.labels[:20])
    pattern = r"'1\.weight'.*(is|are) zero .*its weights cannot be scored; pass other examples, or exclude"
    with pytest.raises(StatisticsError, match=pattern):
        prune(name, model, examples, 0.5)
    if name != "obd_hutchinson":  # the same, in 200 products
        prune(name, model, examples, 0.5, weights=prunable_weights(model, exclude=["1.weight"]))


@pytest.mark.filterwarnings("ignore::prunus.errors.EmptyLayerWarning")
@pytest.mark.parametrize("name", ["fisher", "full_obs", "obd_hutchinson", "snip", "gradient", "grasp"])
def test_layer_without_weights_needs_no_information(name, data):
    model = tiny_networks.residual(0)
    model.over.bias.data.fill_(-1.0)  # without its weights it is silent, and so are their derivatives
    weights = prunable_weights(model)
    within = {key: torch.full_like(w, key != "over.weight", dtype=torch.bool) for key, w in weights.items()}
    done = prune(name, model, data.train, 0.3, "global", within=within)
    assert not done.masks["over.weight"].any()


def test_methods_are_found_by_name_value_and_criterion():
    assert pruning_method("magnitude") == pruning_method(magnitude) == CriterionMethod(magnitude)
    assert callable(pruning_method("tiny_networks:by_column").criterion)
    assert pruning_method("obs") is pruning_method(METHODS["obs"]) is METHODS["obs"]
    with pytest.raises(UnknownNameError, match="criterion"):
        pruning_method("nothing")


@pytest.mark.parametrize("name", [*METHODS, "magnitude"])
def test_schedules_with_retraining_accept_methods(name, model, data):
    own_result = copy.deepcopy(model)
    criterion = with_options(pruning_method(name), num_examples=100)
    rounds = prune_and_retrain(
        own_result,
        data,
        iterative(0.25, 2),
        [Recipe(1, 0.005, 25)] * 2,
        criterion=criterion,
        scope=SCOPES["layer"],
    )
    assert are_nested(rounds[1].masks, rounds[0].masks)
    assert all(not own_result.get_parameter(key)[~mask].any() for key, mask in rounds[1].masks.items())


def test_without_retraining_the_update_stays(model, data):
    own_result = copy.deepcopy(model)
    prune_and_retrain(
        own_result,
        data,
        [0.4],
        [Recipe(0, 0.005, 25)],
        criterion=with_options(METHODS["obs"], num_examples=100),
        scope=SCOPES["layer"],
    )
    assert any(
        (own_result.get_parameter(n) != w).any()
        for n, w in prune("magnitude", model, data.train, 0.4).weights.items()
    )
    losses = evaluate(own_result, data.train).loss
    zeroed = copy.deepcopy(model)
    done = prune("magnitude", model, data.train, 0.4)
    zeroed.load_state_dict({**zeroed.state_dict(), **done.weights})
    assert losses < evaluate(zeroed, data.train).loss


def test_deep_compression_accepts_methods(model, data, tmp_path):
    short = Recipe(1, 0.005, 25)
    recipe = prunus.COMPRESSION_RECIPES["default"].replace(
        density=0.5, scope="2:4", schedule="one_shot", rounds=1, retrain=short, final_retrain=short, finetune=short,
        criterion="obs", bits=3,
    )  # fmt: skip
    done = prunus.compress(model, tmp_path / "obs.prunus", data=data, preset=recipe)
    assert all(float(mask.double().mean()) == 0.5 for mask in done.masks.values())
    again = prunus.load(tmp_path / "obs.prunus", into=tiny(1))
    assert evaluate(again, data.test) == evaluate(done.model, data.test)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf"), 1e10])
def test_damping_out_of_range_is_refused(name, damping):
    least = "at least 0" if name in ("obs", "sparse_gpt", "admm") else "above 0"
    message = f"damping {least} and at most" if name in MOVING else "nothing is inverted"
    with pytest.raises(StatisticsError, match=message):
        with_options(METHODS[name], damping=damping)


def test_only_layer_by_layer_methods_accept_zero_damping():
    for name in ("obs", "sparse_gpt", "admm"):
        assert with_options(METHODS[name], damping=0.0).damping == 0.0
    for name in ("fisher", "full_obs"):
        with pytest.raises(StatisticsError, match="above 0"):
            with_options(METHODS[name], damping=0.0)


@pytest.mark.parametrize("name", METHODS)
def test_results_do_not_depend_on_the_order_of_masks(name, model, data):
    weights = prunable_weights(model)
    before = SCOPES["layer"].select({n: w.detach().abs() for n, w in weights.items()}, 0.8)
    turned = dict(reversed(before.items()))
    result, other = (prune(name, model, data.train, 0.5, within=masks) for masks in (before, turned))
    assert list(result.weights) == list(other.weights) == list(other.masks)
    assert all(torch.equal(result.weights[n], other.weights[n]) for n in weights)
    assert result.predicted_increase == other.predicted_increase


def test_steps_start_from_the_remaining_weights_of_each_layer(model, data):
    weights = prunable_weights(model)
    first, *others = weights
    uneven = SCOPES["layer"].select(
        {n: w.detach().abs() for n, w in weights.items()}, {first: 0.3, **dict.fromkeys(others, 1.0)}
    )
    done = prune("fisher", model, data.train, 0.2, num_steps=3, within=uneven)
    assert {n: int(mask.sum()) for n, mask in done.masks.items()} == {
        n: num_to_keep(0.2, w.numel()) for n, w in weights.items()
    }
    assert are_nested(done.masks, uneven)


def test_estimated_diagonal_depends_on_the_seed(model, data):
    def increase(seed):
        options = {"num_examples": len(data.train), "seeds": (seed, 0)}
        return prune("obd_hutchinson", model, data.train, 0.5, **options).predicted_increase

    assert increase(0) == increase(0)
    # The examples are the same, in another order: without other signs only the last digits would differ.
    assert len({f"{increase(seed):.3g}" for seed in range(3)}) == 3


def test_user_method_is_found_by_its_reference(tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text(
        "from prunus.pruning.obs.exact_obs import ExactObs\n"
        "mine = ExactObs(damping=0.5, num_examples=300, num_steps=3)\nother = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert pruning_method("my_methods:mine") == ExactObs(damping=0.5, num_examples=300, num_steps=3)
    with pytest.raises(UnknownNameError, match="to be a PruningMethod or a function, got a int"):
        pruning_method("my_methods:other")
