"""Laws of second-order pruning: diagonals against the true Hessian and against loops, inverses against inversion,
updates against the constrained minimum, and an error by name for what cannot be asked.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian
from torch.nn import functional as F

from prunus.errors import DensityError, ModelError, NonFiniteError, StatisticsError, UnknownNameError
from prunus.models import MODELS
from prunus.models.mlp import ScaledTanh, mlp
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.graph import layer_chain
from prunus.pruning.obs import (
    DIAGONALS,
    LOSSES,
    Objective,
    make_objective,
    obd,
    obs,
    prune_in_steps,
)
from prunus.pruning.obs.diagonals import hutchinson, pooling_weights
from prunus.pruning.obs.full_obs import MAX_WEIGHTS, gauss_newton_factors, inverse_hessian
from prunus.pruning.obs.objective import flatten_weights, unflatten_weights
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.pruning.statistics import Statistics
from prunus.types import Params

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import small
from asking import asked_of, draw

ACTIVATIONS = [
    nn.Tanh(),
    nn.Sigmoid(),
    ScaledTanh(),
    nn.GELU(),
    nn.Softplus(),
    nn.ELU(),
    nn.CELU(0.7),
    nn.SiLU(),
    nn.Hardswish(),
    nn.ReLU(),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
"""torch.func.hessian, by which the tests check, brings it in."""
BAR = 1e-4
"""Relative error against the true diagonal, in float64."""


def true_hessian(asked: Objective) -> Tensor:
    return hessian(lambda w: asked.error(unflatten_weights(w, asked.weights)))(flatten_weights(asked.weights))


def apart(one: Params, other: Params) -> float:
    """The largest relative error of a tensor."""
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max()) for n in other)


def convolved_1d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, padding_mode="replicate"),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.AvgPool1d(3, stride=2, padding=1),
        nn.Conv1d(4, 4, 2, groups=2),
        nn.GELU(),
        nn.MaxPool1d(3, stride=1),
        nn.AdaptiveAvgPool1d(3),
        nn.AdaptiveMaxPool1d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def convolved() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2, groups=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


# Losses


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_has_the_derivatives_it_says(loss):
    outputs = draw(5, 4).requires_grad_()
    targets = draw(5, 4, role="t") if loss == "squared_error" else torch.tensor([0, 1, 2, 3, 1])
    own = LOSSES[loss]
    (slope,) = torch.autograd.grad(own.value(outputs, targets).sum(), outputs)
    torch.testing.assert_close(slope, own.gradient(outputs, targets))
    root = own.hessian_root(outputs, targets)
    for place in range(5):
        full = hessian(lambda o, p=place: own.value(o[None], targets[p : p + 1])[0])(outputs[place])
        torch.testing.assert_close(root[place] @ root[place].T, full)
        torch.testing.assert_close(own.hessian_diagonal(outputs, targets)[place], full.diagonal())


# Diagonals


@pytest.mark.parametrize("loss", LOSSES)
def test_exact_is_the_diagonal_of_the_true_hessian(loss):
    for model, shape in ((mlp(4, 5, 3), (4,)), (convolved(), (2, 7, 7)), (small.Residual(), (64,))):
        asked = asked_of(model, shape, loss, n=3, biases=not isinstance(model, small.Residual))
        if isinstance(model, small.Residual):
            asked = make_objective(asked.model, {"last.weight": asked.weights["last.weight"]}, asked.inputs,
                              asked.targets, loss=loss)  # fmt: skip
        wanted = true_hessian(asked).diagonal()
        found = flatten_weights(DIAGONALS["exact"](asked))
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-10


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_the_recursion_is_exact_with_one_hidden_layer_and_squared_error(activation):
    """Any activation, also after the last layer (eq. 8); Levenberg-Marquardt differs where f'' is not zero."""
    model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3), activation)
    asked = asked_of(model, (4,))
    exact = DIAGONALS["exact"](asked)
    assert apart(DIAGONALS["recursion"](asked), exact) < BAR
    lm = DIAGONALS["levenberg_marquardt"](asked)
    assert all((h >= 0).all() for h in lm.values())
    assert (apart(lm, exact) < BAR) == isinstance(activation, nn.ReLU)


def test_the_recursion_is_exact_through_layers_one_unit_wide():
    """However deep: there are no mixed derivatives to leave out."""
    layers = itertools.chain.from_iterable((nn.Linear(1, 1), nn.Tanh()) for _ in range(5))
    asked = asked_of(nn.Sequential(nn.Linear(3, 1), ScaledTanh(), *layers), (3,))
    assert apart(DIAGONALS["recursion"](asked), DIAGONALS["exact"](asked)) < BAR


def test_cross_entropy_is_exact_in_the_last_layer():
    asked = asked_of(mlp(4, 5, 3), (4,), "cross_entropy")
    found, exact = DIAGONALS["recursion"](asked), DIAGONALS["exact"](asked)
    last = {name: found[name] for name in ("2.weight", "2.bias")}
    assert apart(found, {name: exact[name] for name in last}) < BAR
    assert apart(found, exact) > 0.01, "p (1 - p) leaves out what couples the outputs"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_last_layer_that_shares_weights_is_exact_with_squared_error_alone(loss):
    """A convolution's places are outputs of their own, which cross-entropy couples through the weights they share."""
    asked = asked_of(nn.Sequential(nn.Conv2d(2, 1, 2), nn.Tanh(), nn.Flatten()), (2, 3, 3), loss)
    error = apart(DIAGONALS["recursion"](asked), DIAGONALS["exact"](asked))
    assert error < BAR if loss == "squared_error" else error > 0.01


POOLS_1D = [
    nn.MaxPool1d(2),
    nn.AvgPool1d(2),
    nn.AdaptiveMaxPool1d(3),
    nn.AdaptiveAvgPool1d(3),
    nn.AvgPool1d(2, padding=1, count_include_pad=False),
]


@pytest.mark.parametrize("pool", POOLS_1D, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (4,)], ids=["a channel", "features"])
def test_through_a_pooling_of_one_axis_it_is_exact_with_one_hidden_layer(pool, shape):
    """Windows that share no unit; whether there is an axis of channels, or only units."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), pool, nn.Flatten(), nn.Linear(pool(draw(1, 6)).shape[1], 2)
    )
    asked = asked_of(model, shape)
    assert apart(DIAGONALS["recursion"](asked), DIAGONALS["exact"](asked)) < BAR


@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d])
def test_through_a_padded_convolution_it_is_exact_with_one_hidden_layer(layer, mode):
    """On one place: no weight is shared, and padding puts its input under the whole kernel."""
    model = nn.Sequential(
        layer(2, 3, 2), nn.Tanh(), layer(3, 2, 3, padding=1, padding_mode=mode), nn.Tanh(), nn.Flatten()
    )
    asked = asked_of(model, (2, 2, 2)[: 2 if layer is nn.Conv1d else 3])
    exact = DIAGONALS["exact"](asked)
    assert apart(DIAGONALS["recursion"](asked), exact) < BAR


def test_the_sign_of_the_second_derivative_is_plus():
    """Printed with minus in eq. 7; finite differences of the error decide."""
    asked = asked_of(nn.Sequential(nn.Linear(2, 1), nn.Tanh()), (2,))
    w, step = flatten_weights(asked.weights), 1e-4

    def error(vector: Tensor) -> float:
        return float(asked.error(unflatten_weights(vector, asked.weights)))

    differences = [
        (error(w + step * e) - 2 * error(w) + error(w - step * e)) / step**2 for e in torch.eye(3).double()
    ]
    found = flatten_weights(DIAGONALS["recursion"](asked))
    assert float((found - torch.tensor(differences)).abs().max() / found.abs().max()) < BAR


def slow_recursion(asked: Objective, kernel: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 6 to 8 for conv 1 -> 1 of 2 x 2 on 3 x 3, tanh, linear: in loops over connections."""
    curve, above = torch.zeros_like(kernel), torch.zeros_like(dense)
    for x, d in zip(asked.inputs, asked.targets, strict=True):
        a = torch.zeros(2, 2, dtype=torch.float64)
        for i, j, k, m in itertools.product(range(2), repeat=4):
            a[i, j] += kernel[k, m] * x[0, i + k, j + m]
        y = torch.tanh(a)
        slope = dense @ y.flatten() - d
        above += y.flatten().square()
        for i, j in itertools.product(range(2), repeat=2):
            unit, f1 = 2 * i + j, 1 - y[i, j] ** 2
            f2 = -2 * y[i, j] * f1
            h = f1**2 * dense[:, unit].square().sum() + f2 * (dense[:, unit] * slope).sum()
            for k, m in itertools.product(range(2), repeat=2):
                curve[k, m] += h * x[0, i + k, j + m] ** 2
    return curve / len(asked.inputs), above / len(asked.inputs)


def test_shared_weights_are_summed_over_their_connections():
    """Against the paper's equations in plain loops."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )
    asked = asked_of(model, (1, 3, 3))
    kernel, dense = asked.weights["0.weight"][0, 0], asked.weights["3.weight"]
    curve, above = slow_recursion(asked, kernel, dense)
    found = DIAGONALS["recursion"](asked)
    torch.testing.assert_close(found["0.weight"][0, 0], curve)
    torch.testing.assert_close(found["3.weight"], above)


def unshared(model: nn.Module, asked: Objective) -> Params:
    """The recursion once more, each step as the matrix of its derivatives, squared."""
    total = {name: torch.zeros_like(weight) for name, weight in asked.weights.items()}
    for x, target in zip(asked.inputs, asked.targets, strict=True):
        seen = [x[None]]
        for module in model:
            seen.append(module(seen[-1]).detach())
        slope = asked.loss.gradient(seen[-1], target[None]).flatten()
        curve = asked.loss.hessian_diagonal(seen[-1], target[None]).flatten()
        for place in reversed(range(len(model))):
            module, before = model[place], seen[place]
            matrix = torch.func.jacrev(module)(before).reshape(len(slope), -1)
            for name, parameter in module.named_parameters():
                if f"{place}.{name}" in total:
                    by = torch.func.jacrev(lambda p: torch.func.functional_call(module, {name: p}, (before,)))  # noqa: B023
                    # Every position of a kernel is a connection of its own, and its derivative one input.
                    parts = by(parameter.detach()).reshape(len(curve), -1).square()
                    total[f"{place}.{name}"] += (curve @ parts).reshape(parameter.shape)
            bend = torch.zeros(matrix.shape[1], dtype=torch.float64)
            if matrix.shape[0] == matrix.shape[1] and not list(module.parameters()):
                point = before.detach().clone().requires_grad_()
                (first,) = torch.autograd.grad(module(point).sum(), point, create_graph=True)
                if first.requires_grad:
                    bend = torch.autograd.grad(first.sum(), point)[0].flatten()
            slope, curve = (
                slope @ matrix,
                curve @ matrix.square() + (bend * slope if bend.any() else 0.0),
            )
    return {name: h / len(asked.inputs) for name, h in total.items()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("make", "shape"), [(convolved, (2, 7, 7)), (convolved_1d, (2, 13))], ids=["2-d", "1-d"]
)
def test_through_every_kind_of_layer_it_is_the_recursion_with_whole_matrices(make, shape, loss):
    """BatchNorm, both poolings, padding, groups: against Jacobians that know nothing of layers."""
    asked = asked_of(make(), shape, loss, n=4)
    weights = prunable_weights(asked.model)
    asked = make_objective(asked.model, weights, asked.inputs, asked.targets, loss=loss)
    wanted = unshared(asked.model, asked)
    assert apart(DIAGONALS["recursion"](asked), wanted) < 1e-10


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"kernel_size": 3, "padding": 1}, (6, 6)),
        ({"kernel_size": 3, "padding": "same", "groups": 2}, (4, 3)),
        ({"kernel_size": (3, 4), "padding": 2, "stride": (2, 1), "dilation": (2, 1)}, (5, 3)),
    ],
    ids=["plain", "groups", "wrapped"],
)
def test_inputs_that_padding_repeats_are_one_connection(settings, shape, mode):
    """Eq. 7 with the w_li that the Jacobian has: the sum of a window's places that stand on one input."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 2, padding_mode=mode, **settings), nn.Tanh(),
                          nn.Flatten())  # fmt: skip
    asked = asked_of(model, (1, *shape), n=3)
    weights = prunable_weights(asked.model)
    asked = make_objective(asked.model, weights, asked.inputs, asked.targets, loss="squared_error")
    assert apart(DIAGONALS["recursion"](asked), unshared(asked.model, asked)) < 1e-10


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool1d(3, stride=2, padding=1),
        nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False),
        nn.AvgPool1d(3, ceil_mode=True),
        nn.AdaptiveAvgPool1d(5),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nn.AvgPool2d((2, 3), ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d((5, 3)),
        nn.AdaptiveAvgPool2d(1),
    ],
    ids=str,
)
def test_the_share_of_an_average_is_its_derivative(pool):
    axes = 1 if "1d" in str(pool) else 2
    image = draw(1, 1, 8, 7)[(..., 0) if axes == 1 else ...]
    matrix = torch.func.jacrev(pool)(image).reshape(*pool(image).shape[2:], -1)
    torch.testing.assert_close(matrix.amax(axes), pooling_weights(pool, image, axes))
    assert all(set(row[row > 0].unique().tolist()) for row in matrix.flatten(0, axes - 1))


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("resnet")])
def test_it_walks_the_built_in_models_and_copies_nothing_back(name):
    model = MODELS[name]()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    shape = (3, 32, 32) if name.startswith("conv") else (1, 28, 28)
    asked = make_objective(model, prunable_weights(model), torch.rand(2, *shape), torch.tensor([1, 7]))
    scores = CRITERIA["obd"](
        Statistics(prunable_weights(model), hessian_diagonal=DIAGONALS["levenberg_marquardt"](asked))
    )
    assert all((score >= 0).all() and score.any() for score in scores.values())
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


def test_a_network_with_bridges_is_no_chain():
    model = MODELS["resnet-20"]()
    asked = make_objective(model, prunable_weights(model), torch.rand(2, 3, 32, 32), torch.tensor([1, 7]))
    with pytest.raises(ModelError, match="cannot walk ResNet"):
        DIAGONALS["recursion"](asked)


def test_functions_and_methods_are_walked_as_modules_are():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 2), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.avg_pool2d(torch.tanh(2.0 * self.conv(x) + 0.1), 2)
            return self.fc(nn.functional.max_pool2d(x.relu(), 2).flatten(1))

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(2.0 * x + 0.1)

    listed = nn.Sequential(nn.Conv2d(1, 2, 2), Twice(), nn.AvgPool2d(2), nn.ReLU(), nn.MaxPool2d(2),
                           nn.Flatten(), nn.Linear(2, 3))  # fmt: skip
    one = asked_of(Written(), (1, 5, 5))
    renamed = {"conv": "0", "fc": "6"}
    places = {name: f"{renamed[name.split('.')[0]]}.{name.split('.')[1]}" for name in one.weights}
    listed.load_state_dict({places[name]: weight for name, weight in one.weights.items()})
    other = make_objective(listed.double(), dict(listed.named_parameters()), one.inputs, one.targets,
                      loss="squared_error")  # fmt: skip
    found = DIAGONALS["recursion"](other)
    for name, h in DIAGONALS["recursion"](one).items():
        torch.testing.assert_close(h, found[places[name]])


class Applied(nn.Module):
    """A function between two layers, of whose outputs it makes three or six."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.first = function, nn.Linear(4, 6)
        self.last = nn.Linear(function(torch.ones(1, 1, 6)).shape[2], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x))).flatten(1)


FUNCTIONS = {
    "celu": F.celu,
    "torch.celu": torch.celu,
    "torch.selu": torch.selu,
    "hardswish": F.hardswish,
    "tanhshrink": F.tanhshrink,
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "torch.max_pool1d": lambda x: torch.max_pool1d(x, 2),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 3),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "torch.avg_pool1d": lambda x: torch.avg_pool1d(x, 2),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_through_a_function_it_is_exact_with_one_hidden_layer(name):
    asked = asked_of(Applied(FUNCTIONS[name]), (1, 4))
    assert apart(DIAGONALS["recursion"](asked), DIAGONALS["exact"](asked)) < BAR


def test_hutchinson_converges_and_is_drawn_by_its_seed():
    asked = asked_of(mlp(3, 4, 2), (3,))
    full = true_hessian(asked)
    wanted, spread = full.diagonal(), (full.square().sum(1) - full.diagonal().square()).sqrt()
    estimates = torch.stack(
        [flatten_weights(hutchinson(asked, seed=seed, num_samples=50)) for seed in range(8)]
    )
    assert ((estimates.mean(0) - wanted).abs() <= 5 * spread / 400**0.5 + 1e-12).all()
    # The spread that its card states, over eight estimates of 50 samples.
    ratio = estimates.std(0).square().sum() / (spread.square() / 50).sum()
    assert 0.3 < float(ratio) < 3
    assert torch.equal(flatten_weights(hutchinson(asked, seed=1, num_samples=50)), estimates[1])
    assert not torch.equal(estimates[0], estimates[1])


def test_hutchinson_is_exact_where_weights_do_not_hang_together():
    """The squares of signs are one: of a diagonal Hessian a single sample knows all."""
    model = nn.Linear(4, 1, bias=False).double()
    asked = make_objective(
        model,
        {"weight": draw(1, 4)},
        torch.diag(draw(4, role="one-hot")),
        draw(4, 1, role="t"),
        loss="squared_error",
    )
    for samples in (1, 3):
        assert apart(hutchinson(asked, num_samples=samples), DIAGONALS["exact"](asked)) < 1e-12


def test_a_network_is_asked_in_evaluation_mode_whatever_mode_it_is_in():
    model = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)
    ).double()
    ask = lambda: make_objective(model, prunable_weights(model), draw(6, 3), draw(6, 2), loss="squared_error")  # noqa: E731
    training, quiet = ask(), (model.eval(), ask())[1]
    for diagonal in DIAGONALS.values():
        assert torch.equal(flatten_weights(diagonal(training)), flatten_weights(diagonal(quiet)))
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize("name", DIAGONALS)
def test_a_diagonal_is_the_mean_over_the_examples(name):
    """Of the whole batch as of its halves; in the shape of the weights, and nothing changed."""
    asked = asked_of(mlp(3, 4, 2), (3,), n=8)
    before = {n: w.clone() for n, w in asked.weights.items()}
    whole = DIAGONALS[name](asked)
    halves = [
        DIAGONALS[name](make_objective(asked.model, asked.weights, asked.inputs[part], asked.targets[part],
                                  loss="squared_error"))
        for part in (slice(4), slice(4, 8))
    ]  # fmt: skip
    for n, h in whole.items():
        assert h.shape == before[n].shape
        torch.testing.assert_close(h, (halves[0][n] + halves[1][n]) / 2)
        assert torch.equal(before[n], asked.weights[n])


# What cannot be walked, or asked


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "softmax":
            return self.fc(x).softmax(1)
        if self.kind == "branch":
            return self.fc(x) + x
        if x.sum() > 0:
            return self.fc(x)
        return x


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Odd("softmax"), r"'softmax' \(softmax\)"),
        (Odd("branch"), r"'add' \(add\)"),
        (Odd("control"), "cannot be traced"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), r"'1' \(LayerNorm\)"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), "'1' has no running"),
    ],
    ids=["softmax", "branch", "control", "norm", "batch statistics"],
)
@pytest.mark.parametrize("diagonal", ["recursion", "levenberg_marquardt"])
def test_what_the_recursion_cannot_walk_is_named_with_the_other_choices(model, named, diagonal):
    asked = asked_of(model, (3,), biases=False)
    with pytest.raises(ModelError, match=rf"{named}.*DIAGONALS\['exact'\] or DIAGONALS\['hutchinson'\]"):
        DIAGONALS[diagonal](asked)
    if not isinstance(model, Odd) or model.kind != "control":
        assert apart(DIAGONALS["exact"](asked), hessian_diagonal(asked)) < 1e-8


def hessian_diagonal(asked: Objective) -> Params:
    return unflatten_weights(true_hessian(asked).diagonal(), asked.weights)


def test_a_weight_of_a_norm_is_not_the_recursions():
    with pytest.raises(ModelError, match=r"'1\.weight' belongs to none of the layers"):
        DIAGONALS["recursion"](asked_of(convolved(), (2, 7, 7)))


def test_what_cannot_be_asked_is_said():
    model = mlp(3, 2).double()
    weights, x, d = dict(model.named_parameters()), draw(4, 3), draw(4, 2)
    ask = lambda **given: make_objective(  # noqa: E731
        **{"model": model, "weights": weights, "inputs": x, "targets": d, "loss": "squared_error", **given}
    )
    for bad, error, said in (
        ({"inputs": x[:0], "targets": d[:0]}, StatisticsError, "at least one"),
        ({"targets": d[:2]}, StatisticsError, "as many targets"),
        ({"weights": {}}, StatisticsError, "at least one"),
        ({"targets": d[:, :1]}, StatisticsError, "squared_error"),
        ({"loss": "cross_entropy"}, StatisticsError, "labels|int64"),
        ({"loss": "cross_entropy", "targets": torch.tensor([0, 1, 2, 0])}, StatisticsError, "below C"),
        (
            {"inputs": x[:, :2]},
            StatisticsError,
            r"Sequential does not take calibration inputs of shape \(4, 2\)",
        ),
        ({"inputs": x * torch.nan}, NonFiniteError, "inputs"),
        ({"targets": d * torch.inf}, NonFiniteError, "targets"),
        ({"weights": {n: w * torch.nan for n, w in weights.items()}}, NonFiniteError, "weight"),
        ({"weights": {"9.weight": d}}, ModelError, "9.weight"),
        ({"weights": {"0.weight": d}}, ModelError, "0.weight"),
        ({"loss": "hinge"}, UnknownNameError, "hinge"),
    ):
        with pytest.raises(error, match=said):
            ask(**bad)


class Seldom(nn.Module):
    """Asks its second layer only where an example is above 2."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.seldom = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + (self.seldom(x) if (x > 2).any() else 0.0)


def test_a_layer_that_one_example_of_many_reaches_is_reached():
    model, labels = Seldom(), torch.zeros(100, dtype=torch.int64)
    x = torch.ones(100, 3)
    with pytest.raises(ModelError, match=r"never reached the layer of 'seldom.weight'.*exclude"):
        make_objective(model, prunable_weights(model), x, labels)
    x[99] = 3.0
    assert set(make_objective(model, prunable_weights(model), x, labels).weights) == {
        "always.weight",
        "seldom.weight",
    }


def test_a_label_out_of_range_is_found_beyond_the_first_example():
    with pytest.raises(StatisticsError, match="below C"):
        make_objective(mlp(3, 2), prunable_weights(mlp(3, 2)), torch.ones(2, 3), torch.tensor([0, 5]))


# Optimal Brain PruningState


def outer_hessian(asked: Objective) -> Tensor:
    vectors = torch.cat(list(gauss_newton_factors(asked)))
    return vectors.T @ vectors / len(asked.inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_outer_products_are_the_hessian_where_outputs_are_linear_in_the_weights(loss):
    asked = asked_of(mlp(3, 4), (3,), loss, n=40)
    torch.testing.assert_close(outer_hessian(asked), true_hessian(asked))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("damping", [1e-4, 1e-6])
def test_the_recursive_inverse_is_the_inverse(loss, damping):
    """One vector at a time as the paper has it, blocks, and numpy's; fewer examples than weights: singular."""
    asked = asked_of(mlp(3, 4, 2), (3,), loss, n=7)
    size = len(flatten_weights(asked.weights))
    plain = torch.from_numpy(
        np.linalg.inv((outer_hessian(asked) + damping * torch.eye(size).double()).numpy())
    )
    for block in (1, 5, 1000):
        found = inverse_hessian(gauss_newton_factors(asked), 7, damping, block)
        assert float((found - plain).abs().max() / plain.abs().max()) < 1e-6
    assert torch.linalg.matrix_rank(outer_hessian(asked)) < size


def masks_from(asked: Objective, left: Tensor) -> dict[str, Tensor]:
    return unflatten_weights(left.clone(), asked.weights)


def surgeon_of(asked: Objective, damping: float = 1e-5):
    return FullObs(damping=damping).examiner(asked)(
        asked.weights, masks_from(asked, torch.ones(len(flatten_weights(asked.weights))).bool())
    )


@pytest.mark.parametrize("gone", [[4], [0, 7, 21], list(range(0, 20, 2))], ids=["one", "three", "ten"])
def test_deleting_is_the_constrained_minimum_of_the_quadratic_model(gone):
    """Against the linear system of Lagrange's conditions; the downdated inverse against inverting what is left."""
    asked = asked_of(mlp(3, 4, 2), (3,), n=50)
    before, w = surgeon_of(asked), flatten_weights(asked.weights)
    full = outer_hessian(asked) + 1e-5 * torch.eye(len(w)).double()
    left = torch.ones(len(w), dtype=torch.bool)
    left[gone] = False
    after = before.prune_to(masks_from(asked, left))
    pick = torch.eye(len(w)).double()[gone]
    system = torch.cat(
        [torch.cat([full, pick.T], 1), torch.cat([pick, torch.zeros(len(gone), len(gone)).double()], 1)]
    )
    answer = torch.linalg.solve(system, torch.cat([torch.zeros(len(w)).double(), -w[gone]]))
    move = answer[: len(w)]
    torch.testing.assert_close(flatten_weights(after.weights), w + move, rtol=1e-6, atol=1e-8)
    assert after.predicted_increase == pytest.approx(float(move @ full @ move) / 2, rel=1e-6)
    assert not flatten_weights(after.weights)[gone].any()
    inverse = torch.linalg.inv(full[left][:, left])
    assert float((after.inverse[left][:, left] - inverse).abs().max() / inverse.abs().max()) < 1e-6
    assert not after.inverse[~left].any()
    if len(gone) == 1:
        assert float(flatten_weights(before.scores())[gone[0]]) == pytest.approx(
            after.predicted_increase, rel=1e-9
        )


def test_one_after_the_other_is_all_at_once():
    """Of the same look: the quadratic model does not know in what order weights went."""
    asked = asked_of(mlp(3, 4, 2), (3,), n=50)
    left = torch.ones(26, dtype=torch.bool)
    stepwise = start = surgeon_of(asked)
    for place in (3, 11, 20):
        left[place] = False
        stepwise = stepwise.prune_to(masks_from(asked, left))
    at_once = start.prune_to(masks_from(asked, left))
    torch.testing.assert_close(
        flatten_weights(stepwise.weights), flatten_weights(at_once.weights), rtol=1e-7, atol=1e-9
    )
    assert stepwise.predicted_increase == pytest.approx(at_once.predicted_increase)


def test_on_a_quadratic_error_what_is_predicted_comes():
    """A linear network at its minimum: predicted and true increase are one, for OBS; for OBD with its own term."""
    model, n = mlp(6, 1), 60
    x, d = draw(n, 6), draw(n, 1, role="d")
    design = torch.cat([x, torch.ones(n, 1).double()], 1)
    best = torch.linalg.lstsq(design, d).solution
    weights = {"0.weight": best[:6].T.contiguous(), "0.bias": best[6]}
    asked = make_objective(model.double(), weights, x, d, loss="squared_error")
    start = float(asked.error(weights))
    for density in (6 / 7, 3 / 7):
        done = prune_in_steps(
            FullObs(damping=1e-10).examiner(asked), weights, density, SCOPES["global"], num_steps=None
        )
        assert float(asked.error(done.weights)) - start == pytest.approx(done.predicted_increase, rel=1e-6)
        plain = prune_in_steps(Obd(diagonal="exact").examiner(asked), weights, density, SCOPES["global"])
        assert done.predicted_increase <= float(asked.error(plain.weights)) - start
        assert sum(int(m.sum()) for m in done.masks.values()) == round(7 * density)
    one = prune_in_steps(Obd(diagonal="recursion").examiner(asked), weights, 6 / 7, SCOPES["global"])
    assert float(asked.error(one.weights)) - start == pytest.approx(one.predicted_increase, rel=1e-9)


def test_duplicate_inputs_cost_nothing_to_the_surgeon_and_much_to_the_others():
    """Two weights on one input: one takes over the other's part, where the Hessian is singular."""
    x = draw(20, 1).repeat(1, 2)
    weights = {"0.weight": torch.tensor([[1.0, 1.1]]).double()}
    asked = make_objective(nn.Sequential(nn.Linear(2, 1, bias=False)).double(), weights, x, x[:, :1] * 2.1,
                      loss="squared_error")  # fmt: skip
    for method, cheap in (
        (FullObs().examiner(asked), True),
        (Obd(diagonal="recursion").examiner(asked), False),
        (CriterionMethod(CRITERIA["magnitude"]).examiner(), False),
    ):
        done = prune_in_steps(method, weights, 0.5, SCOPES["global"])
        assert (float(asked.error(done.weights)) < 1e-6) == cheap
    assert (
        prune_in_steps(FullObs(damping=1e-5).examiner(asked), weights, 0.5, SCOPES["global"]).damping == 1e-5
    )


@pytest.mark.parametrize("cuts", [1, 4, None])
@pytest.mark.parametrize("looks", [1, 3])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("make", [obs, obd], ids=["obs", "obd"])
def test_a_surgeon_goes_through_a_scope_to_the_exact_count(make, scope, looks, cuts):
    asked = asked_of(mlp(4, 5, 3), (4,), n=30)
    given = {n: w.clone() for n, w in asked.weights.items()}
    within = {n: torch.ones_like(w, dtype=torch.bool) for n, w in given.items()}
    within["0.weight"][0, :2] = False
    density = 0.5 if scope == "global" else {"0.weight": 0.5, "0.bias": 1.0, "2.weight": 0.4, "2.bias": 1.0}
    done = prune_in_steps(
        make(asked),
        given,
        density,
        SCOPES[scope],
        within=within,
        num_steps=cuts,
        num_recomputations=looks,
        seed=1,
    )
    kept = sum(int(mask.sum()) for mask in done.masks.values())
    assert kept == (22 if scope == "global" else 10 + 5 + 6 + 3)
    for name, mask in done.masks.items():
        assert not (mask & ~within[name]).any()
        assert not done.weights[name][~mask].any()
        assert torch.isfinite(done.weights[name]).all()
        assert torch.equal(given[name], asked.weights[name])
    assert done.cuts == (cuts or done.cuts)
    if cuts is None:
        assert done.cuts == 43 - 2 - kept
    assert (done.looks, done.predicted_increase > 0 or make is obd) == (min(looks, done.cuts), True)


@pytest.mark.parametrize("scope", ["2:4", "1x4"])
@pytest.mark.parametrize("make", [obs, obd], ids=["obs", "obd"])
def test_a_surgeon_goes_through_a_pattern_at_one_cut(make, scope):
    asked = asked_of(mlp(4, 8, 4), (4,), n=30)
    done = prune_in_steps(make(asked), asked.weights, 0.5, SCOPES[scope])
    assert [int(mask.sum()) for mask in done.masks.values()] == [16, 4, 16, 4 if scope == "1x4" else 2]
    assert all(not done.weights[name][~mask].any() for name, mask in done.masks.items())
    if scope == "2:4":
        with pytest.raises(DensityError, match=r"Expected density 0\.5"):
            prune_in_steps(make(asked), asked.weights, 0.5, SCOPES[scope], num_steps=2)


def test_as_many_looks_as_cuts_is_the_papers_loop():
    """Look, delete the lowest, move the rest, look again; one look goes another way on a net that is not quadratic."""
    asked = asked_of(mlp(4, 6, 2), (4,), n=40, biases=False)
    examine, left, weights, foretold = (
        FullObs(damping=1e-4).examiner(asked),
        torch.ones(36).bool(),
        asked.weights,
        0.0,
    )
    for _ in range(5):
        here = examine(weights, masks_from(asked, left))
        left[flatten_weights(here.scores()).masked_fill(~left, torch.inf).argmin()] = False
        here = here.prune_to(masks_from(asked, left))
        weights, foretold = here.weights, foretold + here.predicted_increase
    done = prune_in_steps(
        examine, asked.weights, 31 / 36, SCOPES["global"], num_steps=None, num_recomputations=5
    )
    assert torch.equal(flatten_weights(done.weights), flatten_weights(weights))
    assert torch.equal(flatten_weights(done.masks), left)
    assert done.predicted_increase == pytest.approx(foretold)
    once = prune_in_steps(
        examine, asked.weights, 31 / 36, SCOPES["global"], num_steps=None, num_recomputations=1
    )
    assert not torch.allclose(flatten_weights(once.weights), flatten_weights(weights))


def test_weights_in_float32_stay_so():
    model = mlp(4, 3)
    asked = make_objective(model, prunable_weights(model), torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    done = prune_in_steps(FullObs().examiner(asked), asked.weights, 0.5, SCOPES["layer"])
    assert done.weights["0.weight"].dtype == torch.float32
    assert torch.isfinite(done.weights["0.weight"]).all(), "five equal examples: a Hessian of rank two"


def test_what_a_surgeon_cannot_do_is_said():
    asked = asked_of(mlp(3, 2), (3,))
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(StatisticsError, match="above 0"):
            prune_in_steps(FullObs(damping=damping).examiner(asked), asked.weights, 0.5, SCOPES["global"])
    with pytest.raises(StatisticsError, match="no examples"):
        inverse_hessian([], 1, 1e-3)
    with pytest.raises(NonFiniteError):
        inverse_hessian([torch.tensor([[torch.nan, 1.0]])], 1, 1e-3)
    surgeon = surgeon_of(asked)
    left = torch.ones(8, dtype=torch.bool)
    left[0] = False
    with pytest.raises(DensityError, match="does not come back"):
        surgeon.prune_to(masks_from(asked, left)).prune_to(surgeon.masks)
    assert surgeon.prune_to(surgeon.masks) is surgeon
    for wrong in ({"cuts": 0}, {"looks": 0}):
        with pytest.raises(DensityError, match="at least 1"):
            prune_in_steps(FullObs().examiner(asked), asked.weights, 0.5, SCOPES["global"], **wrong)
    with pytest.raises(UnknownNameError):
        Obd(diagonal="fisher").examiner(asked)
    big = nn.Linear(MAX_WEIGHTS, 1)
    wide = make_objective(
        big, dict(big.named_parameters()), torch.ones(1, MAX_WEIGHTS), torch.ones(1, 1), loss="squared_error"
    )
    with pytest.raises(ModelError, match="GiB"):
        obs(wide)


def test_a_layer_alone_is_a_chain():
    asked = asked_of(nn.Linear(3, 2), (3,))
    assert apart(DIAGONALS["recursion"](asked), DIAGONALS["exact"](asked)) < BAR


def test_the_chain_names_its_steps():
    kinds = [(step.name, step.kind) for step in layer_chain(convolved())]
    assert kinds == [
        ("0", "layer"), ("1", "elementwise"), ("2", "elementwise"), ("3", "average"), ("4", "layer"),
        ("5", "elementwise"), ("6", "choice"), ("7", "choice"), ("8", "layer"),
    ]  # fmt: skip
