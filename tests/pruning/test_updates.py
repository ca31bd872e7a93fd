"""Numerics of updates: never worse than zeroing, exactly +0.0 where pruned, and progress of what takes long."""

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ModelError, NonFiniteError, StatisticsError, UpdateRejectedWarning
from prunus.masks import all_kept, apply_masks
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.layerwise import (
    LayerHessian,
    exact_obs,
    layer_hessians,
    relative_output_errors,
    sparse_gpt,
    sparse_gpt_from_hessians,
)
from prunus.pruning.layerwise.exact_obs import ExactObsState, SparsityPattern
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.pruners import GRADIENT_PRUNERS, PRUNERS, get_criterion
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import SCOPES, get_scope
from prunus.pruning.second_order import DIAGONALS, fisher, make_objective, obs, prune_weights
from prunus.pruning.sensitivity import sensitivity
from prunus.seeds import make_generator
from prunus.types import Split, Statistics

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
    scope = get_scope(name)
    for seed in range(3):
        hessian, mean = ill_conditioned(seed, kind)
        found = {"weight": LayerHessian(hessian, damping * mean, 100, 100)}
        weights = {"weight": torch.randn(ROWS, COLUMNS, generator=make_generator(seed, "w")).to(dtype)}
        surgeon = ExactObsState(weights, all_kept(weights), found, weights, SparsityPattern.of(name))
        methods = {
            "sparse_gpt": sparse_gpt_from_hessians(found, select=None if name == "global" else 16),
            "obs": partial(prune_weights, lambda weights, masks, surgeon=surgeon: surgeon),
        }
        for method, prune in methods.items():
            try:
                done = prune(weights, density, scope)
            except NonFiniteError:  # more damping is asked for
                if damping > 1e-10:
                    raise
                continue
            updated, zeroed = (
                found["weight"].error(after["weight"].double() - weights["weight"].double())
                for after in (done.weights, apply_masks(weights, done.masks))
            )
            assert updated <= zeroed, (method, seed)
            assert not done.weights["weight"][~done.masks["weight"]].any()


def test_each_group_of_a_convolution_is_no_worse_than_zeroed():
    hessian, mean = ill_conditioned(0, groups=3)
    found = {"w": LayerHessian(hessian, 1e-8 * mean, 100, 100)}
    weights = {"w": torch.randn(12, COLUMNS, generator=make_generator(0, "w"))}
    with pytest.warns(UpdateRejectedWarning, match="SparseGPT .* in 'w'"):
        done = sparse_gpt_from_hessians(found)(weights, 0.1, SCOPES["layer"])
    updated, zeroed = (
        found["w"].row_errors(after["w"].double() - weights["w"].double()).sum(1)
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
    found = layer_hessians(net, weights, sound)
    zeroed = relative_output_errors(found, weights, apply_masks(weights, done.masks))["0.weight"]
    assert relative_output_errors(found, weights, done.weights)["0.weight"] < zeroed / 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def examples(n=60):
    draw = make_generator(0, "examples")
    return Split(torch.randn(n, 16, generator=draw), torch.randint(0, 4, (n,), generator=draw))


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["fisher", "full_obs"])
@pytest.mark.parametrize("damping", [1e-2, 1e-5])
def test_an_update_by_the_loss_never_raises_the_loss_above_that_of_zeroing(name, damping):
    model, split = network(), examples()
    weights = {n: w.detach() for n, w in prunable_weights(model).items()}
    pruner = replace(PRUNERS[name], damping=damping)
    for density in (0.7, 0.3):
        done = pruner.on(model, split, 0)(weights, density, SCOPES["layer"])
        target = make_objective(model, weights, split.inputs, split.labels)
        assert target.error(done.weights) <= target.error(apply_masks(weights, done.masks)) * (1 + 1e-6)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", [*PRUNERS, *GRADIENT_PRUNERS])
def test_a_pruned_weight_is_plus_zero_and_stays_pruned(name):
    model, split = network(), examples()
    weights = {n: -w.detach().abs() - 0.1 for n, w in prunable_weights(model).items()}
    within = SCOPES["layer"](CRITERIA["magnitude"](Statistics(weights)), 0.75)
    weights = apply_masks(weights, within)
    done = get_criterion(name).on(model, split, 0)(weights, 0.5, SCOPES["layer"], within=within)
    for key, mask in done.masks.items():
        assert not (mask & ~within[key]).any()
        assert not done.weights[key][~mask].view(torch.int32).any()  # of -0.0 the sign bit is set
        assert torch.isfinite(done.weights[key]).all()


def test_masks_win_over_infinity_and_minus_zero():
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
        get_scope(name)(scores, 0.5)


# --- progress ---------------------------------------------------------------------------------------------------


def long_work():
    model, split = network(), examples()
    x, y = split.inputs, split.labels
    weights = {n: w.detach() for n, w in prunable_weights(model).items()}
    layer, asked = SCOPES["layer"], make_objective(model, weights, x, y)
    normed = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))
    calls = {
        "layer_hessians": lambda p: layer_hessians(model, weights, x, batch_size=7, progress=p),
        "exact_obs": lambda p: prune_weights(exact_obs(model, x, progress=p), weights, 0.5, layer),
        "sparse_gpt": lambda p: sparse_gpt(model, x, progress=p)(weights, 0.5, layer),
        "sparse_gpt at once": lambda p: sparse_gpt(model, x, select=None, progress=p)(weights, 0.5, layer),
        "fisher": lambda p: fisher(asked, batch=7, progress=p)(weights, all_kept(weights)),
        "full_obs": lambda p: obs(asked, damping=0.1, progress=p)(weights, all_kept(weights)),
        "sensitivity": lambda p: sensitivity(model, split, densities=(1.0, 0.5), progress=p),
        "recalibrate": lambda p: recalibrate_batchnorm(normed, x, 7, progress=p),
    }
    for name, diagonal in DIAGONALS.items():
        calls[name] = lambda p, diagonal=diagonal: diagonal(asked, progress=p)
    return calls


class Interrupted(BaseException):
    """As KeyboardInterrupt, which is no Exception."""


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", long_work())
def test_long_work_reports_its_steps_to_the_last_and_can_be_ended(name):
    steps = {}
    long_work()[name](lambda what, done, total: steps.setdefault((what, total), []).append(done))
    assert steps
    for (_, total), done in steps.items():
        assert done[-1] == total
        assert all(one < other for one, other in pairwise(done)), done

    def interrupt(what, done, total):
        raise Interrupted

    with pytest.raises(Interrupted):
        long_work()[name](interrupt)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", list(PRUNERS))
def test_every_pruner_reports(name):
    model, split, steps = network(), examples(), []
    weights = prunable_weights(model)
    PRUNERS[name].on(model, split, 0, lambda *step: steps.append(step))(weights, 0.5, SCOPES["layer"])
    assert steps


# --- what is given ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs", [{"x": torch.ones(3, 16)}, [torch.ones(3, 16)], torch.ones(3, 16, device="meta")]
)
def test_calibration_inputs_that_are_no_tensor_with_values_are_refused(inputs):
    model = network()
    weights = {n: w.detach() for n, w in prunable_weights(model).items()}
    labels = torch.zeros(3, dtype=torch.int64)
    calls = [
        lambda: layer_hessians(model, weights, inputs),
        lambda: recalibrate_batchnorm(model, inputs),
        lambda: make_objective(model, weights, inputs, labels),
        lambda: sparse_gpt(model, inputs)(weights, 0.5, SCOPES["layer"]),
    ]
    for call in calls:
        with pytest.raises(StatisticsError, match="Expected calibration inputs"):
            call()


def test_a_forward_that_fails_in_its_own_way_is_a_named_error():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, batch):
            return self.layer(batch["pixels"] if isinstance(batch, dict) else batch.pixels)

    model = Needs()
    with pytest.raises(StatisticsError, match=r"does not take calibration inputs.*pixels"):
        layer_hessians(model, prunable_weights(model), torch.ones(3, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_scope_takes_every_float_type(dtype):
    weights = prunable_weights(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8)).to(dtype))
    scores = CRITERIA["magnitude"](Statistics(weights))
    for name, scope in SCOPES.items():
        masks = scope(scores, 0.5)
        assert sum(int(m.sum()) for m in masks.values()) == sum(m.numel() for m in masks.values()) / 2, name
        assert all(
            t.dtype == dtype for t in apply_masks({n: w.detach() for n, w in weights.items()}, masks).values()
        )


def test_recalibration_takes_layers_that_are_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(input=x)

    x = torch.randn(20, 3) + 5
    model, plain = ByKeyword(), nn.BatchNorm1d(3)
    assert recalibrate_batchnorm(model, x) == recalibrate_batchnorm(plain, x) == 1
    assert torch.equal(model.norm.running_mean, plain.running_mean)


def test_a_model_that_cannot_be_copied_is_refused_by_name():
    model = nn.Sequential(nn.Linear(16, 4))
    model.last_output = model(torch.ones(1, 16))  # a result of a computation
    for call in (
        lambda: sensitivity(model, examples()),
        lambda: prune_weights(
            exact_obs(model, examples().inputs), prunable_weights(model), 0.5, SCOPES["layer"]
        ),
    ):
        with pytest.raises(ModelError, match="Sequential cannot be copied"):
            call()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)


def test_the_progress_of_retraining_with_a_pruner_is_reported():
    steps = []
    split = examples()
    data = prunus.Dataset("toy", split, split, split, tuple("abcd"))
    prunus.prune_and_retrain(
        model := network(),
        prunable_weights(model),
        data,
        [0.5],
        [prunus.Recipe(epochs=0, learning_rate=0.1, batch_size=20)],
        criterion=PRUNERS["obs"],
        scope=SCOPES["layer"],
        progress=lambda *step: steps.append(step),
    )
    assert any("calibration" in what for what, _, _ in steps)
