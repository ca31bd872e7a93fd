"""Weights under parametrizations, weight_norm, spectral_norm and masks of torch are pruned through a parameter."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import prunus
from prunus.errors import ModelError
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.weight_layers import masks_of_torch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def old_weight_norm(layer):
    return nn.utils.weight_norm(layer)


def old_spectral_norm(layer):
    return nn.utils.spectral_norm(layer)


def network(wrap):
    torch.manual_seed(0)
    first = wrap(nn.Linear(8, 12))
    # A trained weight_norm: the direction has another length than the weight.
    for name, parameter in first.named_parameters():
        if name.endswith(("original1", "weight_v")):
            parameter.data.mul_(torch.arange(1.0, 13.0)[:, None])
    return nn.Sequential(first, nn.ReLU(), nn.Linear(12, 3)).eval()


WRAPPERS = [
    (parametrizations.weight_norm, "parametrizations.weight.original1"),
    (parametrizations.spectral_norm, "parametrizations.weight.original"),
    (old_weight_norm, "weight_v"),
    (old_spectral_norm, "weight_orig"),
]


@pytest.mark.parametrize(("wrap", "parameter"), WRAPPERS)
def test_computed_weight_is_ranked_by_its_own_values_and_has_the_zeros(wrap, parameter):
    model = network(wrap)
    before = model[0].weight.detach().clone()
    pruned = prunus.prune(model, 0.5)
    mask = pruned.masks[f"0.{parameter}"]
    weight = model[0].weight.detach()
    largest = before.abs().flatten().topk(48).indices
    assert torch.equal(mask.flatten().nonzero().flatten(), largest.sort().values)
    assert not weight[~mask].any()
    assert weight[mask].all()
    if "spectral" not in wrap.__name__:  # which scales the weight again
        torch.testing.assert_close(weight, torch.where(mask, before, 0.0))
    assert not model[0](torch.zeros(1, 8)).isnan().any()


@pytest.mark.parametrize(("wrap", "parameter"), [WRAPPERS[0], WRAPPERS[2]])
def test_obs_of_a_normalized_weight_equals_obs_of_the_plain_layer(wrap, parameter):
    model, plain = network(wrap), network(lambda layer: layer)
    plain[0].weight.data = model[0].weight.detach().clone()
    x, y = torch.randn(40, 8), torch.zeros(40, dtype=torch.int64)
    wrapped, other = (prunus.prune(m, 0.5, criterion="obs", calibration=(x, y)) for m in (model, plain))
    assert torch.equal(wrapped.masks[f"0.{parameter}"], other.masks["0.weight"])
    torch.testing.assert_close(model(x), plain(x))
    assert wrapped.report.rows[0].error_updated == pytest.approx(other.report.rows[0].error_updated)


def test_row_that_weight_norm_would_lose_is_refused_before_anything_changes():
    model = network(parametrizations.weight_norm)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"kept weight in every row of '0\.weight'.*rows without one"):
        prunus.prune(model, 0.05, include=["0.weight"])
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("passed", [False, True], ids=["before", "after a forward pass"])
def test_mask_of_torch_is_taken_over(passed):
    model = network(lambda layer: layer)
    prune.random_unstructured(model[0], "weight", 0.25)
    prune.ln_structured(model[0], "weight", 0.25, n=2, dim=0)
    if passed:
        model(torch.randn(2, 8))
    earlier = model[0].weight_mask.bool()
    assert torch.equal(masks_of_torch(model, prunable_weights(model))["0.weight_orig"], earlier)
    pruned = prunus.prune(model, 0.25)
    mask = pruned.masks["0.weight_orig"]
    assert not (mask & ~earlier).any()
    assert int(mask.sum()) == 24
    assert torch.equal(model[0].weight != 0, mask)
    with pytest.raises(prunus.errors.DensityError, match="lower the density"):
        prunus.prune(model, 0.9)


def test_mask_of_torch_restricts_masks_of_the_caller():
    model = network(lambda layer: layer)
    prune.random_unstructured(model[0], "weight", 0.5)
    within = {n: torch.rand(w.shape) < 0.8 for n, w in prunable_weights(model).items()}
    pruned = prunus.prune(model, 0.25, within=within)
    assert not (
        pruned.masks["0.weight_orig"] & ~(within["0.weight_orig"] & model[0].weight_mask.bool())
    ).any()
