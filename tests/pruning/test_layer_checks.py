"""What a method assumes of a layer is compared with what the layer returns: right, left out, or refused by name."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from prunus.errors import ModelError, NotPrunedWarning
from prunus.pruning.layer_checks import why_zeros_may_not_hold
from prunus.pruning.obs.diagonals import DIAGONALS
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from objectives import sparse_gpt


class Standardized(nn.Conv2d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(x, (self.weight - mean) / (var + 1e-6).sqrt(), self.bias)


class StandardizedByConvForward(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Centered(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class Scaled(nn.Linear):
    """Zeros stay zero, but the weight is not what is multiplied with."""

    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(), self.bias)


class SamePadding(nn.Conv2d):
    def forward(self, x):
        x = F.pad(x, (1, 2, 1, 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Shifting(nn.Conv1d):
    """Pads on one side only: of the shape that the type gives, with other values."""

    def forward(self, x):
        return F.conv1d(F.pad(x, (2, 0)), self.weight, self.bias)


class InPlace(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp_(min=0))


class Tuple(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


class Same(nn.Linear):
    """A forward of its own that does what its type does."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def hooked(layer):
    layer.register_forward_hook(lambda module, fixed, output: output * 1.5)
    return layer


def patched(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 2
    return layer


def kept_by_hook(layer):
    layer.register_forward_hook(lambda module, fixed, output: None)
    return layer


def given_twice_as_much(layer):
    layer.register_forward_pre_hook(lambda module, fixed: (2 * fixed[0],))
    return layer


IMAGES, ROWS, SEQUENCES = (12, 4, 8, 8), (12, 6), (12, 4, 9)
ZEROS_DO_NOT_HOLD = {
    "standardized": (lambda: Standardized(4, 4, 3), IMAGES),
    "standardized depthwise": (lambda: Standardized(4, 4, 3, groups=4), IMAGES),
    "standardized patches": (lambda: Standardized(4, 4, 4, stride=4, groups=4), IMAGES),
    "standardized in _conv_forward": (lambda: StandardizedByConvForward(4, 4, 3), IMAGES),
    "centered": (lambda: Centered(6, 5), ROWS),
}
ANOTHER_OUTPUT = {
    "scaled": (lambda: Scaled(6, 5), ROWS),
    "same padding": (lambda: SamePadding(4, 4, 5, stride=2, groups=4), IMAGES),
    "padding on one side": (lambda: Shifting(4, 4, 3, padding=1), SEQUENCES),
    "input changed in place": (lambda: InPlace(6, 5), ROWS),
    "forward hook": (lambda: hooked(nn.Linear(6, 5)), ROWS),
    "forward of the instance": (lambda: patched(nn.Linear(6, 5)), ROWS),
    "output in a tuple": (lambda: Tuple(6, 5), ROWS),
}
RIGHT = {
    "own forward": (lambda: Same(6, 5), ROWS),
    "hook that changes nothing": (lambda: kept_by_hook(nn.Linear(6, 5)), ROWS),
    "pre-hook": (lambda: given_twice_as_much(nn.Linear(6, 5)), ROWS),
    "circular": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), IMAGES),
    "reflect, dilated, strided, grouped": (
        lambda: nn.Conv2d(4, 6, 3, 2, 2, 2, 2, padding_mode="reflect"),
        IMAGES,
    ),
    "same": (lambda: nn.Conv1d(4, 4, 4, padding="same"), SEQUENCES),
    "large bias": (lambda: large_bias(nn.Linear(6, 5)), ROWS),
}


def large_bias(layer):
    layer.bias.data.fill_(1e5)
    return layer


def made(kinds, kind):
    torch.manual_seed(0)
    make, shape = kinds[kind]
    return nn.Sequential(make()), torch.randn(shape)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", RIGHT)
def test_predicted_error_is_that_of_the_layer_where_it_is_accepted(kind):
    model, x = made(RIGHT, kind)
    weights = {"0.weight": prunable_weights(model)["0.weight"].detach()}
    actual = layer_hessians(model, weights, x)["0.weight"]
    changed = copy.deepcopy(model).double()
    change = torch.randn(weights["0.weight"].shape)
    changed[0].weight.data += change
    with torch.no_grad():
        true = (changed(x.double()) - model.double()(x.double())).square().sum() / len(x)
    assert actual.error(change) == pytest.approx(float(true), rel=1e-4)


@pytest.mark.parametrize("kind", [*ANOTHER_OUTPUT, *ZEROS_DO_NOT_HOLD])
@pytest.mark.parametrize("method", ["layer_hessians", "exact_obs", "sparse_gpt"])
def test_layer_that_returns_something_else_is_refused_by_name(kind, method):
    model, x = made(ANOTHER_OUTPUT | ZEROS_DO_NOT_HOLD, kind)
    weights = {"0.weight": model[0].weight.detach()}
    calls = {
        "layer_hessians": lambda: layer_hessians(model, weights, x),
        "exact_obs": lambda: prune_in_steps(ExactObs().examiner(model, x), weights, 0.5, SCOPES["layer"]),
        "sparse_gpt": lambda: sparse_gpt(model, x)(weights, 0.5, SCOPES["layer"]),
    }
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ModelError, match=r"layer of '0\.weight'.*exclude '0\.weight'"):
        calls[method]()
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks


class Reused(nn.Module):
    """Its first layer is called; `reuse(first, x)`, of the layer's output x, may use the weight once more."""

    def __init__(self, reuse):
        super().__init__()
        self.first, self.last, self.reuse = nn.Linear(6, 6), nn.Linear(6, 3), reuse

    def forward(self, x):
        return {"logits": self.last(self.reuse(self.first, self.first(x).relu())), "other": [x]}


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("requires_grad", [True, False])
def test_weight_that_is_used_outside_of_its_layer_is_refused_by_layerwise_methods(requires_grad):
    torch.manual_seed(0)
    x = torch.randn(20, 6)
    shared = {
        "tied decoder": lambda first, x: F.linear(x, first.weight.t()),
        "sum": lambda first, x: x + first.weight.sum(),
    }
    alone = {"called twice": lambda first, x: first(x), "bias": lambda first, x: x + first.bias}
    for kind, reuse in (shared | alone).items():
        model = Reused(reuse).requires_grad_(requires_grad)
        weights = prunable_weights(model)
        calls = [
            lambda model, weights: layer_hessians(model, weights, x),
            lambda model, weights: prune_in_steps(
                ExactObs().examiner(model, x), weights, 0.5, SCOPES["layer"]
            ),
            lambda model, weights: sparse_gpt(model, x)(weights, 0.5, SCOPES["layer"]),
        ]
        for call in calls:
            if kind in shared:
                with pytest.raises(
                    ModelError, match=r"Expected 'first\.weight' to be used by its layer alone"
                ):
                    call(model, weights)
                call(model, {"last.weight": weights["last.weight"]})
            else:
                call(model, weights)
        assert all(p.requires_grad == requires_grad and p.grad is None for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ZEROS_DO_NOT_HOLD)
def test_weight_whose_zeros_do_not_hold_is_left_out_under_every_method(kind):
    layer = ZEROS_DO_NOT_HOLD[kind][0]()
    model = nn.Sequential(layer, nn.Linear(3, 2))
    with pytest.warns(NotPrunedWarning, match=rf"0\.weight \(the forward of {type(layer).__name__}"):
        assert list(prunable_weights(model)) == ["1.weight"]


@pytest.mark.parametrize("kind", [kind for kind in ANOTHER_OUTPUT if kind != "output in a tuple"])
def test_weight_whose_zeros_hold_is_pruned_by_magnitude(kind):
    """Where all but the first input of each row are pruned, the layer does not depend on the others any more."""
    model, x = made(ANOTHER_OUTPUT, kind)
    weight = prunable_weights(model)["0.weight"]
    channels = 0 if weight.shape[1] == 1 else 1  # of a depthwise kernel, all
    weight.data[:, channels:] = 0.0
    other = x.clone()
    other[:, channels:] = torch.rand_like(x[:, channels:])
    assert torch.equal(model(x.clone()), model(other))


def test_trial_of_a_forward_changes_nothing():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return F.linear(x + 0 * torch.rand(()), self.weight, self.bias)

    layer = Counting().train()
    before, state = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    assert why_zeros_may_not_hold(layer) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.training


def test_rounding_is_no_difference_where_products_cancel():
    """A filter without a mean, of inputs with a large mean: its outputs are small beside their summands."""
    layer = nn.Conv1d(1, 1, 64, bias=False)
    torch.manual_seed(0)
    layer.weight.data -= layer.weight.mean()
    x = 1e4 + torch.randn(8, 1, 256)
    assert layer_hessians(layer, {"weight": layer.weight.detach()}, x)["weight"].num_vectors == 8 * 193


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_float_types_are_compared_at_their_own_precision(dtype):
    model, x = (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype),
        torch.randn(40, 6, dtype=dtype),
    )
    assert list(layer_hessians(model, prunable_weights(model), x)) == ["0.weight", "2.weight"]


# --- the recursion of OBD ---------------------------------------------------------------------------------------


def curvature(model, x, names):
    weights = {name: model.get_parameter(name) for name in names}
    labels = torch.zeros(len(x), dtype=torch.int64)
    return DIAGONALS["levenberg_marquardt"](make_objective(model, weights, x, labels))


class ScaledOutputs(nn.Module):
    def forward(self, x):
        return x * 1.5


def test_recursion_refuses_layers_with_hooks_and_follows_hooks_of_models():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3))

    x = torch.randn(10, 6)
    assert set(curvature(network(), x, ["0.0.weight"])) == {"0.0.weight"}
    layer = network()
    hooked(layer[0][0])
    with pytest.raises(ModelError, match=r"no rule for 'linear' of '0\.0'"):
        curvature(layer, x, ["0.0.weight"])
    scaled = nn.Sequential(*network(), ScaledOutputs())
    expected = curvature(scaled, x, ["0.0.weight"])["0.0.weight"]
    torch.testing.assert_close(curvature(hooked(network()), x, ["0.0.weight"])["0.0.weight"], expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, parametrizations.weight_norm, parametrizations.orthogonal]
)
def test_computed_weight_cannot_be_set(norm):
    model = nn.Sequential(norm(nn.Linear(6, 6)))
    x = torch.randn(10, 6)
    with pytest.raises(ModelError, match=r"0\.weight|copied"):
        prune_in_steps(
            ExactObs().examiner(model, x), {"0.weight": model[0].weight.detach()}, 0.5, SCOPES["layer"]
        )
    assert parametrize.is_parametrized(model[0]) or hasattr(model[0], "weight_g")
