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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, Calibration, Examples, as_examples, map_tensors
from prunus.errors import StatisticsError
from prunus.masks import all_kept
from prunus.modules import check_initialized, copied
from prunus.pruning.calibration_checks import check_nonzero, check_reached, run_forward
from prunus.pruning.obs.diagonals import levenberg_marquardt
from prunus.pruning.obs.layer_inputs import input_norms
from prunus.pruning.obs.objective import Objective, check_parameters, make_objective
from prunus.pruning.scopes import shapes_of
from prunus.registry import call_user_function
from prunus.training.losses import Loss, LossFunction
from prunus.training.outputs import Forward
from prunus.types import MaskDict, Params, Scores

DERIVATIVES = {
    "gradients": "The gradient by",
    "hessian_gradients": "The curvature H g by",
    "hessian_diagonal": "The curvature by",
}
"""Statistics that contain no information about a layer where they are zero, each with the beginning of the error."""
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
            check_same_shapes(self.weights, self.masks, f"masks for the criterion {criterion.name!r}")
        for name in sorted(criterion.requires):
            tensors: Params = getattr(self, name)
            if isinstance(tensors, _NotCollected):
                raise _missing_error(name, f"the criterion {criterion.name!r}")
            check_same_shapes(self.weights, tensors, f"{name!r} for the criterion {criterion.name!r}")
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
        _check_names(self.requires, "Expected a criterion to require")
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
        passed_statistics = statistics
        if not self.__module__.startswith("prunus."):  # a function of the user may change what it gets
            passed_statistics = replace(
                statistics, weights={n: w.clone() for n, w in statistics.weights.items()}
            )
        scores = call_user_function("The criterion", StatisticsError, self.function, passed_statistics)
        check_same_shapes(statistics.weights, scores, f"scores from the criterion {self.name!r}")
        for name, score in scores.items():
            if score.dtype == torch.bool or score.is_complex():
                raise StatisticsError(
                    f"Expected real numbers as the scores of {name!r} from the criterion {self.name!r}, got "
                    f"{score.dtype}; to keep chosen weights, pass masks as within=..."
                )
        return {name: s if s.is_floating_point() else s.double() for name, s in scores.items()}


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

    Raises:
        StatisticsError: It is none of these.
    """
    if isinstance(value, Criterion):
        return value
    if isinstance(value, Mapping):
        return Criterion(GivenScores(dict(value)))
    if not callable(value):
        raise StatisticsError(
            f"Expected a criterion: a name, a function of statistics or scores by name, got {value!r}."
        )
    return Criterion(value)


@dataclass(frozen=True)
class GivenScores:
    """Scores that were computed elsewhere as a function of statistics."""

    __name__: ClassVar[str] = "scores by name"
    scores: Scores

    def __call__(self, statistics: Statistics) -> Scores:
        """The scores, whatever the statistics."""
        return self.scores


@torch.enable_grad()
def collect(
    model: nn.Module,
    weights: Params,
    requires: Collection[str],
    calibration: Calibration | None = None,
    *,
    initial: Params | None = None,
    masks: MaskDict | None = None,
    forward: Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    seed: int = 0,
) -> Statistics:
    """Collect the statistics that a criterion requires, at `weights`; the model is not changed.

    Args:
        model: The network, whose other parameters and buffers are used as they are, in evaluation mode.
        weights: The weights to score, by parameter name.
        requires: Names of statistics.
        calibration: Examples in any form; all of them are used, as one batch.
        initial: The weights that training started from.
        masks: The weights that earlier rounds kept.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        loss: A key of LOSSES, a Loss, or a function (outputs, batch) -> mean loss; None: the loss that the outputs
            contain, else cross-entropy.
        seed: For criteria that draw random numbers.

    Returns:
        The statistics.

    Raises:
        StatisticsError: No statistic of that name, no calibration examples where they are needed, or examples that the
            model does not take.
        ModelError: The outputs are not logits of the labels, or a layer is not reached by the forward pass.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> examples = torch.ones(1, 1), torch.tensor([0])
    >>> collect(model, {"weight": torch.tensor([[2.0], [2.0]])}, {"gradients"}, examples).gradients
    {'weight': tensor([[-0.5000],
            [ 0.5000]])}
    """
    _check_names(requires, "Expected to collect")
    collected = {} if initial is None else {"initial": initial}
    examples = None if calibration is None else as_examples(calibration)
    for name in sorted(set(requires) - {"initial"}):
        if examples is None:
            raise StatisticsError(
                f"Expected calibration examples to collect {name!r} on, got none; pass the training split."
            )
        check_initialized(model)
        if name == "input_norms":
            collected[name] = input_norms(model, weights, examples, forward=forward)
        elif name == "output_sum_gradients":
            remaining = masks or all_kept(weights)
            collected[name] = _output_sum_gradients(model, weights, examples, forward, remaining)
        else:
            objective = make_objective(model, weights, examples, loss=loss, forward=forward)
            collected[name] = LOSS_STATISTICS[name](objective)
    return Statistics(weights, seed, masks, **collected)


def _check_names(statistics: Collection[str], expected: str) -> None:
    """Raise StatisticsError where there is no statistic of one of these names."""
    unknown = sorted(set(statistics) - set(NAMES))
    if unknown:
        raise StatisticsError(f"{expected} some of {', '.join(NAMES)}, got {unknown}.")


def _hessian_gradients(objective: Objective) -> Params:
    """H g, from the derivative of g·c by w, which is H c for a constant c; c = g."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in objective.weights.items()}
    gradients = torch.autograd.grad(objective.error(leaves), list(leaves.values()), create_graph=True)
    product = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
    # Where all gradients are constant in a weight, it is not a part of the product: its curvature is zero.
    products = torch.autograd.grad(product, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, products, strict=True))


LOSS_STATISTICS: dict[str, Callable[[Objective], Params]] = {
    "gradients": lambda objective: _gradients(objective.error, objective.weights),
    "hessian_gradients": _hessian_gradients,
    "hessian_diagonal": levenberg_marquardt,
}


def _output_sum_gradients(
    model: nn.Module, weights: Params, examples: Examples, forward: Forward | None, masks: MaskDict
) -> Params:
    """dR/d|w| in float64, since R grows with depth and width beyond the precision of float32.

    The input of ones stands for one example; integers, such as tokens, are those of the first example.
    """
    check_parameters(model, weights)
    magnitudes = {n: torch.where(masks[n], w.detach().abs().double(), 0.0) for n, w in weights.items()}
    first = map_tensors(
        lambda t: torch.ones_like(t) if t.is_floating_point() else t, examples.take(slice(1)).batch
    )
    frozen = copied(model).double().eval().requires_grad_(False)
    objective = Objective(frozen, magnitudes, Examples(first).to(torch.float64), None, forward)

    def output_sum(leaves: Params, batch: Batch) -> Tensor:
        return run_forward(model, batch, partial(objective.outputs, leaves)).sum()

    check_reached(output_sum, magnitudes, objective.examples)
    return _gradients(partial(output_sum, batch=objective.examples.batch), magnitudes)


def _gradients(function: Callable[[Params], Tensor], weights: Params) -> Params:
    """The derivatives of a function of which `check_reached` has found that it depends on all weights."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    return dict(zip(leaves, torch.autograd.grad(function(leaves), list(leaves.values())), strict=True))


def _missing_error(statistic: str, criterion: str) -> StatisticsError:
    how = (
        "pass the weights that training started from as Statistics(weights, initial=...)"
        if statistic == "initial"
        else f"collect it with prunus.pruning.statistics.collect(model, weights, {{{statistic!r}}}, calibration)"
    )
    return StatisticsError(f"Expected the statistic {statistic!r} for {criterion}, got none; {how}.")


def check_same_shapes(weights: Params, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise StatisticsError unless `tensors` are tensors of the names and shapes of the weights.

    Args:
        weights: The weights by name.
        tensors: What must fit them.
        what: What the tensors are, for the error.

    Raises:
        StatisticsError: They do not fit.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        got = {type(t).__name__ for t in (tensors.values() if isinstance(tensors, Mapping) else [tensors])}
        raise StatisticsError(
            f"Expected {what} as one tensor by name of each weight, got {', '.join(sorted(got))}."
        )
    expected, actual = shapes_of(weights), shapes_of(tensors)
    wrong = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
    if wrong:
        right, shapes = ({name: by_name.get(name) for name in wrong} for by_name in (expected, actual))
        raise StatisticsError(
            f"Expected {what} of the names and shapes of the weights, {right}, got {shapes}; pass both of one "
            "network and selection."
        )
