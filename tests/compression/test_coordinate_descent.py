"""Codes by coordinate descent: the error of the output falls to a minimum that no single code can lower."""

import pytest
import torch
from torch import nn

from prunus.compression.quantization import coordinate_descent, quantize_weights
from prunus.compression.quantization.coordinate_descent import minimize_output_error
from prunus.errors import NoEffectWarning
from prunus.masks import apply_masks
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.scopes import Layer


def layer(module, shape, seed=0):
    """The weight of a layer, a mask of half of it, its codes of 2 bits, and its Hessian on correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator)
    inputs = (torch.randn(shape, generator=generator) @ mixing).relu()
    weights = {"weight": module.weight.detach()}
    masks = Layer().select({"weight": weights["weight"].abs()}, 0.5)
    hessians = layer_hessians(module, weights, inputs)
    return weights, masks, quantize_weights(apply_masks(weights, masks), masks, 2), hessians


LAYERS = {
    "linear": (nn.Linear(70, 12, bias=False), (200, 70)),
    "convolution": (nn.Conv2d(3, 8, 3, bias=False), (8, 3, 9, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (8, 4, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_output_error_falls_and_pruned_weights_stay_zero(name):
    weights, masks, nearest, hessians = layer(*LAYERS[name])
    result = minimize_output_error(nearest, weights, hessians)["weight"]
    before, after = (
        hessians["weight"].damped_error(tensor.dense() - weights["weight"])
        for tensor in (nearest["weight"], result)
    )
    assert after < 0.75 * before
    assert torch.equal(result.dense() != 0, masks["weight"])
    assert len(result.codebook) == 4
    assert torch.equal(result.codebook, result.codebook.sort().values)
    assert len(result.dense()[masks["weight"]].unique()) <= 4


@pytest.mark.parametrize("name", LAYERS)
def test_no_other_code_and_no_other_codebook_is_better(name, monkeypatch):
    monkeypatch.setattr(coordinate_descent, "NUM_SWEEPS", 100)
    weights, _, nearest, hessians = layer(*LAYERS[name])
    result, hessian = minimize_output_error(nearest, weights, hessians)["weight"], hessians["weight"]
    error = hessian.damped_error(result.dense() - weights["weight"])
    for place in range(0, len(result.codes), 7):
        for code in range(4):
            flat = result.dense().flatten()
            flat[result.indices[place]] = result.codebook[code]
            changed = flat.reshape(result.shape) - weights["weight"]
            assert hessian.damped_error(changed) > error * (1 - 1e-5)
    for code in range(4):
        for factor in (0.99, 1.01):
            codebook = result.codebook.clone()
            codebook[code] *= factor
            flat = torch.zeros(result.shape.numel()).scatter(0, result.indices, codebook[result.codes])
            assert hessian.damped_error(flat.reshape(result.shape) - weights["weight"]) > error * (1 - 1e-6)


def test_same_arguments_give_the_same_bits():
    weights, _, nearest, hessians = layer(*LAYERS["linear"])
    first, second = (minimize_output_error(nearest, weights, hessians)["weight"] for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.codebook.view(torch.int32), second.codebook.view(torch.int32))


def test_layers_of_one_value_and_of_none_are_unchanged():
    weights, masks, _, hessians = layer(*LAYERS["linear"])
    empty = quantize_weights(weights, {"weight": masks["weight"] & False}, 2)
    assert not minimize_output_error(empty, weights, hessians)["weight"].dense().any()
    with pytest.warns(NoEffectWarning, match="1 distinct"):
        ones = quantize_weights({"weight": torch.ones(12, 70)}, masks, 2)
    assert torch.equal(
        minimize_output_error(ones, weights, hessians)["weight"].dense(), masks["weight"].float()
    )
