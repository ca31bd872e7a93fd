"""Verification finds what zeros, NaN or integer outputs would hide, and refuses optimizers of other models."""

import copy
import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import DensityError, ModelError, PrunusError


class Net(nn.Module):
    """Two layers, and a function of both that depends on the number of channels."""

    def __init__(self, output):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.output = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False), output

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.output(self, h)


def scaled(net, h):
    return net.b(h) / h.shape[1]


def integers(net, h):
    return (1000 * net.b(h) / h.shape[1]).long()


def beside_nan(net, h):
    y = net.b(h)
    return y, torch.cat([y / h.shape[1], torch.full_like(y, torch.nan)], 1)


@pytest.mark.parametrize("output", [scaled, integers, beside_nan])
@pytest.mark.parametrize("make_inputs", [torch.zeros, torch.randn])
def test_a_function_of_the_number_of_channels_is_refused(output, make_inputs):
    model = Net(output)
    before = copy.deepcopy(model.state_dict())
    try:
        plan = prunus.slim(model, make_inputs(2, 6), density=0.5)
    except ModelError:
        pass  # the analysis refuses it
    else:
        with pytest.raises(ModelError, match="removed and with"):
            plan.apply()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Returns(nn.Module):
    """Returns something made of its last tensor."""

    def __init__(self, output):
        super().__init__()
        self.first, self.second, self.output = nn.Linear(4, 8), nn.Linear(8, 3), output

    def forward(self, x):
        return self.output(self.second(self.first(x).relu()))


Pair = namedtuple("Pair", ["logits", "mean"])


@dataclass
class Logits:
    logits: torch.Tensor


USABLE = {
    "nested": lambda y: {"logits": [y, (y.mean(), 3)], "name": "x", "nothing": None},
    "named tuple": lambda y: Pair(y, y.mean()),
    "detached": lambda y: y.detach(),
    "integers": lambda y: y.argmax(1),
}
UNUSABLE = {
    "none": (lambda y: None, "got no tensor"),
    "constant": (lambda y: torch.zeros(3), r"got tensors of shapes \[\(3,\)\]"),
    "dataclass": (Logits, "torch.export.register_dataclass"),
    "numpy": (lambda y: y.detach().numpy(), "replace NumPy by functions of torch"),
}


@pytest.mark.parametrize("kind", USABLE)
def test_nested_and_detached_outputs_are_followed(kind):
    """Torch-Pruning #286, #147: it follows gradients from the output, which these outputs do not have."""
    model = Returns(USABLE[kind])
    prunus.slim(model, torch.randn(2, 4), density=0.5).apply()
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 4), (4,), (3, 4), (3,)]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_outputs_that_verify_nothing_are_refused(kind):
    output, message = UNUSABLE[kind]
    with pytest.raises(ModelError, match=message):
        prunus.slim(Returns(output), torch.randn(2, 4), density=0.5)


def test_infinite_outputs_are_equal_outputs():
    def masked(net, h):
        return net.b(h).masked_fill(torch.tensor([True, False, False]), -torch.inf)

    model = Net(masked)
    prunus.slim(model, torch.randn(2, 6), density=0.5).apply()
    assert model.a.weight.shape == (4, 6)


def test_normalized_channels_are_refused_by_operator():
    model = Net(lambda net, h: net.b(nn.functional.normalize(h, dim=1)))
    with pytest.raises(
        ModelError, match=r"div \(.*\): the channels are combined with a dimension of fixed length"
    ):
        prunus.slim(model, torch.randn(2, 6), density=0.5)


def test_optimizer_and_masks_of_another_model_are_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    other = copy.deepcopy(model)
    keep = {"0.weight": torch.ones(8, 6, dtype=torch.bool)}
    for arguments, message in (
        ({"optimizer": torch.optim.SGD(other.parameters(), 0.1)}, "steps none of its parameters"),
        ({"masks": prunus.Masks(other, keep)}, "those of another model"),
        ({"masks": keep}, "got a dict"),
    ):
        plan = prunus.slim(model, torch.randn(2, 6), density=0.5)
        with pytest.raises(ModelError, match=message):
            plan.apply(**arguments)
        assert model[0].weight.shape == (8, 6)


def test_state_of_an_optimizer_that_is_not_by_parameter_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    plan = prunus.slim(model, torch.randn(2, 6), density=0.5)
    with pytest.raises(ModelError, match="an optimizer with a state for each parameter"):
        plan.apply(optimizer)
    assert model[0].weight.shape == (8, 6)


def test_a_budget_function_returns_a_number():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for value in (float("nan"), None):
        with pytest.raises(DensityError, match="Expected a number"):
            prunus.slim(model, torch.randn(2, 6), budget=(lambda smaller, value=value: value, 3.0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"macs": "0.5"},
        {"density": torch.tensor([0.5, 0.5])},
        {"density": 0.5, "round_to": 2.5},
        {"density": 0.5, "round_to": "8"},
        {"budget": (lambda smaller: 1.0, None)},
        {"density": 0.5, "criterion": None},
        {"density": 0.5, "exclude": "0"},
    ],
)
def test_arguments_of_another_type_are_refused(arguments):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(PrunusError, match="Expected"):
        prunus.slim(model, torch.randn(2, 6), **arguments)


class Extreme(nn.Module):
    """The smallest magnitude over the channels, which zeros change."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False), nn.Linear(6, 8)

    def forward(self, x):
        h = self.a(x)
        return self.b(h) * torch.linalg.vector_norm(h, ord=-torch.inf, dim=1, keepdim=True)


def test_norm_of_a_negative_order_is_inexact():
    (group,) = prunus.slim(Extreme(), torch.randn(2, 6), density=0.5, allow_inexact=True).groups
    assert not group.exact


class Heads(nn.Module):
    """A view whose size is an attribute."""

    def __init__(self):
        super().__init__()
        self.linear, self.last, self.heads = nn.Linear(12, 12), nn.Linear(12, 3), 4

    def forward(self, x):
        return self.last(self.linear(x).view(-1, self.heads, 3).flatten(1))


class Literals(Heads):
    """Views whose sizes are numbers of the code, which equal an attribute: 2^8 choices, of which none runs."""

    def forward(self, x):
        h = self.linear(x)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        h = h.view(-1, 4, 3).flatten(1)
        return self.last(h)


def test_sizes_that_no_attribute_gives_do_not_count_for_other_modules():
    model = nn.Sequential(Heads(), nn.Linear(3, 12), Literals())
    plan = prunus.slim(model, torch.randn(2, 12), density=0.5)
    assert "0.linear.weight" in {group.name for group in plan.groups}
    assert plan.apply()[0].heads == 2


class ScaledAttention(nn.Module):
    """Attention whose scale is computed from the number of channels of the queries."""

    def __init__(self):
        super().__init__()
        self.e, self.q, self.k = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(16, 12)
        self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.e(x))
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.o((q @ k.mT / math.sqrt(q.size(-1))).softmax(-1) @ v)


@pytest.mark.parametrize("verify", [True, "groups"])
def test_only_the_group_whose_size_is_a_number_is_named(verify):
    torch.manual_seed(0)
    model, x = ScaledAttention(), torch.randn(16, 5, 8)
    plan = prunus.slim(model, x, density=0.5, verify=verify)
    with pytest.raises(
        ModelError, match=r"the channels of q.weight removed .*exclude=\['q.weight'\]"
    ) as raised:
        plan.apply()
    assert "report this error" not in str(raised.value)
    smaller = prunus.slim(model, x, density=0.5, exclude=["q.weight"], verify=verify).apply()
    assert (smaller.q.out_features, smaller.v.out_features) == (12, 8)
