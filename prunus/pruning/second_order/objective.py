"""An objective: the mean error of a network on examples, as a function of some of its parameters."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.pruning.calibration_checks import check_is_output, check_is_tensor, check_reached, run_forward
from prunus.pruning.masks import check_finite
from prunus.pruning.second_order.losses import LOSSES, Loss
from prunus.pruning.weights import copied, with_weights
from prunus.registry import lookup
from prunus.types import Params


@dataclass(frozen=True)
class Objective:
    """E(weights) = the mean loss over `inputs`; made by `objective`, which explains the parts."""

    model: nn.Module
    """In evaluation mode, a copy."""
    weights: Params
    """The parameters that second derivatives are asked of, where they are asked; weights and biases alike."""
    inputs: Tensor
    targets: Tensor
    loss: Loss

    def answer(self, weights: Params, inputs: Tensor) -> Tensor:
        """The outputs [B, C] with `weights` in their places."""
        outputs: Tensor = functional_call(self.model, weights, (inputs,))
        return outputs

    def error(self, weights: Params) -> Tensor:
        """The mean loss with `weights` in their places; differentiable."""
        return self.loss.value(self.answer(weights, self.inputs), self.targets).mean()

    def at(self, weights: Params) -> "Objective":
        """The same objective, to be asked at other weights; NonFiniteError."""
        check_finite(weights, "The weight")
        return replace(
            self,
            model=with_weights(self.model, weights),
            weights={n: w.detach().clone() for n, w in weights.items()},
        )


def make_objective(
    model: nn.Module,
    weights: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: str = "cross_entropy",
    dtype: torch.dtype | None = None,
) -> Objective:
    """The mean loss of `model`, in evaluation mode, on a batch, as a function of `weights`.

    Args:
        model: any module that answers [B, ...] with [B, C]; copied, so that training it later changes nothing.
        weights: some of its parameters by name, `prunable(model)` or `dict(model.named_parameters())`.
        inputs, targets: [B, ...] and labels [B], or numbers [B, C] for squared_error. Floating-point inputs are
            converted to `dtype`; integers, as of tokens, stay integers.
        loss: a key of LOSSES.
        dtype: what to compute in; None: the dtype of the model.

    Raises StatisticsError (no example, inputs of a shape the model does not take, answers that are no [B, C],
    targets of the wrong kind), NonFiniteError (inputs, weights, answers), ModelError (a name that the model has
    not, a weight that the forward pass does not reach).

    >>> model = nn.Linear(2, 1, bias=False)
    >>> asked = make_objective(model, dict(model.named_parameters()), torch.ones(1, 2), torch.zeros(1, 1),
    ...                   loss="squared_error")
    >>> float(asked.error({"weight": torch.tensor([[2.0, 1.0]])}))
    4.5
    """
    check_is_tensor(inputs)
    own, chosen = dict(model.named_parameters()), lookup("loss", LOSSES, loss)
    for name, weight in weights.items():
        if name not in own or own[name].shape != weight.shape:
            raise ModelError(
                f"Second derivatives by {name!r} of shape {tuple(weight.shape)} were asked, but "
                f"{type(model).__name__} has {[f'{n} {tuple(p.shape)}' for n, p in own.items()]}."
            )
    if not weights or not inputs.numel() or len(inputs) != len(targets):
        raise StatisticsError(
            f"Second derivatives by {list(weights)} were asked on inputs {tuple(inputs.shape)} and targets "
            f"{tuple(targets.shape)}; name at least one weight and pass as many targets as inputs, at least one."
        )
    dtype = dtype or next(iter(weights.values())).dtype
    frozen = copied(model).to(dtype).eval().requires_grad_(False)
    given = Objective(frozen, {}, _cast(inputs, dtype), _cast(targets, dtype), chosen)
    made = given.at({name: weight.to(dtype) for name, weight in weights.items()})
    _check(made)
    return made


@torch.no_grad()
def _check(made: Objective) -> None:
    check_finite({"inputs": made.inputs}, "The batch of")
    if not made.loss.labeled:
        check_finite({"targets": made.targets}, "The batch of")
    answers = run_forward(made.model, made.inputs, lambda x: made.answer(made.weights, x))
    check_is_output(made.model, answers)
    made.loss.check(answers, made.targets)
    error = made.loss.value(answers, made.targets).mean()
    if not torch.isfinite(error):
        raise NonFiniteError(
            f"The error of {type(made.model).__name__} on {len(made.inputs)} examples is {float(error)}; "
            "second derivatives are of a finite error alone."
        )
    check_reached(made.answer, made.weights, made.inputs)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
