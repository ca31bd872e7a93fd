"""Laws of every criterion: shapes, determinism, purity; and the mathematics of each by hand."""

import pytest
import torch

from prunus.nouns import Evidence
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.scopes import global_, threshold
from prunus.seeds import generator

each_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)


def evidence(seed: int = 0) -> Evidence:
    draw = generator(0, "weights")
    return Evidence(
        {"a": torch.randn(5, 4, generator=draw), "b": torch.randn(3, 2, 2, generator=draw)}, seed=seed
    )


@each_criterion
def test_a_score_a_weight_the_same_every_time_and_nothing_mutated(criterion):
    given = evidence()
    before = {name: weight.clone() for name, weight in given.weights.items()}
    first, again = criterion(given), criterion(given)
    for name, weight in before.items():
        assert first[name].shape == weight.shape
        assert torch.equal(first[name], again[name])
        assert torch.equal(given.weights[name], weight)
        assert first[name].data_ptr() != given.weights[name].data_ptr()


@each_criterion
def test_a_tensor_is_scored_alone(criterion):
    given = evidence()
    alone = criterion(Evidence({"b": given.weights["b"]}, seed=given.seed))
    assert torch.equal(alone["b"], criterion(given)["b"])


def test_magnitude_by_hand():
    scores = CRITERIA["magnitude"](Evidence({"a": torch.tensor([[-3.0, 0.0], [-0.5, 2.0]])}))
    assert scores["a"].tolist() == [[3.0, 0.0], [0.5, 2.0]]


def test_random_depends_on_its_seed():
    assert not torch.equal(CRITERIA["random"](evidence(0))["a"], CRITERIA["random"](evidence(1))["a"])


def test_scaled_magnitude_is_hans_threshold():
    weights = evidence().weights
    scores = CRITERIA["scaled_magnitude"](Evidence(weights))
    densities = threshold(weights, 0.8)
    kept = sum(density * weights[name].numel() for name, density in densities.items())
    masks = global_(scores, kept / 32)
    for name, weight in weights.items():
        assert torch.equal(masks[name], weight.abs() > 0.8 * weight.std(correction=0))
