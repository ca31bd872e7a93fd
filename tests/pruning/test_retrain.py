"""Pruning in rounds: nested masks, exact densities, scaled dropout, resuming; and sensitivity."""

import copy
import warnings
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import nn

import prunus
from prunus.data.batches import iter_batches
from prunus.data.examples import sample_examples
from prunus.errors import DensityError, NoEffectWarning, SpecError, StatisticsError, TrainingError
from prunus.masks import are_nested
from prunus.modules import copied
from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.density import num_to_keep
from prunus.pruning.dropout import retraining_dropout_rates, scaled_dropout
from prunus.pruning.methods import pruning_method
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.schedules import iterative, layer_by_layer
from prunus.pruning.scopes import Global, Layer, NByM
from prunus.pruning.sensitivity import SensitivityPoint, choose_densities, sensitivity
from prunus.pruning.statistics import Statistics
from prunus.seeds import derive_seed
from prunus.training import Recipe, evaluate, train

RECIPE = Recipe(1, 0.005, 32)


@pytest.fixture(scope="module")
def data(digits):
    return digits.take(160, 40)


def go(model, data, densities, **settings):
    settings = {"criterion": magnitude, "scope": Layer(), "backend": "dense", **settings}
    recipes = [RECIPE] * len(densities)
    return prune_and_retrain(model, data, densities, recipes, **settings)


@pytest.mark.parametrize("scope", [Layer(), Global()])
def test_rounds_have_nested_masks_and_exact_counts_that_hold_after_training(scope, mlp, data):
    rounds = go(mlp, data, iterative(0.1, 4), scope=scope)
    total = sum(weight.numel() for weight in prunable_weights(mlp).values())
    for before, after in pairwise(rounds):
        assert are_nested(after.masks, before.masks)
    for done, density in zip(rounds, iterative(0.1, 4), strict=True):
        sizes = [m.numel() for m in done.masks.values()] if scope == Layer() else [total]
        assert round(done.density * total) == sum(num_to_keep(density, size) for size in sizes)
    for name, mask in rounds[-1].masks.items():
        assert not mlp.get_parameter(name)[~mask].any()
        assert not torch.signbit(mlp.get_parameter(name)[~mask]).any()  # +0.0, as in a file


def test_density_that_the_scope_cannot_give_is_refused_before_training(mlp, data):
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    for scope, densities in ((NByM(2, 4), [0.5, 0.3]), (Layer(), [0.5, 0.6])):
        with pytest.raises(DensityError):
            go(mlp, data, densities, scope=scope)
        assert all(torch.equal(before[n], tensor) for n, tensor in mlp.state_dict().items())


def test_layer_by_layer_does_not_prune_later_layers(mlp, data):
    target = dict.fromkeys(prunable_weights(mlp), 0.2)
    rounds = go(mlp, data, layer_by_layer(target))
    is_dense = [[bool(mask.all()) for mask in done.masks.values()] for done in rounds]
    assert is_dense == [[False, True, True], [False, False, True], [False, False, False]]


def test_kept_weights_keep_their_values_when_a_round_starts(mlp, data):
    before = {name: weight.detach().clone() for name, weight in prunable_weights(mlp).items()}
    rounds = prune_and_retrain(
        mlp,
        data,
        [0.5],
        [RECIPE.replace(learning_rate=0.0)],
        criterion=magnitude,
        scope=Layer(),
    )
    for name, mask in rounds[0].masks.items():
        assert torch.equal(mlp.get_parameter(name)[mask], before[name][mask])
        assert torch.equal(Layer().select(magnitude(Statistics(before)), 0.5)[name], mask)


def test_masks_of_a_random_criterion_are_nested_in_those_of_the_round_before(mlp, data):
    """Magnitude could not show it: pruned weights are zero, and so the smallest of the next round."""
    rounds = go(mlp, data, iterative(0.2, 3), criterion="random")
    assert all(are_nested(after.masks, before.masks) for before, after in pairwise(rounds))
    assert not are_nested(rounds[0].masks, rounds[1].masks)


def test_masks_of_the_first_round_are_nested_in_given_masks(mlp, data):
    outer = Layer().select({n: torch.rand_like(w) for n, w in prunable_weights(mlp).items()}, 0.7)
    (only,) = go(mlp, data, [0.4], criterion="random", within=outer)
    assert are_nested(only.masks, outer)


def test_update_of_the_method_is_put_into_the_model(mlp, data):
    before = copy.deepcopy(mlp)
    (only,) = prune_and_retrain(mlp, data, [0.5], [RECIPE.replace(epochs=0)], criterion="obs", scope="layer")
    method, seed = pruning_method("obs"), derive_seed(0, "criterion", 1)
    examples = sample_examples(data.train, method.num_examples, seed)
    seeds = seed, derive_seed(0, "ties", 1)
    expected = method.prune(before, prunable_weights(before), 0.5, Layer(), examples, seeds=seeds)
    for name, weight in expected.weights.items():
        assert torch.equal(mlp.get_parameter(name), weight)
        assert torch.equal(only.masks[name], expected.masks[name])
        mask = only.masks[name]
        assert not torch.equal(weight[mask], before.get_parameter(name)[mask])


def test_names_are_those_of_the_module_that_was_compiled(mlp, data):
    compiled = torch.compile(copy.deepcopy(mlp), backend="eager")
    expected, got = go(mlp, data, [0.5]), go(compiled, data, [0.5])
    assert list(got[0].masks) == list(expected[0].masks)
    curves = sensitivity(compiled, data.validation, densities=[0.5])
    assert list(curves) == list(got[0].masks)


def test_methods_see_examples_of_the_training_split_alone(mlp, data):
    """Same masks and weights whatever the test split holds; and every example is one of the training split."""
    seen = []

    class Recording(ExactObs):
        def prune(self, model, weights, density, scope, calibration=None, **options):
            seen.append(calibration)
            return super().prune(model, weights, density, scope, calibration, **options)

    go(mlp, data, [0.5, 0.25], criterion=Recording(num_examples=40))
    rows = {tuple(row) for row in data.train.inputs.flatten(1).tolist()}
    others = {tuple(row) for row in data.test.inputs.flatten(1).tolist()} - rows
    assert others
    assert len(seen) == 2
    for examples in seen:
        assert len(examples) == 40
        assert {tuple(row) for row in examples.inputs.flatten(1).tolist()} <= rows


def test_scaled_dropout_follows_the_formula_and_is_restored(mlp):
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(mlp).items()}
    masks["4.weight"] = Layer().select({"w": torch.rand(16, 24)}, 0.25)["w"]
    assert retraining_dropout_rates(mlp, masks) == {"3": pytest.approx(0.1 * sqrt(0.25))}
    with scaled_dropout(mlp, masks):
        assert mlp[3].p == pytest.approx(0.05)
    assert mlp[3].p == 0.1


def test_dropout_is_scaled_by_any_layer_whose_weights_are_masked():
    model = nn.Sequential(
        nn.Dropout(0.4),
        nn.LSTM(4, 4),
        nn.Dropout(0.4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    )
    weights = prunable_weights(model)
    densities = dict.fromkeys(weights, 0.25) | {"3.parametrizations.weight.original1": 0.5}
    masks = Layer().select({name: torch.rand_like(weight) for name, weight in weights.items()}, densities)
    expected = {"0": 0.4 * sqrt(0.25), "2": 0.4 * sqrt(0.5)}
    assert retraining_dropout_rates(model, masks) == pytest.approx(expected)


def test_killed_procedure_resumes_to_the_same_bits(mlp, data, tmp_path):
    uninterrupted, parts, fresh = (copy.deepcopy(mlp) for _ in range(3))
    expected = go(uninterrupted, data, iterative(0.2, 3))
    calls = []

    def kill(epoch):
        calls.append(epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(parts, data, iterative(0.2, 3), checkpoints=tmp_path, report=kill)
    resumed = go(fresh, data, iterative(0.2, 3), checkpoints=tmp_path)
    assert [done.epochs for done in resumed] == [done.epochs for done in expected]
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), fresh.parameters(), strict=True))


def test_sensitivity_does_not_change_the_model_and_starts_at_its_accuracy(mlp, digits):
    train(mlp, digits, Recipe(8, 0.005, 32))
    before = {name: p.detach().clone() for name, p in mlp.named_parameters()}
    curves = sensitivity(mlp, digits.validation, densities=(1.0, 0.5, 0.1, 0.02))
    assert all(torch.equal(p, before[name]) for name, p in mlp.named_parameters())
    assert list(curves) == list(prunable_weights(mlp))
    for name, curve in curves.items():
        assert [point.density for point in curve] == [1.0, 0.5, 0.1, 0.02]
        assert curve[0].accuracy == evaluate(mlp, digits.validation).accuracy
        assert curve[-1].accuracy < curve[0].accuracy, name


def test_sensitivity_is_one_layer_at_a_time(mlp, digits):
    train(mlp, digits, Recipe(8, 0.005, 32))
    curve = sensitivity(mlp, digits.validation, densities=(0.1,), include=["4.weight"])["4.weight"]
    alone = copy.deepcopy(mlp)
    masks = Layer().select(magnitude(Statistics(prunable_weights(alone, include=["4.weight"]))), 0.1)
    alone[4].weight.data.mul_(masks["4.weight"])
    assert curve[0].loss == evaluate(alone, digits.validation).loss


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_sensitivity_of_a_computed_weight_is_the_loss_after_pruning_it(normed):
    torch.manual_seed(0)
    model = nn.Sequential(normed(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(200, 8)
    data = (x, model(x).argmax(1))
    curves = sensitivity(model, data, densities=(1.0, 0.5, 0.3, 0.02))
    assert [len(curve) for curve in curves.values()] == [
        3,
        4,
    ]  # a row of the first layer would have no weight left
    for name, curve in curves.items():
        for point in curve:
            alone = copied(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoEffectWarning)  # of the density 1
                prunus.prune(alone, point.density, include=[name])
            assert point.loss == evaluate(alone, data).loss


def test_sensitivity_scores_each_layer_once(mlp, digits):
    passes = []

    def forward(model, batch):
        passes.append(len(batch[0]))
        return model(batch[0])

    counts = []
    for densities in ((0.5,), (1.0, 0.5, 0.3)):
        passes.clear()
        sensitivity(
            mlp, digits.validation, densities=densities, criterion="snip", calibration=digits, forward=forward
        )
        num_evaluations = len(densities) * len(prunable_weights(mlp)) * -(-len(digits.validation) // 100)
        counts.append(len(passes) - num_evaluations)
    assert counts[0] == counts[1] > 0


def test_densities_are_chosen_by_tolerance():
    curve = [
        SensitivityPoint(1.0, 98.0, 0),
        SensitivityPoint(0.5, 98.1, 0),
        SensitivityPoint(0.2, 97.6, 0),
        SensitivityPoint(0.1, 98.0, 0),
        SensitivityPoint(0.05, 90.0, 0),
    ]
    assert choose_densities({"a": curve}, 0.0) == {"a": 0.5}  # 0.1 is fine again, but 0.2 was not
    assert choose_densities({"a": curve}, 0.5) == {"a": 0.1}
    assert choose_densities({"a": curve}, 100) == {"a": 0.05}
    exact = [SensitivityPoint(1.0, 98.2, 0.1), SensitivityPoint(0.5, 98.1, 0.1)]  # 98.2 - 98.1 > 0.1
    assert choose_densities({"a": exact}, 0.1) == {"a": 0.5}
    with pytest.raises(DensityError, match="-1"):
        choose_densities({"a": curve}, -1)
    with pytest.raises(DensityError, match="nan"):
        choose_densities({"a": curve}, float("nan"))


def test_emptied_layer_warns(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10))
    with pytest.warns(UserWarning, match=r"'2.weight'"):
        go(model, data, [{"1.weight": 0.5, "2.weight": 0.001}])


def own_fit(data, calls=None):
    """A training loop of the user, with prunus' batches."""

    def fit(model, masks):
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.learning_rate, fused=True)
        masks.attach(optimizer)
        for inputs, labels in iter_batches(data.train, 32, derive_seed(0, "retrain", len(calls) + 1), 0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        calls.append(masks)

    return fit


def test_a_training_loop_of_ones_own_in_the_place_of_recipes(data):
    """The same bits as with recipes, where the batches are the same; without data for a criterion of weights."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()

    theirs, ours, calls = network(), network(), []
    densities = iterative(0.5, 2)  # with which the dense backend trains
    expected = go(theirs, data, densities)
    fit = own_fit(data, calls)
    rounds = prune_and_retrain(ours, None, densities, fit=fit, criterion="magnitude", scope="layer")
    assert [done.density for done in rounds] == [done.density for done in expected]
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    assert not ours.training
    assert [len(calls), calls[-1].verify()] == [2, 0]
    assert not ours[1].weight._post_accumulate_grad_hooks  # detached


def test_a_fit_may_replace_the_parameters():
    """As `load_state_dict(..., assign=True)` does with the best weights of a training."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    before = model.weight.detach().clone()

    def double(trained, masks):
        trained.load_state_dict({"weight": 2 * trained.weight.detach()}, assign=True)

    rounds = prune_and_retrain(model, None, [0.5, 0.25], fit=double)
    assert torch.equal(model.weight, torch.where(rounds[-1].masks["weight"], 4 * before, 0.0))


def test_a_fit_that_does_not_fit_is_refused(mlp, data):
    settings = {"criterion": "magnitude", "scope": "layer"}
    before = copy.deepcopy(mlp.state_dict())
    bad = [
        (
            {"fit": own_fit(data), "retrain": [RECIPE]},
            SpecError,
            "or fit and no recipe, got 1 recipes and fit",
        ),
        ({"fit": own_fit(data), "checkpoints": "x"}, SpecError, "fit or checkpoints"),
        ({"fit": 1}, SpecError, "fit to be a function"),
        ({}, SpecError, "one recipe for each of 1 rounds, or fit and no recipe, got 0"),
        ({"retrain": RECIPE}, SpecError, "a list of recipes, one of each per round"),
        ({"densities": 0.5, "retrain": [RECIPE]}, SpecError, "Expected a list of densities"),
        ({"retrain": [RECIPE], "data": None}, StatisticsError, "Expected data"),
        ({"fit": own_fit(data), "data": None, "criterion": "obs"}, StatisticsError, "Expected data"),
    ]
    for changes, error, message in bad:
        arguments = {"data": data, "densities": [0.5], **settings, **changes}
        with pytest.raises(error, match=message):
            prune_and_retrain(mlp, **arguments)
        assert all(torch.equal(before[name], tensor) for name, tensor in mlp.state_dict().items())

    def forgets(model, masks):
        nn.init.ones_(model[1].weight)

    with pytest.raises(
        TrainingError, match=r"got 768 weights that are not what they should be; call masks\.attach"
    ):
        prune_and_retrain(mlp, None, [0.5], fit=forgets, **settings)
