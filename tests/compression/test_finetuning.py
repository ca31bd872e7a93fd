"""The constraint of quantized weights holds for the parameters that the model has now."""

import copy

import pytest
import torch

from prunus.compression.quantization import CodebookConstraint, quantize_weights
from prunus.errors import ModelError
from prunus.masks import all_kept
from prunus.pruning.prunable import prunable_weights


def double(model):
    model.double()


def assign_copies(model):
    model.load_state_dict(copy.deepcopy(model).state_dict(), assign=True)


def replace_submodule(model):
    model[1] = copy.deepcopy(model[1])


@pytest.mark.parametrize("change", [double, assign_copies, replace_submodule])
def test_weights_are_centroids_after_a_step_when_the_parameters_are_replaced(change, mlp):
    weights = prunable_weights(mlp)
    constraint = CodebookConstraint(mlp, quantize_weights(weights, all_kept(weights), 2))
    constraint.apply()
    change(mlp)
    optimizer = torch.optim.SGD(constraint.trainable_tensors().values(), lr=0.1)
    mlp(torch.randn(8, 1, 8, 8, dtype=mlp[1].weight.dtype)).square().mean().backward()
    constraint.before_optimizer_step()
    before = {name: book.detach().clone() for name, book in constraint.codebooks.items()}
    optimizer.step()
    with torch.no_grad():
        mlp[1].weight.add_(1.0)
    constraint.apply()
    constraint.finalize()
    for name, book in constraint.codebooks.items():
        weight = mlp.get_parameter(name).detach()
        assert torch.equal(weight.unique(), book.detach().unique().to(weight.dtype))
        assert not torch.equal(book, before[name])


def test_a_quantized_parameter_that_the_model_has_no_more_is_named(mlp):
    weights = prunable_weights(mlp)
    constraint = CodebookConstraint(mlp, quantize_weights(weights, all_kept(weights), 2))
    mlp[1] = torch.nn.Linear(64, 25)
    with pytest.raises(ModelError, match=r"a parameter '1\.weight' of shape \[24, 64\], which is quantized"):
        constraint.apply()
