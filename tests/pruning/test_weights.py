"""Copies of a model with other weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunus.errors import ModelError
from prunus.pruning.weights import with_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_parameters_share_memory_and_buffers_do_not():
    model, weight = network(), torch.ones(2, 4)
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = with_weights(model, {"2.weight": weight})
    assert made[2].weight.data_ptr() == weight.data_ptr()
    assert made[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert made[0].weight is not model[0].weight
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in model.parameters()]
    made.train()(torch.randn(5, 3)).sum().backward()
    made[0].weight.requires_grad_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("weight", [torch.ones(4, 2).T, torch.ones(2, 4).double()])
def test_weights_of_another_layout_or_dtype_are_converted(weight):
    model = network()
    made = with_weights(model, {"2.weight": weight})
    assert made[2].weight.dtype == torch.float32
    assert made[2].weight.stride() == model[2].weight.stride()
    assert torch.equal(made[2].weight, torch.ones(2, 4))


def test_tied_parameters_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    made = with_weights(model, {"0.weight": torch.ones(3, 3)})
    assert made[1].weight is made[0].weight


def test_computed_weights_are_computed_again():
    model = nn.Linear(2, 2, bias=False)
    prune.custom_from_mask(model, "weight", torch.eye(2))
    made = with_weights(model, {"weight_orig": torch.full((2, 2), 3.0)})
    assert torch.equal(made(torch.eye(2)), 3 * torch.eye(2))


@pytest.mark.parametrize("weights", [{"3.weight": torch.ones(2, 4)}, {"2.weight": torch.ones(4, 2)}])
def test_unknown_names_and_other_shapes_are_refused(weights):
    with pytest.raises(ModelError, match=r"Expected .* to"):
        with_weights(network(), weights)


def test_an_embedding_that_its_forward_pass_changes_is_copied():
    model = nn.Embedding(3, 2, max_norm=0.1)
    before = model.weight.detach().clone()
    with_weights(model, {})(torch.arange(3))
    assert torch.equal(model.weight, before)
