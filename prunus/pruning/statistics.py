"""Statistics: what criteria score weights by, declared by each criterion and collected on calibration examples.

    initial                 weights that training started from
    gradients               g = dL/dw of the mean loss
    hessian_gradients       H g, the Hessian of the loss times its gradient
    hessian_diagonal        d²L/dw², with the Levenberg-Marquardt approximation of `obs.diagonals`
    input_norms             the L2 norm of the input that a weight is multiplied with; needs no labels
    output_sum_gradients    dR/d|w|, R the sum of the outputs for an input of ones, with the weights replaced by |w|

Statistics are always those at the weights that the caller hands in: `prunus.prune` collects at the current weights, a
ticket at the weights before or after training, as `Criterion.defined_at` says.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import ModelError, StatisticsError
from prunus.masks import all_kept
from prunus.modules import check_initialized
from prunus.pruning.calibration_checks import (
    check_is_output,
    check_is_tensor,
    check_nonzero,
    run_forward,
    unreached_error,
)
from prunus.pruning.obs.diagonals import levenberg_marquardt
from prunus.pruning.obs.layer_inputs import input_norms
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.scopes import shapes_of
from prunus.pruning.weights import copied, set_weights
from prunus.types import MaskDict, Params, Scores, Split

Forward = Callable[[nn.Module, Any], Tensor]
"""(model, batch of inputs) -> outputs."""
LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) -> the mean loss, a scalar."""

DERIVATIVES = {
    "gradients": "The gradient by",
    "hessian_gradients": "The curvature H g by",
    "hessian_diagonal": "The curvature by",
}
"""Statistics that contain no information about a layer where they are zero, and how the error begins."""
NAMES = ("initial", *DERIVATIVES, "input_norms", "output_sum_gradients")


class _NotCollected(dict[str, Tensor]):
    """Stands for a statistic that was not collected; access by name is a StatisticsError."""

    def __init__(self, statistic: str) -> None:
        super().__init__()
        self.statistic = statistic

    def __missing__(self, name: str) -> Tensor:
        raise _missing_error(self.statistic, "this criterion")


@dataclass(frozen=True)
class Statistics:
    """What a criterion is given. Access to a statistic that was not collected is a StatisticsError."""

    weights: Params
    """The weights to score, detached."""
    seed: int = 0
    """For criteria that draw random numbers."""
    masks: MaskDict | None = None
    """The weights that earlier rounds kept; None: all."""
    initial: Params = field(default_factory=partial(_NotCollected, "initial"))
    gradients: Params = field(default_factory=partial(_NotCollected, "gradients"))
    hessian_gradients: Params = field(default_factory=partial(_NotCollected, "hessian_gradients"))
    hessian_diagonal: Params = field(default_factory=partial(_NotCollected, "hessian_diagonal"))
    input_norms: Params = field(default_factory=partial(_NotCollected, "input_norms"))
    output_sum_gradients: Params = field(default_factory=partial(_NotCollected, "output_sum_gradients"))

    def __post_init__(self) -> None:
        for name in ("weights", *NAMES):
            tensors = getattr(self, name)
            if not isinstance(tensors, _NotCollected):
                object.__setattr__(self, name, {key: tensor.detach() for key, tensor in tensors.items()})

    @property
    def remaining(self) -> MaskDict:
        """`masks`, all True where there are none."""
        return all_kept(self.weights) if self.masks is None else self.masks

    def check(self, criterion: "Criterion") -> None:
        """Check that there is what a criterion requires, of the names and shapes of the weights.

        Args:
            criterion: The criterion to score with.

        Raises:
            StatisticsError: A statistic is missing, of other names or shapes, or zero for a whole layer.
        """
        if self.masks is not None:
            _check_same_shapes(self.weights, self.masks, f"masks for the criterion {criterion.name!r}")
        for name in sorted(criterion.requires):
            tensors: Params = getattr(self, name)
            if isinstance(tensors, _NotCollected):
                raise _missing_error(name, f"the criterion {criterion.name!r}")
            _check_same_shapes(self.weights, tensors, f"{name!r} for the criterion {criterion.name!r}")
            if name in DERIVATIVES:
                check_nonzero(tensors, self.remaining, DERIVATIVES[name])


@dataclass(frozen=True)
class Criterion:
    """A function of statistics that returns one score per weight, and what it needs. The highest scores are kept."""

    function: Callable[[Statistics], Scores]
    requires: frozenset[str] = frozenset()
    """Names of statistics."""
    defined_at: Literal["initialization", "trained"] = "trained"
    """The weights that a ticket scores: those before or after training."""

    def __post_init__(self) -> None:
        unknown = sorted(self.requires - set(NAMES))
        if unknown:
            raise StatisticsError(f"Expected a criterion to require some of {list(NAMES)}, got {unknown}.")
        for attribute in ("__name__", "__doc__", "__module__", "__qualname__"):
            value = getattr(self.function, attribute, None)
            if value is not None:
                object.__setattr__(self, attribute, value)
        object.__setattr__(self, "__wrapped__", self.function)  # where doctest finds the examples

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def needs_examples(self) -> bool:
        """Whether statistics must be collected on calibration examples."""
        return bool(self.requires - {"initial"})

    def __call__(self, statistics: Statistics) -> Scores:
        """The scores. Raises StatisticsError where a required statistic is missing or does not fit the weights."""
        statistics.check(self)
        scores = self.function(statistics)
        _check_same_shapes(statistics.weights, scores, f"scores from the criterion {self.name!r}")
        return scores


def criterion(
    *, requires: Collection[str] = (), defined_at: Literal["initialization", "trained"] = "trained"
) -> Callable[[Callable[[Statistics], Scores]], Criterion]:
    """Declare what a criterion requires.

    Args:
        requires: Names of statistics: initial, gradients, hessian_gradients, hessian_diagonal, input_norms,
            output_sum_gradients.
        defined_at: The weights that a ticket scores: those before ("initialization") or after training ("trained").

    Returns:
        A decorator that makes a Criterion of a function of statistics.

    >>> @criterion(requires={"initial"})
    ... def distance(stats):
    ...     return {name: (weight - stats.initial[name]).abs() for name, weight in stats.weights.items()}
    >>> distance(Statistics({"fc": torch.tensor([-3.0, 1.0])}, initial={"fc": torch.tensor([1.0, 2.0])}))
    {'fc': tensor([4., 1.])}
    """
    return lambda function: Criterion(function, frozenset(requires), defined_at)


def as_criterion(value: Criterion | Callable[[Statistics], Scores] | Mapping[str, Tensor]) -> Criterion:
    """A criterion from a function of statistics, or from scores that were computed elsewhere.

    Args:
        value: A Criterion (returned as it is), a function that requires nothing but weights, or {name: scores}.

    Returns:
        The criterion.
    """
    if isinstance(value, Criterion):
        return value
    if isinstance(value, Mapping):
        scores = dict(value)
        return Criterion(lambda stats: scores)
    return Criterion(value)


@torch.enable_grad()
def collect(
    model: nn.Module,
    weights: Params,
    requires: Collection[str],
    calibration: Split | None = None,
    *,
    initial: Params | None = None,
    masks: MaskDict | None = None,
    forward: Forward | None = None,
    loss: LossFunction | None = None,
    seed: int = 0,
) -> Statistics:
    """Collect the statistics that a criterion requires, at `weights`; the model is not changed.

    Args:
        model: The network, whose other parameters and buffers are used as they are, in evaluation mode.
        weights: The weights to score, by parameter name.
        requires: Names of statistics.
        calibration: Inputs [N, ...] and labels [N]; all of them are used, as one batch.
        initial: The weights that training started from.
        masks: The weights that earlier rounds kept.
        forward: (model, inputs) -> outputs; None: `model(inputs)`.
        loss: (outputs, labels) -> mean loss; None: cross-entropy.
        seed: For criteria that draw random numbers.

    Returns:
        The statistics.

    Raises:
        StatisticsError: No calibration examples where they are needed, or examples that the model does not take.
        ModelError: The outputs are no logits of the labels, or a layer is not reached by the forward pass.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> examples = Split(torch.ones(1, 1), torch.tensor([0]))
    >>> collect(model, {"weight": torch.tensor([[2.0], [2.0]])}, {"gradients"}, examples).gradients
    {'weight': tensor([[-0.5000],
            [ 0.5000]])}
    """
    collected = {} if initial is None else {"initial": initial}
    for name in sorted(set(requires) - {"initial"}):
        if calibration is None:
            raise StatisticsError(
                f"Expected calibration examples to collect {name!r} on, got none; pass the training split."
            )
        if name == "input_norms":
            collected[name] = input_norms(model, weights, calibration.inputs, forward=forward)
            continue
        passed = _Pass(model, weights, calibration, forward, loss)
        passed.check()
        match name:
            case "gradients":
                collected[name] = passed.gradients()
            case "hessian_gradients":
                collected[name] = passed.hessian_gradients()
            case "hessian_diagonal":
                collected[name] = passed.hessian_diagonal(seed)
            case _:
                collected[name] = passed.output_sum_gradients(masks or all_kept(weights))
    return Statistics(weights, seed, masks, **collected)


@dataclass(frozen=True)
class _Pass:
    """A network with the weights that statistics are collected at, and the examples."""

    model: nn.Module
    weights: Params
    examples: Split
    forward: Forward | None
    loss: LossFunction | None

    @torch.no_grad()
    def check(self) -> None:
        """Check the examples, and the outputs for the first two of them.

        A label beyond the classes would be an index out of range, on a GPU a crash.
        """
        inputs, labels = self.examples.inputs, self.examples.labels
        check_is_tensor(inputs)
        check_is_tensor(labels, "calibration labels")
        has_labels = labels.shape == inputs.shape[:1] and labels.dtype == torch.int64
        if not inputs.numel() or not (has_labels or self.loss):
            raise StatisticsError(
                f"Expected at least one calibration example, with one label, torch.int64, for each, got inputs "
                f"{tuple(inputs.shape)} and labels {tuple(labels.shape)} of {labels.dtype}."
            )
        output, _ = self._outputs(self.weights, inputs[:2])
        if self.loss is not None:
            return
        shape, n, lowest, highest = tuple(output.shape), len(inputs[:2]), int(labels.min()), int(labels.max())
        if len(shape) != 2 or shape[0] != n or lowest < 0 or highest >= shape[1]:
            raise ModelError(
                f"Expected {type(self.model).__name__} to return logits [{n}, C] for {n} inputs, with C above the "
                f"labels from {lowest} to {highest}, got {shape}; pass a classifier of these labels."
            )

    def gradients(self) -> Params:
        """dL/dw."""
        value, leaves = self._loss()
        return _gradients(value, leaves)

    def hessian_gradients(self) -> Params:
        """H g, from the derivative of g·c by w, which is H c for a constant c; c = g."""
        value, leaves = self._loss()
        gradients = _gradients(value, leaves, create_graph=True)
        product = torch.stack([(g * g.detach()).sum() for g in gradients.values()]).sum()
        # Where all gradients are constant in a weight, it is no part of the product: its curvature is zero.
        products = torch.autograd.grad(product, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, products, strict=True))

    def hessian_diagonal(self, seed: int) -> Params:
        """d²L/dw², Levenberg-Marquardt."""
        if self.loss is not None:
            raise StatisticsError(
                "Expected no loss of your own for 'hessian_diagonal', which is known for cross-entropy, got one; pass "
                "scores or another criterion."
            )
        objective = make_objective(
            self.model, self.weights, self.examples.inputs, self.examples.labels, forward=self.forward
        )
        return levenberg_marquardt(objective, seed=seed)

    def output_sum_gradients(self, masks: MaskDict) -> Params:
        """dR/d|w| in float64, since R grows with depth and width beyond the precision of float32."""
        magnitudes = {
            n: torch.where(masks[n], w.detach().abs().double(), 0.0) for n, w in self.weights.items()
        }
        output, leaves = self._outputs(
            magnitudes, torch.ones_like(self.examples.inputs[:1], dtype=torch.float64)
        )
        return _gradients(output.sum(), leaves)

    def _loss(self) -> tuple[Tensor, Params]:
        """The mean loss, and the leaves that it can be differentiated by."""
        output, leaves = self._outputs(self.weights, self.examples.inputs)
        return (self.loss or F.cross_entropy)(output, self.examples.labels), leaves

    def _outputs(self, weights: Params, inputs: Tensor) -> tuple[Tensor, Params]:
        """The outputs of a copy of the model with these weights, in their dtype, and its parameters."""
        check_initialized(self.model)
        if not weights:
            raise ModelError(
                f"Expected weights of {type(self.model).__name__} to differentiate by, got none."
            )
        dtype = next(iter(weights.values())).dtype
        frozen = copied(self.model).eval().to(dtype).requires_grad_(False)
        set_weights(frozen, weights)
        leaves = {name: frozen.get_parameter(name).requires_grad_() for name in weights}
        inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        forward = self.forward or (lambda module, batch: module(batch))
        output = run_forward(self.model, inputs, lambda batch: forward(frozen, batch))
        check_is_output(self.model, output)
        return output, leaves


def _gradients(value: Tensor, leaves: Params, *, create_graph: bool = False) -> Params:
    """The derivatives of `value`. Raises StatisticsError where it depends on no leaf, ModelError where not on all."""
    if not value.requires_grad:
        raise StatisticsError(
            f"Expected outputs that depend on the weights {list(leaves)}, got constants; the forward pass must use the "
            "weights and be differentiable."
        )
    gradients = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, allow_unused=True
    )
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            raise unreached_error(name)
    return dict(zip(leaves, gradients, strict=True))


def _missing_error(statistic: str, criterion: str) -> StatisticsError:
    how = (
        "pass the weights that training started from as Statistics(weights, initial=...)"
        if statistic == "initial"
        else f"collect it with prunus.pruning.statistics.collect(model, weights, {{{statistic!r}}}, calibration)"
    )
    return StatisticsError(f"Expected the statistic {statistic!r} for {criterion}, got none; {how}.")


def _check_same_shapes(weights: Params, tensors: Mapping[str, Tensor], what: str) -> None:
    expected, actual = shapes_of(weights), shapes_of(tensors)
    wrong = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
    if wrong:
        right, shapes = ({name: by_name.get(name) for name in wrong} for by_name in (expected, actual))
        raise StatisticsError(
            f"Expected {what} of the names and shapes of the weights, {right}, got {shapes}; pass both of one "
            "network and selection."
        )
