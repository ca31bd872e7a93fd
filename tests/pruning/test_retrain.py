"""Laws of pruning in rounds: nesting, exact densities, survivors kept, dropout scaled, resume; and sensitivity."""

import copy
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import nn

from prunus.errors import DensityError
from prunus.masks import are_nested
from prunus.pruning.criteria import magnitude
from prunus.pruning.dropout import retraining_dropout_rates, scaled_dropout
from prunus.pruning.masks import num_to_keep
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.schedules import iterative, layer_by_layer
from prunus.pruning.scopes import global_, layer, n_m
from prunus.pruning.sensitivity import SensitivityPoint, choose_densities, sensitivity
from prunus.training import Recipe, evaluate, train
from prunus.types import Statistics

RECIPE = Recipe(1, 0.005, 32)


def go(model, data, densities, **settings):
    settings = {"criterion": magnitude, "scope": layer, **settings}
    recipes = [RECIPE] * len(densities)
    return prune_and_retrain(model, prunable_weights(model), data, densities, recipes, **settings)


@pytest.mark.parametrize("scope", [layer, global_])
def test_rounds_are_nested_exact_and_hold(scope, mlp, few):
    rounds = go(mlp, few, iterative(0.1, 4), scope=scope)
    total = sum(weight.numel() for weight in prunable_weights(mlp).values())
    for before, after in pairwise(rounds):
        assert are_nested(after.masks, before.masks)
    for done, density in zip(rounds, iterative(0.1, 4), strict=True):
        sizes = [m.numel() for m in done.masks.values()] if scope is layer else [total]
        assert round(done.density * total) == sum(num_to_keep(density, size) for size in sizes)
    for name, mask in rounds[-1].masks.items():
        assert not mlp.get_parameter(name)[~mask].any()
        assert not torch.signbit(mlp.get_parameter(name)[~mask]).any()  # +0.0, a hole in a file


def test_a_density_that_the_scope_cannot_give_is_refused_before_any_training(mlp, few):
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    for scope, densities in ((n_m(2, 4), [0.5, 0.3]), (layer, [0.5, 0.6])):
        with pytest.raises(DensityError):
            go(mlp, few, densities, scope=scope)
        assert all(torch.equal(before[n], tensor) for n, tensor in mlp.state_dict().items())


def test_layer_by_layer_leaves_the_layers_to_come_whole(mlp, few):
    target = dict.fromkeys(prunable_weights(mlp), 0.2)
    rounds = go(mlp, few, layer_by_layer(target))
    whole = [[bool(mask.all()) for mask in done.masks.values()] for done in rounds]
    assert whole == [[False, True, True], [False, False, True], [False, False, False]]


def test_survivors_start_from_the_values_they_had(mlp, few):
    before = {name: weight.detach().clone() for name, weight in prunable_weights(mlp).items()}
    rounds = prune_and_retrain(
        mlp,
        prunable_weights(mlp),
        few,
        [0.5],
        [RECIPE.replace(learning_rate=0.0)],
        criterion=magnitude,
        scope=layer,
    )
    for name, mask in rounds[0].masks.items():
        assert torch.equal(mlp.get_parameter(name)[mask], before[name][mask])
        assert torch.equal(layer(magnitude(Statistics(before)), 0.5)[name], mask)


def test_dropout_follows_the_formula_and_comes_back(mlp):
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(mlp).items()}
    masks["4.weight"] = layer({"w": torch.rand(16, 24)}, 0.25)["w"]
    assert retraining_dropout_rates(mlp, masks) == {"3": pytest.approx(0.1 * sqrt(0.25))}
    with scaled_dropout(mlp, masks):
        assert mlp[3].p == pytest.approx(0.05)
    assert mlp[3].p == 0.1


def test_a_killed_procedure_goes_on_to_the_same_bits(mlp, few, tmp_path):
    whole, parts, fresh = (copy.deepcopy(mlp) for _ in range(3))
    expected = go(whole, few, iterative(0.2, 3))
    calls = []

    def kill(epoch):
        calls.append(epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(parts, few, iterative(0.2, 3), checkpoints=tmp_path, report=kill)
    found = go(fresh, few, iterative(0.2, 3), checkpoints=tmp_path)
    assert [done.epochs for done in found] == [done.epochs for done in expected]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))


def test_sensitivity_leaves_the_model_alone_and_starts_at_its_accuracy(mlp, digits):
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
    masks = layer(magnitude(Statistics(prunable_weights(alone, include=["4.weight"]))), 0.1)
    alone[4].weight.data.mul_(masks["4.weight"])
    assert curve[0].loss == evaluate(alone, digits.validation).loss


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
    with pytest.raises(DensityError, match="-1"):
        choose_densities({"a": curve}, -1)


def test_a_network_that_emptied_is_warned_of(few):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10))
    with pytest.warns(UserWarning, match=r"'2.weight'"):
        go(model, few, [{"1.weight": 0.5, "2.weight": 0.001}])
