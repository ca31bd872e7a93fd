"""An update is never worse than zeroing, and pruned weights are exactly +0.0."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import NonFiniteError, UpdateRejectedWarning
from prunus.masks import all_kept, apply_masks
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import METHODS, pruning_method, with_options
from prunus.pruning.obs.exact_obs import exact_obs_state
from prunus.pruning.obs.hessian import LayerHessian, layer_hessians
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, parse_scope
from prunus.pruning.statistics import Statistics
from prunus.seeds import make_generator
from prunus.types import Split

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from layers import relative_output_errors
from objectives import sparse_gpt

ROWS, COLUMNS = 8, 48


def ill_conditioned(seed, kind="random", groups=1):
    """Hessians [G, D, D] with eigenvalues from 1 down to 1e-12, and their mean curvature.

    "random" has random eigenvectors; "band" is of inputs that are samples of a band-limited signal, as sound is.
    """
    draw = make_generator(seed, "hessian")
    hessians = []
    for group in range(groups):
        if kind == "band":
            lags = torch.arange(COLUMNS, dtype=torch.float64)
            hessian = torch.sinc((0.2 + 0.1 * seed + 0.05 * group) * (lags[:, None] - lags))
            hessian += 1e-12 * torch.eye(COLUMNS, dtype=torch.float64)
        else:
            basis = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=draw, dtype=torch.float64)).Q
            hessian = (basis * torch.logspace(0, -12, COLUMNS, dtype=torch.float64)) @ basis.T
        hessians.append((hessian + hessian.T) / 2)
    stacked = torch.stack(hessians)
    return stacked, float(stacked.diagonal(dim1=1, dim2=2).mean())


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.filterwarnings("ignore::prunus.errors.EmptyLayerWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("damping", [1e-2, 1e-6, 1e-12])
@pytest.mark.parametrize("kind", ["random", "band"])
@pytest.mark.parametrize(
    ("name", "density"),
    [("layer", 0.5), ("layer", 0.1), ("global", 0.3), ("2:4", 0.5), ("1x4", 0.3), ("4x4", 0.5)],
)
def test_no_update_is_worse_than_zeroing(name, density, kind, damping, dtype):
    scope = parse_scope(name)
    for seed in range(3):
        hessian, mean = ill_conditioned(seed, kind)
        actual = {"weight": LayerHessian(hessian, damping * mean, 100)}
        weights = {"weight": torch.randn(ROWS, COLUMNS, generator=make_generator(seed, "w")).to(dtype)}
        state = exact_obs_state(actual, weights, all_kept(weights), parse_scope(name))
        methods = {
            "sparse_gpt": partial(SparseGpt(mask_block_size=16).prune_layers, actual),
            "obs": partial(prune_in_steps, lambda weights, masks, state=state: state),
        }
        for method, prune in methods.items():
            try:
                done = prune(weights, density, scope)
            except NonFiniteError:  # the message says to use more damping
                if damping > 1e-10:
                    raise
                continue
            updated, zeroed = (
                actual["weight"].error(after["weight"].double() - weights["weight"].double())
                for after in (done.weights, apply_masks(weights, done.masks))
            )
            assert updated <= zeroed, (method, seed)
            assert not done.weights["weight"][~done.masks["weight"]].any()


def test_each_group_of_a_convolution_is_no_worse_than_zeroed():
    hessian, mean = ill_conditioned(0, groups=3)
    actual = {"w": LayerHessian(hessian, 1e-8 * mean, 100)}
    weights = {"w": torch.randn(12, COLUMNS, generator=make_generator(0, "w"))}
    with pytest.warns(UpdateRejectedWarning, match="SparseGPT .* in 'w'"):
        done = SparseGpt().prune_layers(actual, weights, 0.1, SCOPES["layer"])
    updated, zeroed = (
        actual["w"].row_errors(after["w"].double() - weights["w"].double()).sum(1)
        for after in (done.weights, apply_masks(weights, done.masks))
    )
    assert (updated <= zeroed).all()


def test_sparse_gpt_of_correlated_sound_is_better_than_zeroing():
    """Sums of sines, under a filter bank: the samples of a window are nearly functions of each other."""
    draw = make_generator(0, "sound")
    time = torch.arange(400.0)
    f, phase = (torch.rand(40, 6, 1, generator=draw) for _ in range(2))
    sound = torch.sin(6.28 * (0.003 + 0.2 * f) * time + 6.28 * phase).sum(1, keepdim=True)
    sound += 0.01 * torch.randn(sound.shape, generator=draw)
    k, tau = torch.arange(33.0)[:, None], torch.arange(64.0)
    filters = torch.cat([torch.cos(6.2832 * k * tau / 64), torch.sin(6.2832 * k * tau / 64)])
    net = nn.Sequential(nn.Conv1d(1, 66, 64, stride=32, bias=False))
    net[0].weight.data = (filters * torch.hann_window(64))[:, None]
    weights = {"0.weight": net[0].weight.detach()}
    with pytest.warns(UpdateRejectedWarning, match=r"'0\.weight', whose inputs are strongly correlated"):
        done = sparse_gpt(net, sound)(weights, 0.5, SCOPES["layer"])
    actual = layer_hessians(net, weights, sound)
    zeroed = relative_output_errors(actual, weights, apply_masks(weights, done.masks))["0.weight"]
    assert relative_output_errors(actual, weights, done.weights)["0.weight"] < zeroed / 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def examples(n=60):
    draw = make_generator(0, "examples")
    return Split(torch.randn(n, 16, generator=draw), torch.randint(0, 4, (n,), generator=draw))


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["fisher", "full_obs"])
@pytest.mark.parametrize("damping", [1e-2, 1e-5])
def test_update_by_the_loss_never_raises_the_loss_above_that_of_zeroing(name, damping):
    model, split = network(), examples()
    weights = {n: w.detach() for n, w in prunable_weights(model).items()}
    method = with_options(METHODS[name], damping=damping)
    for density in (0.7, 0.3):
        done = method.prune(model, weights, density, "layer", split)
        target = make_objective(model, weights, split.inputs, split.labels)
        assert target.error(done.weights) <= target.error(apply_masks(weights, done.masks)) * (1 + 1e-6)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", [*METHODS, "snip", "gradient", "grasp", "synflow"])
def test_pruned_weight_is_plus_zero_and_stays_pruned(name):
    model, split = network(), examples()
    weights = {n: -w.detach().abs() - 0.1 for n, w in prunable_weights(model).items()}
    within = SCOPES["layer"].select(CRITERIA["magnitude"](Statistics(weights)), 0.75)
    weights = apply_masks(weights, within)
    done = pruning_method(name).prune(model, weights, 0.5, "layer", split, within=within)
    for key, mask in done.masks.items():
        assert not (mask & ~within[key]).any()
        assert not done.weights[key][~mask].view(torch.int32).any()  # of -0.0 the sign bit is set
        assert torch.isfinite(done.weights[key]).all()


def test_pruned_weights_are_plus_zero_whatever_their_values_were():
    masked = apply_masks(
        {"w": torch.tensor([float("inf"), float("nan"), -1.0, 2.0])},
        {"w": torch.tensor([False, False, False, True])},
    )
    assert (
        masked["w"].view(torch.int32).tolist()
        == torch.tensor([0.0, 0.0, 0.0, 2.0]).view(torch.int32).tolist()
    )


@pytest.mark.parametrize("name", [*SCOPES, "2x2"])
def test_scores_that_are_not_finite_are_named(name):
    scores = {"a": torch.rand(8, 8), "b": torch.rand(8, 8)}
    scores["b"][3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="'b'"):
        parse_scope(name).select(scores, 0.5)


class WithBuffer(nn.Module):
    """A layer that changes a buffer in its forward pass, in one of several ways."""

    def __init__(self, change):
        super().__init__()
        self.linear, self.change = nn.Linear(4, 3), change
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.linear(x)
        self.change(self, y)
        return y


def rebind(module, y):
    module.mean = module.mean + y.mean(0)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("method", ["fisher", "obd_hutchinson", "snip", "grasp"])
@pytest.mark.parametrize(
    "change",
    [
        lambda module, y: module.mean.add_(y.detach().mean(0)),
        lambda module, y: module.mean.add_(y.mean(0)),
        lambda module, y: module.mean.add_(1),
        rebind,
    ],
)
def test_forward_passes_that_change_buffers_are_differentiated(method, change):
    generator = make_generator(0, "buffers")
    examples = torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)
    model, plain = WithBuffer(change), WithBuffer(lambda module, y: None)
    plain.load_state_dict(model.state_dict())
    masks = pruning_method(method).prune(model, prunable_weights(model), 0.5, "layer", examples).masks
    expected = pruning_method(method).prune(plain, prunable_weights(plain), 0.5, "layer", examples).masks
    assert torch.equal(masks["linear.weight"], expected["linear.weight"])
    assert not model.mean.any()
