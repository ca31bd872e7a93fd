"""The experiments on generalization, biases, activations, and other ways to make a network small."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_networks import lenet, mlp
from torch import nn

from prunus.experiments import EXPERIMENTS
from prunus.experiments.families_activations import zeros_of_layers
from prunus.experiments.families_biases import _prune_smallest
from prunus.experiments.families_compression import smallest_files
from prunus.experiments.families_low_rank import low_rank
from prunus.experiments.lecun1990_generalization import PrunedBesideDense, examples_needed
from prunus.experiments.running import run_experiment


def rows_of_sizes(dense_errors, pruned_errors):
    """One row per training set of 100, 400, 1600 examples."""
    about = {"network": "n", "replicate": 0, "density %": 10.0}
    return [
        {**about, "examples": 100 * 4**i, "dense test error %": dense, "test error %": pruned}
        for i, (dense, pruned) in enumerate(zip(dense_errors, pruned_errors, strict=True))
    ]


def test_examples_needed_follow_from_the_errors_of_dense_networks():
    """Dense errors that fall with the root of the number of examples, and from 400 examples on faster."""
    rows = examples_needed(rows_of_sizes([8.0, 4.0, 1.0], [4.0, 2.0, 0.25]))
    assert [row["dense needs"] for row in rows] == pytest.approx([4.0, 2.0, 4.0])
    assert examples_needed(rows_of_sizes([8.0, 4.0, 1.0], [16.0, 4.0, 1.0]))[0][
        "dense needs"
    ] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [([4.0, 4.0, 1.0], [1.0] * 3), ([8.0, 4.0, 1.0], [0.0] * 3), ([8.0, 4.0, 0.0], [1.0] * 3)],
)
def test_examples_needed_are_missing_where_they_are_not_defined(dense, pruned):
    assert not any("dense needs" in row for row in examples_needed(rows_of_sizes(dense, pruned)))


def test_every_replicate_has_other_training_examples_and_all_test_examples():
    settings = replace(PrunedBesideDense.of_size("lenet-300-100", "smoke"), data="digits", examples=50)
    first, again, other = (settings.dataset(replicate) for replicate in (0, 0, 1))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.labels, other.train.labels)
    assert len(first.train) == 50
    assert len(first.test) == len(replace(settings, examples=10).dataset(0).test) > 100


def test_smaller_training_sets_have_as_many_steps():
    settings = PrunedBesideDense.of_size("lenet-300-100", "default")
    smaller = settings.with_examples(1000)
    assert smaller.recipe.epochs * 1000 == settings.recipe.epochs * settings.examples
    assert smaller.retrain_epochs * 1000 == settings.retrain_epochs * settings.examples


def test_zeros_have_one_curve_per_layer():
    row = {"curve": "net", "zeros in fc2 %": 60.0, "dense zeros in fc2 %": 45.0, "test error %": 1.0}
    (result,) = zeros_of_layers([row])
    assert (result["curve"], result["zeros %"], result["dense zeros %"]) == ("inputs of fc2", 60.0, 45.0)
    assert result["zeros added"] == 15.0


@pytest.mark.parametrize(("fraction", "pruned"), [(0.5, 25), (1.0, 50)])
def test_the_smallest_biases_are_pruned(fraction, pruned):
    model = lenet(0)
    names = ["fc1.bias", "fc2.bias", "fc3.bias"]
    before = copy.deepcopy(model)
    masks = _prune_smallest(model, names, fraction, 0)
    biases = torch.cat([before.get_parameter(name) for name in names]).abs()
    mask = torch.cat([masks[name] for name in names])
    assert (
        int((~mask).sum()) == int((torch.cat([model.get_parameter(n) for n in names]) == 0).sum()) == pruned
    )
    assert not bool(mask.any()) or biases[mask].min() >= biases[~mask].max()
    assert torch.equal(model.fc1.weight, before.fc1.weight)


def test_low_rank_keeps_a_network_of_that_rank():
    model, inputs = mlp(0), torch.rand(5, 64)
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(24, 3) @ torch.rand(3, 64))
    before = copy.deepcopy(model.state_dict())
    smaller = low_rank(model, 3)
    shapes = [tuple(layer.weight.shape) for layer in smaller.modules() if isinstance(layer, nn.Linear)]
    assert shapes == [(3, 64), (24, 3), (3, 24), (16, 3), (3, 16), (10, 3)]
    assert torch.allclose(smaller[1](inputs), model[1](inputs), atol=1e-4)
    assert not torch.allclose(smaller(inputs), model(inputs), atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_low_rank_would_make_larger_are_kept():
    assert [tuple(p.shape) for p in low_rank(mlp(0), 12).parameters() if p.dim() == 2] == [
        (12, 64), (24, 12), (16, 24), (10, 16),
    ]  # fmt: skip


def test_smallest_file_without_loss():
    about = {"network": "n", "replicate": 0, "run": "r"}
    networks = ("a", "1", 30.0, -0.1), ("a", "2", 10.0, 0.2), ("a", "3", 5.0, 0.3), ("b", "1", 2.0, 1.0)
    rows = [
        {**about, "curve": curve, "at": at, "size %": size, "error added": added}
        for curve, at, size, added in networks
    ]
    smallest = {
        row["curve"]: row["smallest file %"] for row in smallest_files(rows) if row["at"] == "smallest"
    }
    assert smallest == {"a": 10.0, "b": 100.0}


@pytest.mark.parametrize("name", ["families.biases", "families.compression"])
def test_claims_are_about_curves_and_points_that_exist(name, tmp_path):
    settings = {"data": "digits", "examples": "90", "model": "tiny_networks:lenet"}
    result = run_experiment(
        EXPERIMENTS[name],
        "smoke",
        tmp_path / "out",
        store=tmp_path / "store",
        executor="inline",
        settings=settings,
    )
    assert {verdict["reason"] for verdict in result.content["verdicts"]} == {"one replicate is not enough"}


@pytest.mark.filterwarnings("ignore:Setting network")  # the small model takes its place
def test_page_of_one_network_has_only_its_claims(tmp_path):
    settings = {"network": "lenet-5", "data": "digits", "examples": "90", "model": "tiny_networks:lenet"}
    result = run_experiment(
        EXPERIMENTS["families.activations"], "smoke", tmp_path / "out",
        store=tmp_path / "store", executor="inline", settings=settings,
    )  # fmt: skip
    assert len(result.content["verdicts"]) == 2
    assert all("inputs of fc2" in verdict["claim"] for verdict in result.content["verdicts"])
