"""Which weights are prunable: by layer type, by pattern, never a tied one in silence."""

import pytest
import torch
from torch import nn

from prunus import models
from prunus.errors import ModelError, NoPrunableWeightsError, TiedWeightsError
from prunus.models import MODELS
from prunus.pruning.prunable import layer_kinds, prunable_weights

PUBLISHED = {
    "lenet-300-100": (266_610, 266_200),
    "lenet-5": (431_080, 430_500),
    "conv-2": (4_301_642, 4_300_992),
    "conv-4": (2_425_930, 2_425_024),
    "conv-6": (2_262_602, 2_261_184),
    "resnet-20": (269_722, 268_336),
    "resnet-32": (464_154, 461_872),
    "resnet-56": (853_018, 848_944),
    "resnet-110": (1_727_962, 1_719_856),
}


def test_every_built_in_model_has_a_published_count():
    assert set(PUBLISHED) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_published_counts(name):
    model = MODELS[name]()
    weights = sum(weight.numel() for weight in prunable_weights(model).values())
    assert (sum(p.numel() for p in model.parameters()), weights) == PUBLISHED[name]


@pytest.mark.parametrize("name", MODELS)
def test_model_is_a_function_of_its_seed(name):
    first, same, other = (MODELS[name](seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_glorot_normal_has_its_variance():
    weight = models.lenet_300_100().fc1.weight.detach()
    assert float(weight.var()) == pytest.approx(2 / (784 + 300), rel=0.02)


def test_biases_and_norms_are_not_prunable():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.Embedding(5, 2)
    )
    assert layer_kinds(model) == {"0.weight": "conv", "3.weight": "linear"}
    assert list(prunable_weights(model, exclude=["4.*"])) == ["0.weight", "3.weight"]


def test_include_and_exclude_select_by_pattern():
    model = models.lenet_5()
    assert list(prunable_weights(model, include=["conv*"])) == ["conv1.weight", "conv2.weight"]
    assert list(prunable_weights(model, exclude=["conv*", "fc2.weight"])) == ["fc1.weight"]
    with pytest.raises(ModelError, match="'cnv\\*' matches none"):
        prunable_weights(model, include=["cnv*"])


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.BatchNorm1d(3)], ids=str)
def test_nothing_to_prune_is_an_error(model):
    with pytest.raises(NoPrunableWeightsError, match=type(model).__name__):
        prunable_weights(model)


def test_empty_layer_has_nothing_to_prune():
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Linear(0, 3)
    with pytest.raises(NoPrunableWeightsError, match="Linear"):
        prunable_weights(model)


def test_tied_weights_are_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(TiedWeightsError, match=r"'0.weight' is the same tensor as '2.weight'"):
        prunable_weights(model)
    assert list(prunable_weights(nn.Sequential(*model, nn.Linear(3, 1)), include=["3.weight"])) == [
        "3.weight"
    ]


def test_layer_used_under_two_names_is_tied():
    inner = nn.Linear(3, 3)
    with pytest.raises(TiedWeightsError):
        prunable_weights(nn.Sequential(inner, nn.ReLU(), inner))


def test_weight_tied_to_an_embedding_is_refused():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(TiedWeightsError, match=r"'0.weight'"):
        prunable_weights(model)
