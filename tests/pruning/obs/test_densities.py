"""Densities per layer against exhaustive search."""

import itertools
import sys
import warnings
from pathlib import Path

import pytest
from torch.nn import functional as F

from prunus.errors import DensityError
from prunus.masks import all_kept
from prunus.pruning.density import num_to_keep
from prunus.pruning.obs.densities import allocate_densities, error_curves
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.scopes import SCOPES

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from layers import convolution, draw, linear


def test_allocation_is_the_best_of_all_choices():
    levels = (0.2, 0.5, 0.7, 1.0)
    sizes = {"a": 10, "b": 20, "c": 30}
    rough = {name: dict(zip(levels, draw(4, role=name).square().tolist(), strict=True)) for name in sizes}
    for density in (0.25, 0.4, 0.6, 0.9):
        selected = allocate_densities(rough, sizes, density)
        fits = [
            choice
            for choice in itertools.product(levels, repeat=3)
            if sum(num_to_keep(d, n) for d, n in zip(choice, sizes.values(), strict=True))
            <= num_to_keep(density, 60)
        ]
        costs = [sum(rough[n][d] for n, d in zip(sizes, choice, strict=True)) for choice in fits]
        assert sum(rough[n][d] for n, d in selected.items()) == pytest.approx(min(costs))
        assert sum(num_to_keep(selected[n], sizes[n]) for n in sizes) <= num_to_keep(density, 60)


def test_allocation_of_convex_curves_is_that_of_the_global_scope():
    scores = {name: draw(*shape, role=name).square() for name, shape in {"a": (10, 5), "b": (7, 10)}.items()}
    sizes = {name: score.numel() for name, score in scores.items()}
    fine = [level / 350 for level in range(1, 351)]
    selected = allocate_densities(error_curves(scores, all_kept(scores), fine), sizes, 0.5)
    masks = SCOPES["global"].select(scores, 0.5)
    assert {n: num_to_keep(selected[n], sizes[n]) for n in sizes} == {
        n: int(m.sum()) for n, m in masks.items()
    }


def test_curves_are_the_errors_of_exact_obs():
    model, weights, inputs = linear()
    state = ExactObs().examiner(model, inputs)(weights, all_kept(weights))
    scores = state.scores()
    curve = error_curves(scores, state.masks, [0.25, 0.5, 1.0])["weight"]
    assert curve[1.0] == 0
    for density in (0.25, 0.5):
        done = state.prune_to(SCOPES["layer"].select(scores, density))
        assert done.predicted_increase == pytest.approx(curve[density], rel=0.01)


def test_density_below_every_level_is_refused():
    with pytest.raises(DensityError, match="lowest levels"):
        allocate_densities({"a": {0.5: 1.0, 1.0: 0.0}}, {"a": 10}, 0.3)


def test_ordinary_use_gives_no_warning():
    model, weights, inputs = convolution("padded")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_in_steps(ExactObs().examiner(model, inputs), weights, 0.5, SCOPES["layer"])


def test_unfolded_convolutions_multiply_as_the_layer_does():
    model, weights, inputs = convolution("grouped")
    actual = layer_hessians(model, weights, inputs)["0.weight"]
    bare = F.conv2d(inputs, model[0].weight, groups=2).detach()
    assert actual.error(weights["0.weight"]) == pytest.approx(float(bare.square().sum()) / len(inputs))
