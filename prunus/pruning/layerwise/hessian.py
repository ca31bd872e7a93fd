"""What the inputs of a layer say of its weights: the Hessian of the error of its output, layer by layer.

    E(W') = (1/N) Σ_n |W x_n - W' x_n|²          H = (2/N) Σ_n x_n x_nᵀ,  the same for every row of W

N examples; a convolution has an x at every place of its output, and their errors are summed. H is gathered while the
examples pass, so that memory does not grow with their number. What a layer returns is compared with W x on the first
examples, so that a layer that computes something else (its own padding, a standardized weight, a hook) is refused.

Source: Dong et al. 2017 (L-OBS); Frantar & Alistarh 2022, eq. 2, H = 2 X Xᵀ. Dividing by N changes no choice, and makes
errors comparable between layers and calibration sets.
Damping: λ I is added before inverting, λ a share of the mean of the diagonal (0.01 as Frantar & Alistarh 2023), over
inputs that are not always zero. It is reported, and no other is ever added.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.pruning.calibration_checks import (
    check_inputs,
    output_tensors,
    run_forward,
    uninformative_error,
    unreached_error,
)
from prunus.pruning.layer_checks import EXAMPLES, check_layer_output, first_examples
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import im2col_batches, to_matrix
from prunus.training.modes import eval_mode
from prunus.types import Params, Progress

DAMPING = 0.01
ROWS = 1024
"""The fewest inputs that are multiplied at once, where there are as many."""
COMPARED = 4
"""Calls of a layer whose outputs are compared with weight · input."""
STRIPE = 512
"""Rows of H that are summed at once, from the diagonal on: what lies on its other side is the same."""


@dataclass(frozen=True)
class LayerHessian:
    """The Hessian of a layer's output error, and what it was made of."""

    hessian: Tensor
    """[G, D, D] in float64, undamped: G groups of a convolution (else 1), D the columns of its matrix."""
    damping: float
    """λ, absolute."""
    examples: int
    vectors: int
    """Inputs x that were seen; with fewer than D, H is singular and only λ makes it invertible."""

    @property
    def dead(self) -> int:
        """Inputs that were zero in every example: their weights have no say."""
        return int((self.hessian.diagonal(dim1=1, dim2=2) == 0).sum())

    def damped(self) -> Tensor:
        """H + λ I, [G, D, D]."""
        damped = self.hessian.clone()
        damped.diagonal(dim1=1, dim2=2).add_(self.damping)
        return damped

    def error(self, change: Tensor) -> float:
        """E of a change of the layer's weight, of the weight's shape: (1/N) Σ_n |ΔW x_n|²."""
        rows = self.rows(change)
        # Rounding can take a sum of squares below zero.
        return max(0.0, float((rows @ self.hessian * rows).sum() / 2))

    def row_errors(self, change: Tensor) -> Tensor:
        """The part of E that each row of the layer's matrix has, [G, O / G] in float64."""
        rows = self.rows(change)
        return (rows @ self.hessian * rows).sum(2).clamp(min=0) / 2

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as [G, O / G, D] in float64."""
        matrix = to_matrix(weight.detach()).double()
        return matrix.reshape(len(self.hessian), -1, matrix.shape[1])


@torch.no_grad()
def layer_hessians(
    model: nn.Module,
    weights: Params,
    inputs: Tensor,
    *,
    damping: float = DAMPING,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> dict[str, LayerHessian]:
    """One forward pass of `inputs` through `model`, in evaluation mode, gathering H of each of `weights`.

    Args:
        model: any module; the modes of all its modules are restored.
        weights: by name, `prunable(model)`: of Linear, Conv1d and Conv2d layers.
        inputs: calibration examples [N, ...], on the device of the model.
        damping: λ as a share of the mean of H's diagonal.
        batch_size: examples a forward pass.
        progress: called after each batch.

    Raises StatisticsError (no example, no tensor, a shape the model does not take, damping below 0, a layer whose inputs
    are all zero), NonFiniteError (inputs, of the model or of a layer), ModelError (a layer of another kind, one
    that does not return weight · input + bias, one whose weight is used elsewhere too, or one that the forward pass
    does not reach).

    >>> model = nn.Linear(2, 1, bias=False)
    >>> found = layer_hessians(model, dict(model.named_parameters()), torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
    >>> found["weight"].hessian, found["weight"].damping
    (tensor([[[ 2.,  4.],
             [ 4., 10.]]], dtype=torch.float64), 0.06)
    """
    check_inputs(inputs)
    if not 0 <= damping < float("inf"):
        raise StatisticsError(f"Damping {damping} was asked for; it must be 0 or a share of H, as in 0.01.")
    check_finite({"calibration": inputs}, "The inputs for")
    grams = {name: _Gram(name, _module(model, name)) for name in weights}
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        for gram in grams.values():
            stack.enter_context(gram.module.register_forward_pre_hook(partial(_seen, gram), with_kwargs=True))
            stack.enter_context(gram.module.register_forward_hook(partial(_compare, gram)))
        batches = torch.split(inputs, batch_size)
        for number, batch in enumerate(batches, start=1):
            run_forward(model, batch, model)
            if progress:
                progress("calibration batches", number, len(batches))
    found = {name: gram.finished(len(inputs), damping) for name, gram in grams.items()}
    with eval_mode(model):
        _check_used_by_layers_alone(model, {name: gram.module for name, gram in grams.items()}, inputs)
    return found


class _Gram:
    """The sum of x xᵀ over what one layer is given."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.vectors, self.held, self.calls = 0, 0, 0
        self.first: Tensor | None = None
        """The first examples of the inputs of the present call, where its output is to be compared."""
        self.waiting: Tensor | None = None
        self.total: Tensor | None = None

    def add(self, given: Tensor) -> None:
        """Take the layer's input of a batch; copied, as the model may write over it."""
        for x in im2col_batches(self.module, given):
            count, size = x.shape[1:]
            if self.waiting is None:
                self.waiting = x.new_empty(len(x), max(ROWS, size), size)
            if self.held + count > self.waiting.shape[1]:
                self.flush()
            if count < self.waiting.shape[1]:
                self.waiting[:, self.held : self.held + count] = x
                self.held += count
            else:
                self.multiply(x)

    def flush(self) -> None:
        """A product of many inputs costs less than many of few."""
        if self.waiting is not None and self.held:
            self.multiply(self.waiting[:, : self.held])
            self.held = 0

    def multiply(self, x: Tensor) -> None:
        """Add what is on and above the diagonal; the sum is kept in float64."""
        groups, count, size = x.shape
        if self.total is None:
            self.total = torch.zeros(groups, size, size, dtype=torch.float64, device=x.device)
        for first in range(0, size, STRIPE):
            end = first + STRIPE
            self.total[:, first:end, first:] += x[:, :, first:end].mT @ x[:, :, first:]
        self.vectors += count

    def finished(self, examples: int, damping: float) -> LayerHessian:
        """H; ModelError, NonFiniteError, StatisticsError."""
        self.flush()
        if self.total is None:
            raise unreached_error(self.name)
        hessian = self.total.mul_(2 / examples)
        for first in range(0, hessian.shape[1], STRIPE):
            end = first + STRIPE
            hessian[:, end:, first:end] = hessian[:, first:end, end:].mT
        check_finite({self.name: hessian}, "The calibration inputs of the layer of")
        pivots = hessian.diagonal(dim1=1, dim2=2)
        alive = pivots[pivots > 0]
        if not len(alive):
            raise uninformative_error(
                f"All inputs of the layer of {self.name!r} are zero in all {examples} calibration examples"
            )
        return LayerHessian(hessian, damping * float(alive.mean()), examples, self.vectors)


def _seen(gram: _Gram, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    given = arguments[0] if arguments else named.get("input")
    if not isinstance(given, Tensor):
        raise ModelError(
            f"Expected the layer of {gram.name!r} ({type(module).__name__}) to be given a tensor, got "
            f"{'other arguments' if given is None else f'a {type(given).__name__}'}; exclude {gram.name!r}."
        )
    if given.shape[-1] != getattr(module, "in_features", given.shape[-1]):
        return  # the layer's own error says more
    gram.calls += 1
    # Copied, as a forward may write over its input.
    gram.first = first_examples(module, given).clone() if gram.calls <= COMPARED else None
    try:
        gram.add(given)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelError(
            f"The inputs of the layer of {gram.name!r} ({type(module).__name__}), of shape {tuple(given.shape)}, are "
            f"not what its type multiplies ({next(iter(str(error).splitlines()), '')}); exclude {gram.name!r}."
        ) from error


def _compare(gram: _Gram, module: nn.Module, arguments: tuple[Tensor, ...], output: object) -> None:
    if gram.first is not None:
        check_layer_output(gram.name, module, gram.first, output)


@torch.enable_grad()
def _check_used_by_layers_alone(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> None:
    """Raise ModelError where the output of `model` depends on a weight in another way than through its layer's output.

    The outputs of the layers are detached, so that a gradient of the model's output, or of what a layer is given,
    reaches a weight only where something else uses it.
    """
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    weights = {name: weight for name, weight in weights.items() if not weight.is_inference()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    read: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(layer.register_forward_hook(partial(_detach, read), with_kwargs=True))
        for weight in frozen:
            stack.callback(weight.requires_grad_, False)
            weight.requires_grad_()
        read += output_tensors(run_forward(model, inputs[:EXAMPLES], model))
        read = [tensor for tensor in read if tensor.requires_grad]
        if not read or not weights:
            return
        gradients = torch.autograd.grad(
            read, list(weights.values()), [torch.ones_like(t) for t in read], allow_unused=True
        )
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            raise ModelError(
                f"Expected {name!r} to be used by its layer alone, but the forward pass of {type(model).__name__} uses "
                f"it elsewhere too, so that the error of its layer's output is not all that changes; exclude {name!r}, "
                "or choose a method that uses weights or gradients alone, as magnitude."
            )


def _detach(
    read: list[Tensor],
    module: nn.Module,
    arguments: tuple[object, ...],
    named: dict[str, object],
    output: object,
) -> object:
    """Note what a layer was given, and cut its output off from it."""
    read += output_tensors((arguments, named))
    return output.detach() if isinstance(output, Tensor) else output


def _module(model: nn.Module, name: str) -> nn.Module:
    path, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ModelError(f"{type(model).__name__} has no layer of the name {name!r}.") from None
    if last != "weight" or not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        raise ModelError(
            f"Layer by layer, weights of Linear, Conv1d and Conv2d can be pruned; {name!r} is of a "
            f"{type(module).__name__}: exclude {name!r} to leave it out."
        )
    return module


def relative_output_errors(
    found: Mapping[str, LayerHessian], before: Params, after: Params
) -> dict[str, float]:
    """What a change of weights does to the output of each layer, as a share of the output: |ΔW X|² / |W X|².

    Raises NonFiniteError where a layer whose output is all zero is asked.
    """
    shares = {}
    for name, inputs in found.items():
        whole = inputs.error(before[name])
        if not whole:
            raise NonFiniteError(f"The layer of {name!r} answers all calibration examples with zero.")
        shares[name] = inputs.error(after[name].detach() - before[name].detach()) / whole
    return shares
