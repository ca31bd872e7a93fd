"""Diagonals of the Hessian against the true Hessian, finite differences and loops over connections."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian
from torch.nn import functional as F

from prunus.errors import ModelError, NonFiniteError, StatisticsError, UnknownNameError
from prunus.models import MODELS
from prunus.models.mlp import ScaledTanh, mlp
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.obs.chain import layer_chain
from prunus.pruning.obs.diagonals import DIAGONALS, hutchinson, pooling_weights
from prunus.pruning.obs.objective import Objective, flatten_weights, make_objective, unflatten_weights
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.statistics import Statistics
from prunus.training.losses import LOSSES
from prunus.types import Params

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from objectives import draw, make_test_objective

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


def true_hessian(objective: Objective) -> Tensor:
    return hessian(lambda w: objective.error(unflatten_weights(w, objective.weights)))(
        flatten_weights(objective.weights)
    )


def relative_error(actual: Params, other: Params) -> float:
    """The largest relative error of a tensor."""
    return max(float((actual[n] - other[n]).abs().max() / other[n].abs().max()) for n in other)


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


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_derivatives_are_those_of_autograd(loss):
    outputs = draw(5, 4).requires_grad_()
    targets = draw(5, 4, role="t") if loss == "squared_error" else torch.tensor([0, 1, 2, 3, 1])
    loss_functions = LOSSES[loss]
    (slope,) = torch.autograd.grad(loss_functions.value(outputs, targets).sum(), outputs)
    torch.testing.assert_close(slope, loss_functions.gradient(outputs, targets))
    root = loss_functions.hessian_root(outputs, targets)
    for place in range(5):
        full = hessian(lambda o, p=place: loss_functions.value(o[None], targets[p : p + 1])[0])(
            outputs[place]
        )
        torch.testing.assert_close(root[place] @ root[place].T, full)
        torch.testing.assert_close(loss_functions.hessian_diagonal(outputs, targets)[place], full.diagonal())


@pytest.mark.parametrize("loss", LOSSES)
def test_exact_is_the_diagonal_of_the_true_hessian(loss):
    for model, shape in ((mlp(4, 5, 3), (4,)), (convolved(), (2, 7, 7)), (tiny_networks.Residual(), (64,))):
        objective = make_test_objective(
            model, shape, loss, n=3, biases=not isinstance(model, tiny_networks.Residual)
        )
        if isinstance(model, tiny_networks.Residual):
            last = {"last.weight": objective.weights["last.weight"]}
            objective = make_objective(objective.model, last, objective.inputs,
                              objective.targets, loss=loss)  # fmt: skip
        expected = true_hessian(objective).diagonal()
        actual = flatten_weights(DIAGONALS["exact"](objective))
        assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-10


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_recursion_is_exact_with_one_hidden_layer_and_squared_error(activation):
    """Any activation, also after the last layer (eq. 8); Levenberg-Marquardt differs where f'' is not zero."""
    model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3), activation)
    objective = make_test_objective(model, (4,))
    exact = DIAGONALS["exact"](objective)
    assert relative_error(DIAGONALS["recursion"](objective), exact) < BAR
    lm = DIAGONALS["levenberg_marquardt"](objective)
    assert all((h >= 0).all() for h in lm.values())
    assert (relative_error(lm, exact) < BAR) == isinstance(activation, nn.ReLU)


def test_recursion_is_exact_through_layers_one_unit_wide():
    """However deep: there are no mixed derivatives to leave out."""
    layers = itertools.chain.from_iterable((nn.Linear(1, 1), nn.Tanh()) for _ in range(5))
    objective = make_test_objective(nn.Sequential(nn.Linear(3, 1), ScaledTanh(), *layers), (3,))
    assert relative_error(DIAGONALS["recursion"](objective), DIAGONALS["exact"](objective)) < BAR


def test_cross_entropy_is_exact_in_the_last_layer():
    objective = make_test_objective(mlp(4, 5, 3), (4,), "cross_entropy")
    actual, exact = DIAGONALS["recursion"](objective), DIAGONALS["exact"](objective)
    last = {name: actual[name] for name in ("2.weight", "2.bias")}
    assert relative_error(actual, {name: exact[name] for name in last}) < BAR
    assert relative_error(actual, exact) > 0.01, "p (1 - p) leaves out what couples the outputs"


@pytest.mark.parametrize("loss", LOSSES)
def test_last_layer_that_shares_weights_is_exact_with_squared_error_alone(loss):
    """A convolution's places are outputs of their own, which cross-entropy couples through the weights they share."""
    objective = make_test_objective(
        nn.Sequential(nn.Conv2d(2, 1, 2), nn.Tanh(), nn.Flatten()), (2, 3, 3), loss
    )
    error = relative_error(DIAGONALS["recursion"](objective), DIAGONALS["exact"](objective))
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
def test_recursion_is_exact_through_pooling_of_one_axis(pool, shape):
    """Windows that share no unit; whether there is an axis of channels, or only units."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), pool, nn.Flatten(), nn.Linear(pool(draw(1, 6)).shape[1], 2)
    )
    objective = make_test_objective(model, shape)
    assert relative_error(DIAGONALS["recursion"](objective), DIAGONALS["exact"](objective)) < BAR


@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d])
def test_recursion_is_exact_through_a_padded_convolution(layer, mode):
    """On one place: no weight is shared, and padding puts its input under the whole kernel."""
    model = nn.Sequential(
        layer(2, 3, 2), nn.Tanh(), layer(3, 2, 3, padding=1, padding_mode=mode), nn.Tanh(), nn.Flatten()
    )
    objective = make_test_objective(model, (2, 2, 2)[: 2 if layer is nn.Conv1d else 3])
    exact = DIAGONALS["exact"](objective)
    assert relative_error(DIAGONALS["recursion"](objective), exact) < BAR


def test_sign_of_the_second_derivative_is_plus():
    """Printed with minus in eq. 7; finite differences of the error decide."""
    objective = make_test_objective(nn.Sequential(nn.Linear(2, 1), nn.Tanh()), (2,))
    w, step = flatten_weights(objective.weights), 1e-4

    def error(vector: Tensor) -> float:
        return float(objective.error(unflatten_weights(vector, objective.weights)))

    differences = [
        (error(w + step * e) - 2 * error(w) + error(w - step * e)) / step**2 for e in torch.eye(3).double()
    ]
    actual = flatten_weights(DIAGONALS["recursion"](objective))
    assert float((actual - torch.tensor(differences)).abs().max() / actual.abs().max()) < BAR


def slow_recursion(objective: Objective, kernel: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 6 to 8 for conv 1 -> 1 of 2 x 2 on 3 x 3, tanh, linear: in loops over connections."""
    curve, above = torch.zeros_like(kernel), torch.zeros_like(dense)
    for x, d in zip(objective.inputs, objective.targets, strict=True):
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
    return curve / len(objective.inputs), above / len(objective.inputs)


def test_shared_weights_are_summed_over_their_connections():
    """Against the paper's equations in plain loops."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )
    objective = make_test_objective(model, (1, 3, 3))
    kernel, dense = objective.weights["0.weight"][0, 0], objective.weights["3.weight"]
    curve, above = slow_recursion(objective, kernel, dense)
    actual = DIAGONALS["recursion"](objective)
    torch.testing.assert_close(actual["0.weight"][0, 0], curve)
    torch.testing.assert_close(actual["3.weight"], above)


def unshared(model: nn.Module, objective: Objective) -> Params:
    """The recursion once more, each step as the matrix of its derivatives, squared."""
    total = {name: torch.zeros_like(weight) for name, weight in objective.weights.items()}
    for x, target in zip(objective.inputs, objective.targets, strict=True):
        seen = [x[None]]
        for module in model:
            seen.append(module(seen[-1]).detach())
        slope = objective.loss.gradient(seen[-1], target[None]).flatten()
        curve = objective.loss.hessian_diagonal(seen[-1], target[None]).flatten()
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
    return {name: h / len(objective.inputs) for name, h in total.items()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("make", "shape"), [(convolved, (2, 7, 7)), (convolved_1d, (2, 13))], ids=["2-d", "1-d"]
)
def test_recursion_through_every_kind_of_layer_equals_that_with_dense_matrices(make, shape, loss):
    """BatchNorm, both poolings, padding, groups: against Jacobians that know nothing of layers."""
    objective = make_test_objective(make(), shape, loss, n=4)
    weights = prunable_weights(objective.model)
    objective = make_objective(objective.model, weights, objective.inputs, objective.targets, loss=loss)
    expected = unshared(objective.model, objective)
    assert relative_error(DIAGONALS["recursion"](objective), expected) < 1e-10


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
    objective = make_test_objective(model, (1, *shape), n=3)
    weights = prunable_weights(objective.model)
    objective = make_objective(
        objective.model, weights, objective.inputs, objective.targets, loss="squared_error"
    )
    assert relative_error(DIAGONALS["recursion"](objective), unshared(objective.model, objective)) < 1e-10


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
def test_pooling_weights_are_the_derivatives_of_the_pooling(pool):
    axes = 1 if "1d" in str(pool) else 2
    image = draw(1, 1, 8, 7)[(..., 0) if axes == 1 else ...]
    matrix = torch.func.jacrev(pool)(image).reshape(*pool(image).shape[2:], -1)
    torch.testing.assert_close(matrix.amax(axes), pooling_weights(pool, image, axes))
    assert all(set(row[row > 0].unique().tolist()) for row in matrix.flatten(0, axes - 1))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("lenet", "conv"))])
def test_built_in_models_are_supported_and_not_changed(name):
    model = MODELS[name]()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    shape = (3, 32, 32) if name.startswith("conv") else (1, 28, 28)
    objective = make_objective(model, prunable_weights(model), torch.rand(2, *shape), torch.tensor([1, 7]))
    scores = CRITERIA["obd"](
        Statistics(prunable_weights(model), hessian_diagonal=DIAGONALS["levenberg_marquardt"](objective))
    )
    assert all((score >= 0).all() and score.any() for score in scores.values())
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


def test_network_with_branches_is_refused_by_the_recursion():
    model = MODELS["resnet-20"]()
    objective = make_objective(model, prunable_weights(model), torch.rand(2, 3, 32, 32), torch.tensor([1, 7]))
    with pytest.raises(ModelError, match="does not support ResNet"):
        DIAGONALS["recursion"](objective)


def test_functions_and_methods_count_as_modules():
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
    objective = make_test_objective(Written(), (1, 5, 5))
    renamed = {"conv": "0", "fc": "6"}
    places = {name: f"{renamed[name.split('.')[0]]}.{name.split('.')[1]}" for name in objective.weights}
    listed.load_state_dict({places[name]: weight for name, weight in objective.weights.items()})
    other = make_objective(listed.double(), dict(listed.named_parameters()), objective.inputs, objective.targets,
                      loss="squared_error")  # fmt: skip
    actual = DIAGONALS["recursion"](other)
    for name, h in DIAGONALS["recursion"](objective).items():
        torch.testing.assert_close(h, actual[places[name]])


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
def test_recursion_is_exact_through_functions(name):
    objective = make_test_objective(Applied(FUNCTIONS[name]), (1, 4))
    assert relative_error(DIAGONALS["recursion"](objective), DIAGONALS["exact"](objective)) < BAR


class Composed(nn.Module):
    """A layer that is called twice, and an activation of several operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.tanh_()
        return self.last(self.first(x * torch.sigmoid(x) + (x > 0)))


def test_steps_of_several_operators_and_layers_that_are_called_twice():
    objective = make_test_objective(Composed(), (1,))
    steps = layer_chain(objective.graph, objective.model)
    assert [(step.name, step.kind) for step in steps] == [
        ("first", "layer"), ("", "elementwise"), ("", "elementwise"), ("first", "layer"), ("last", "layer"),
    ]  # fmt: skip
    weights = {name: objective.weights[name] for name in ("last.weight", "last.bias")}
    exact = DIAGONALS["exact"](objective)
    actual = DIAGONALS["recursion"](objective)
    assert relative_error({n: actual[n] for n in weights}, {n: exact[n] for n in weights}) < BAR


def test_graph_is_traced_once_for_all_weights():
    objective = make_test_objective(mlp(4, 5, 3), (4,))
    graph = objective.graph
    other = objective.replace_weights({name: 2 * weight for name, weight in objective.weights.items()})
    assert other.graph is graph
    fresh = make_objective(
        objective.model, other.weights, objective.inputs, objective.targets, loss="squared_error"
    )
    for name, diagonal in DIAGONALS["recursion"](fresh).items():
        assert torch.equal(DIAGONALS["recursion"](other)[name], diagonal)


def test_hutchinson_converges_and_depends_on_its_seed():
    objective = make_test_objective(mlp(3, 4, 2), (3,))
    full = true_hessian(objective)
    expected, spread = full.diagonal(), (full.square().sum(1) - full.diagonal().square()).sqrt()
    estimates = torch.stack(
        [flatten_weights(hutchinson(objective, seed=seed, num_samples=50)) for seed in range(8)]
    )
    assert ((estimates.mean(0) - expected).abs() <= 5 * spread / 400**0.5 + 1e-12).all()
    # The standard deviation that its docstring states, over eight estimates of 50 samples.
    ratio = estimates.std(0).square().sum() / (spread.square() / 50).sum()
    assert 0.3 < float(ratio) < 3
    assert torch.equal(flatten_weights(hutchinson(objective, seed=1, num_samples=50)), estimates[1])
    assert not torch.equal(estimates[0], estimates[1])


def test_hutchinson_is_exact_for_a_diagonal_hessian():
    """The squares of signs are one: of a diagonal Hessian a single sample knows all."""
    model = nn.Linear(4, 1, bias=False).double()
    objective = make_objective(
        model,
        {"weight": draw(1, 4)},
        torch.diag(draw(4, role="one-hot")),
        draw(4, 1, role="t"),
        loss="squared_error",
    )
    for samples in (1, 3):
        assert (
            relative_error(hutchinson(objective, num_samples=samples), DIAGONALS["exact"](objective)) < 1e-12
        )


def test_objective_uses_evaluation_mode():
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
    objective = make_test_objective(mlp(3, 4, 2), (3,), n=8)
    before = {n: w.clone() for n, w in objective.weights.items()}
    all_at_once = DIAGONALS[name](objective)
    halves = [
        DIAGONALS[name](make_objective(objective.model, objective.weights, objective.inputs[part],
                                       objective.targets[part],
                                  loss="squared_error"))
        for part in (slice(4), slice(4, 8))
    ]  # fmt: skip
    for n, h in all_at_once.items():
        assert h.shape == before[n].shape
        torch.testing.assert_close(h, (halves[0][n] + halves[1][n]) / 2)
        assert torch.equal(before[n], objective.weights[n])


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
        (
            Odd("softmax"),
            r"no rule for 'softmax' \(test_diagonals.py:\d+: return self.fc\(x\).softmax\(1\)\)",
        ),
        (Odd("branch"), r"'add' \(test_diagonals.py:\d+: return self.fc\(x\) \+ x\) takes more than"),
        (Odd("control"), "cannot be exported"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "no rule for 'layer_norm' of '1'"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), "'1' has no running"),
    ],
    ids=["softmax", "branch", "control", "norm", "batch statistics"],
)
@pytest.mark.parametrize("diagonal", ["recursion", "levenberg_marquardt"])
def test_unsupported_operations_are_named_with_another_choice(model, named, diagonal):
    objective = make_test_objective(model, (3,), biases=False)
    with pytest.raises(ModelError, match=rf"{named}.*the criterion 'obd_hutchinson'"):
        DIAGONALS[diagonal](objective)
    if not isinstance(model, Odd) or model.kind != "control":
        assert relative_error(DIAGONALS["exact"](objective), hessian_diagonal(objective)) < 1e-8


def hessian_diagonal(objective: Objective) -> Params:
    return unflatten_weights(true_hessian(objective).diagonal(), objective.weights)


def test_weight_of_a_norm_is_refused_by_the_recursion():
    with pytest.raises(ModelError, match=r"'1\.weight' belongs to none of its layers"):
        DIAGONALS["recursion"](make_test_objective(convolved(), (2, 7, 7)))


def test_invalid_objectives_are_refused():
    model = mlp(3, 2).double()
    weights, x, d = dict(model.named_parameters()), draw(4, 3), draw(4, 2)
    ask = lambda **fixed: make_objective(  # noqa: E731
        **{"model": model, "weights": weights, "inputs": x, "targets": d, "loss": "squared_error", **fixed}
    )
    for bad, error, message in (
        ({"inputs": x[:0], "targets": d[:0]}, StatisticsError, "at least one"),
        ({"targets": d[:2]}, StatisticsError, "one entry per example"),
        ({"weights": {}}, ModelError, "Expected weights"),
        ({"targets": d[:, :1]}, StatisticsError, "squared_error"),
        ({"loss": "cross_entropy"}, StatisticsError, "labels|int64"),
        (
            {"loss": "cross_entropy", "targets": torch.tensor([0, 1, 2, 0])},
            StatisticsError,
            "Expected labels from 0 to 1|Expected int64 labels",
        ),
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
        with pytest.raises(error, match=message):
            ask(**bad)


class Seldom(nn.Module):
    """Asks its second layer only where an example is above 2."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.seldom = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + (self.seldom(x) if (x > 2).any() else 0.0)


def test_layer_that_one_example_of_many_reaches_is_accepted():
    model, labels = Seldom(), torch.zeros(100, dtype=torch.int64)
    x = torch.ones(100, 3)
    with pytest.raises(ModelError, match=r"never reached the layer of 'seldom.weight'.*exclude"):
        make_objective(model, prunable_weights(model), x, labels)
    x[99] = 3.0
    assert set(make_objective(model, prunable_weights(model), x, labels).weights) == {
        "always.weight",
        "seldom.weight",
    }


def test_label_out_of_range_is_found_beyond_the_first_example():
    with pytest.raises(StatisticsError, match="Expected labels from 0 to 1"):
        make_objective(mlp(3, 2), prunable_weights(mlp(3, 2)), torch.ones(2, 3), torch.tensor([0, 5]))


def test_single_layer_is_a_chain():
    objective = make_test_objective(nn.Linear(3, 2), (3,))
    assert relative_error(DIAGONALS["recursion"](objective), DIAGONALS["exact"](objective)) < BAR


def test_layer_chain_names_its_steps():
    objective = make_test_objective(convolved(), (2, 7, 7))
    kinds = [(step.name, step.kind) for step in layer_chain(objective.graph, objective.model)]
    assert kinds == [
        ("0", "layer"), ("1", "norm"), ("2", "elementwise"), ("3", "avg pool"), ("4", "layer"),
        ("5", "elementwise"), ("6", "max pool"), ("7", "flatten"), ("8", "layer"),
    ]  # fmt: skip
