"""Removing dead neurons keeps the function, the flags and the modes, or is refused; what is not followed is named."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.errors import ModelError
from prunus.masks import all_kept, apply_masks
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.structured.dead_neurons import dead_neurons, remove_dead_neurons, unchecked_layers


class Reader(nn.Module):
    """Reads a bias of another layer, which no trace shows as a connection of the two."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(F.relu(self.first(x))) + self.first.out_features


class Shifted(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + x.mean(1, keepdim=True)


def mlp(activation=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), activation or nn.ReLU(), nn.Linear(16, 3))


def with_dead(model, first="0.weight", last="2.weight"):
    masks = all_kept(prunable_weights(model))
    masks[first][3:6] = False  # no inputs
    masks[last][:, 7:9] = False  # no outputs
    return masks


def masked(model, masks):
    copied = copy.deepcopy(model)
    copied.load_state_dict(apply_masks(dict(copied.state_dict()), masks))
    return copied


def add_one(module, fixed, output):
    return output + 1.0


HOOKS = {
    "layer": lambda model: model[0].register_forward_hook(add_one),
    "activation": lambda model: model[1].register_forward_hook(add_one),
    "next layer": lambda model: model[2].register_forward_pre_hook(lambda module, fixed: (fixed[0] + 1.0,)),
    "model": lambda model: model.register_forward_hook(add_one),
    "whole by its layers": lambda model: model.register_forward_hook(
        lambda module, fixed, output: output + module[0].out_features
    ),
}


@pytest.mark.parametrize("kind", [*HOOKS, "own forward", "reader"])
def test_removal_that_would_change_the_function_is_refused(kind):
    model = Reader() if kind == "reader" else mlp(Shifted() if kind == "own forward" else None)
    names = ("first.weight", "last.weight") if kind == "reader" else ("0.weight", "2.weight")
    if kind in HOOKS:
        HOOKS[kind](model)
    masks = all_kept(prunable_weights(model))
    masks[names[0]][3:5] = False
    masks[names[1]][:, 1:3] = False
    x = torch.randn(20, 8)
    if kind in ("reader", "whole by its layers"):
        with pytest.raises(ModelError, match="Expected the same function"):
            remove_dead_neurons(model, masks, x)
        return
    smaller, _, removed = remove_dead_neurons(model, masks, x)
    torch.testing.assert_close(smaller(x), masked(model, masks)(x))
    assert bool(removed) is (kind != "own forward")


def test_requires_grad_and_modes_are_those_of_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 6, bias=False), nn.ReLU(),
        nn.Linear(6, 3),
    ).train()  # fmt: skip
    model[1].eval().requires_grad_(False)
    model[0].weight.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    masks = all_kept(prunable_weights(model))
    masks["0.weight"][3:6] = False
    masks["4.weight"][:, 7:9] = False
    smaller, _, removed = remove_dead_neurons(model, masks, torch.randn(20, 8))
    assert removed[0].no_outputs == (7, 8)
    assert [m.training for m in smaller.modules()] == [m.training for m in model.modules()]
    flags = {name: p.requires_grad for name, p in smaller.named_parameters()}
    assert flags.pop("4.bias", False) is False  # made for the constants, of a frozen layer
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU6(), nn.Hardtanh(), nn.Softplus(), nn.SELU(), nn.CELU(), nn.Mish(), nn.Hardsigmoid(), nn.LogSigmoid(),
     nn.Softsign(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.1, 2.0)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_activations_are_followed_as_modules_and_as_functions(activation):
    functions = {"Hardsigmoid": "hardsigmoid", "ReLU6": "relu6", "LogSigmoid": "logsigmoid"}

    class AsFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            name = functions.get(type(activation).__name__, type(activation).__name__.lower())
            rest = (0.1, 2.0) if name == "threshold" else ()
            return self.last(getattr(F, name)(self.first(x), *rest))

    x = torch.randn(20, 8)
    for model, names in (
        (mlp(activation), ("0.weight", "2.weight")),
        (AsFunction(), ("first.weight", "last.weight")),
    ):
        masks = with_dead(model, *names)
        smaller, _, removed = remove_dead_neurons(model, masks, x)
        assert [len(neurons.no_inputs) + len(neurons.no_outputs) for neurons in removed] == [5]
        torch.testing.assert_close(smaller(x), masked(model, masks)(x))


def test_layers_that_are_not_followed_are_named_with_the_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.gate, self.last, self.unused = nn.Softmax(1), nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.last(self.gate(self.left(x)) + self.right(x))

    reasons = unchecked_layers(Net(), torch.ones(2, 8))
    assert "softmax" in reasons["left"]
    assert "softmax" in reasons["right"]
    assert "is an output of the model" in reasons["last"]
    assert reasons["unused"] == "the forward does not call it"
    assert reasons.keys() == {"left", "right", "last", "unused"}
    assert unchecked_layers(mlp(), torch.ones(2, 8)).keys() == {"2"}


def test_inputs_that_the_model_does_not_take_are_refused():
    model = mlp()
    for inputs in ({"x": torch.ones(2, 8)}, torch.ones(2, 7), "text"):
        with pytest.raises(ModelError, match="does not take example inputs"):
            remove_dead_neurons(model, with_dead(model), inputs)
        with pytest.raises(ModelError, match="does not take example inputs"):
            dead_neurons(model, with_dead(model), inputs)


def test_masks_of_other_names_are_refused_and_a_compiled_model_has_those_of_the_original():
    model, x = mlp(), torch.ones(1, 8)
    masks = with_dead(model)
    with pytest.raises(ModelError, match="named 'first', but the model has no parameter of that name"):
        dead_neurons(model, {"first": masks["0.weight"]}, x)
    compiled = torch.compile(model, backend="eager")
    assert dead_neurons(compiled, masks, x) == dead_neurons(model, masks, x) != []
    smaller, _, _ = remove_dead_neurons(compiled, masks, x)
    assert smaller[0].out_features == 11
