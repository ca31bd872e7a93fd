"""The mean loss of a network on examples as a function of some of its parameters, and losses with their derivatives.

    squared_error    E = ½ Σ_c (o_c - d_c)²      gradient o - d    Hessian I
    cross_entropy    E = -log p_label            gradient p - d    Hessian diag(p) - p pᵀ,  p = softmax(o)

o outputs, d targets of one example; the error of the network is the mean over the examples. A root of the Hessian is a
matrix R with R Rᵀ = Hessian; for cross-entropy R = diag(√p) - p √pᵀ.

Source: LeCun et al. 1990, eq. 8, whose E = Σ (d - x)² is twice ours: saliencies and errors halve together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.pruning.calibration_checks import check_is_output, check_is_tensor, check_reached, run_forward
from prunus.pruning.masks import check_finite
from prunus.pruning.weights import copied, with_weights
from prunus.registry import lookup
from prunus.types import Params

Derivative = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss with its first and second derivatives by the outputs [B, C]."""

    name: str
    value: Derivative
    """(outputs, targets) -> [B], the error of each example."""
    gradient: Derivative
    """(outputs, targets) -> [B, C], dE/do."""
    hessian_diagonal: Derivative
    """(outputs, targets) -> [B, C], the diagonal of d²E/do²."""
    hessian_root: Derivative
    """(outputs, targets) -> [B, C, C], R with R Rᵀ = d²E/do²."""
    takes_labels: bool
    """Whether targets are labels, int64 [B]; otherwise they are numbers [B, C]."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise StatisticsError unless `targets` fit `outputs` [B, C].

        Args:
            outputs: The outputs of the network.
            targets: Labels [B], or numbers [B, C].

        Raises:
            StatisticsError: They do not fit each other, or a label is out of range.
        """
        fits = outputs.dim() == 2 and (
            targets.shape == outputs.shape[:1] and targets.dtype == torch.int64
            if self.takes_labels
            else targets.shape == outputs.shape and targets.is_floating_point()
        )
        if fits and self.takes_labels and len(targets):
            fits = int(targets.min()) >= 0 and int(targets.max()) < outputs.shape[1]
        if not fits:
            expected = "[B] of int64 below C" if self.takes_labels else "[B, C] of floating point"
            raise StatisticsError(
                f"Expected outputs [B, C] and targets {expected} for the loss {self.name!r}, got outputs "
                f"{tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}."
            )


def _softmax_gradient(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.softmax(1) - F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)


def _softmax_hessian_diagonal(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(1)
    return p * (1 - p)


def _softmax_hessian_root(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(1)
    return torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)


LOSSES: dict[str, Loss] = {
    "squared_error": Loss(
        "squared_error",
        value=lambda outputs, targets: (outputs - targets).square().sum(1) / 2,
        gradient=lambda outputs, targets: outputs - targets,
        hessian_diagonal=lambda outputs, targets: torch.ones_like(outputs),
        hessian_root=lambda outputs, targets: torch.diag_embed(torch.ones_like(outputs)),
        takes_labels=False,
    ),
    "cross_entropy": Loss(
        "cross_entropy",
        value=lambda outputs, labels: F.cross_entropy(outputs, labels, reduction="none"),
        gradient=_softmax_gradient,
        hessian_diagonal=_softmax_hessian_diagonal,
        hessian_root=_softmax_hessian_root,
        takes_labels=True,
    ),
}


@dataclass(frozen=True)
class Objective:
    """The mean loss over `inputs` as a function of weights; made by `make_objective`."""

    model: nn.Module
    """A copy in evaluation mode."""
    weights: Params
    """The parameters to differentiate by, at the point of differentiation; weights and biases alike."""
    inputs: Tensor
    """[N, ...]"""
    targets: Tensor
    """Labels [N], or numbers [N, C]."""
    loss: Loss
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None
    """Calls the model on a batch of inputs; None: `model(inputs)`."""

    def outputs(self, weights: Params, inputs: Tensor) -> Tensor:
        """The outputs [B, C] of the model with its parameters replaced by `weights`, for `inputs` [B, ...].

        Args:
            weights: Parameters by name.
            inputs: A batch.

        Returns:
            [B, C]
        """
        model = self.model
        if self.forward is not None:
            model = _ForwardModule(model, self.forward)
            weights = {f"model.{name}": weight for name, weight in weights.items()}
        outputs: Tensor = functional_call(model, weights, (inputs,))
        return outputs

    def error(self, weights: Params) -> Tensor:
        """The mean loss of the model with its parameters replaced by `weights`; differentiable."""
        return self.loss.value(self.outputs(weights, self.inputs), self.targets).mean()

    def replace_weights(self, weights: Params) -> "Objective":
        """The same objective at other weights. Raises NonFiniteError where one is not finite."""
        check_finite(weights, "The weight")
        return replace(
            self,
            model=with_weights(self.model, weights),
            weights={name: weight.detach().clone() for name, weight in weights.items()},
        )


class _ForwardModule(nn.Module):
    """A module whose forward is a function of another module."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.model, inputs)


def make_objective(
    model: nn.Module,
    weights: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: str | Loss = "cross_entropy",
    dtype: torch.dtype | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Objective:
    """The mean loss of `model`, in evaluation mode, on a batch, as a function of `weights`.

    Args:
        model: Any module that maps [B, ...] to outputs [B, C]; copied, so that training it later changes nothing.
        weights: Some of its parameters by name, as `prunable_weights` or `named_parameters` gives them.
        inputs: [N, ...]. Floating-point inputs are converted to `dtype`; integers, such as tokens, are not.
        targets: Labels [N], or numbers [N, C] for squared_error.
        loss: A key of LOSSES, or a Loss.
        dtype: What to compute in; None: the dtype of the weights.
        forward: Calls the model on a batch of inputs; None: `model(inputs)`.

    Returns:
        The objective at the given weights.

    Raises:
        StatisticsError: No example, inputs of a shape that the model does not take, outputs that are not [B, C], or
            targets of the wrong kind.
        NonFiniteError: Inputs, weights or outputs are not finite.
        ModelError: A name that the model does not have, or a weight that the forward pass does not reach.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> objective = make_objective(
    ...     model, dict(model.named_parameters()), torch.ones(1, 2), torch.zeros(1, 1), loss="squared_error"
    ... )
    >>> float(objective.error({"weight": torch.tensor([[2.0, 1.0]])}))
    4.5
    """
    check_is_tensor(inputs)
    parameters = dict(model.named_parameters())
    loss = loss if isinstance(loss, Loss) else lookup("loss", LOSSES, loss)
    for name, weight in weights.items():
        if name not in parameters or parameters[name].shape != weight.shape:
            raise ModelError(
                f"Expected parameters of {type(model).__name__} to differentiate by, got {name!r} of shape "
                f"{tuple(weight.shape)}; it has {[f'{n} {tuple(p.shape)}' for n, p in parameters.items()]}."
            )
    if not weights or not inputs.numel() or len(inputs) != len(targets):
        raise StatisticsError(
            f"Expected at least one weight, and as many targets as inputs, at least one, got weights {list(weights)}, "
            f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}."
        )
    dtype = dtype or next(iter(weights.values())).dtype
    frozen = copied(model).to(dtype).eval().requires_grad_(False)
    objective = Objective(frozen, {}, _cast(inputs, dtype), _cast(targets, dtype), loss, forward)
    objective = objective.replace_weights({name: weight.to(dtype) for name, weight in weights.items()})
    _check(objective)
    return objective


@torch.no_grad()
def _check(objective: Objective) -> None:
    model, inputs = objective.model, objective.inputs
    check_finite({"inputs": inputs}, "The batch of")
    if not objective.loss.takes_labels:
        check_finite({"targets": objective.targets}, "The batch of")
    outputs = run_forward(model, inputs, lambda x: objective.outputs(objective.weights, x))
    check_is_output(model, outputs)
    objective.loss.check(outputs, objective.targets)
    error = objective.loss.value(outputs, objective.targets).mean()
    if not torch.isfinite(error):
        raise NonFiniteError(
            f"Expected a finite error to differentiate, got {float(error)} for {type(model).__name__} on {len(inputs)} "
            "examples."
        )
    check_reached(objective.outputs, objective.weights, inputs)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def flatten_weights(weights: Params) -> Tensor:
    """All entries as one vector [P], in the order of the names."""
    return torch.cat([weight.reshape(-1) for weight in weights.values()])


def unflatten_weights(vector: Tensor, like: Params) -> Params:
    """The inverse of `flatten_weights`.

    Args:
        vector: [P]
        like: Tensors whose names and shapes the result has.

    Returns:
        The entries of `vector`, by name.

    >>> weights = {"a": torch.ones(1, 2), "b": torch.zeros(1)}
    >>> unflatten_weights(flatten_weights(weights), weights)
    {'a': tensor([[1., 1.]]), 'b': tensor([0.])}
    """
    parts = torch.split(vector, [weight.numel() for weight in like.values()])
    return {name: part.reshape(w.shape) for part, (name, w) in zip(parts, like.items(), strict=True)}
