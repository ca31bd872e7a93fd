"""The Hessian of the error of a layer's output, layer by layer, from the layer's inputs.

    E(W') = (1/N) Σ_n |W x_n - W' x_n|²          H = (2/N) Σ_n x_n x_nᵀ,  the same for every row of W

N examples; a convolution has an x at every position of its output, and their errors are summed. H is summed while the
examples pass through the network, so that memory does not grow with their number. The output of a layer is compared
with W x on the first examples, so that a layer that computes something else (its own padding, a standardized weight, a
hook) is refused.

Source: Dong et al. 2017 (L-OBS); Frantar & Alistarh 2022, eq. 2, H = 2 X Xᵀ. Dividing by N changes no choice, and makes
errors comparable between layers and calibration sets.
Damping: λ I is added before inverting, λ a fraction of the mean of the diagonal (0.01 as Frantar & Alistarh 2023), over
inputs that are not always zero. It is reported, and no other is ever added.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, Calibration, as_examples, iter_tensors
from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.pruning.calibration_checks import (
    check_finite_inputs,
    run_forward,
    uninformative_error,
    unreached_error,
)
from prunus.pruning.layer_checks import NUM_COMPARED_EXAMPLES, check_layer_output, first_examples
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import im2col_batches, to_matrix
from prunus.pruning.weights import with_weights
from prunus.training.outputs import Forward, call_model
from prunus.types import Params, Progress

DAMPING = 0.01
BUFFER_ROWS = 1024
"""The number of inputs that are collected before they are multiplied."""
NUM_COMPARED_CALLS = 4
"""Calls of a layer whose outputs are compared with weight · input."""
STRIPE_ROWS = 512
"""Rows of H that are summed at once, from the diagonal on; the other triangle is the same."""


@dataclass(frozen=True)
class LayerHessian:
    """The Hessian of the error of a layer's output."""

    hessian: Tensor
    """[G, D, D] in float64, undamped: G groups of a convolution (else 1), D the columns of its matrix."""
    damping: float
    """λ, absolute."""
    num_examples: int
    num_vectors: int
    """Number of inputs x; with fewer than D, H is singular and only λ makes it invertible."""

    @property
    def num_zero_inputs(self) -> int:
        """Number of inputs that are zero in every example: their weights have no effect."""
        return int((self.hessian.diagonal(dim1=1, dim2=2) == 0).sum())

    def damped(self) -> Tensor:
        """H + λ I, [G, D, D]."""
        damped = self.hessian.clone()
        damped.diagonal(dim1=1, dim2=2).add_(self.damping)
        return damped

    def error(self, change: Tensor) -> float:
        """(1/N) Σ_n |ΔW x_n|² of a change ΔW of the weight, of the weight's shape."""
        rows = self.rows(change)
        # Rounding can take a sum of squares below zero.
        return max(0.0, float((rows @ self.hessian * rows).sum() / 2))

    def damped_error(self, change: Tensor) -> float:
        """`error` with H + λ I for H."""
        return replace(self, hessian=self.damped()).error(change)

    def row_errors(self, change: Tensor) -> Tensor:
        """The error that each row of the layer's matrix contributes, [G, O / G] in float64."""
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
    inputs: Calibration,
    *,
    damping: float = DAMPING,
    batch_size: int = 100,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> dict[str, LayerHessian]:
    """Pass `inputs` once through a copy of `model` with these weights, and sum H of the layer of each of them.

    Args:
        model: Any module; it is not changed.
        weights: Weights of Linear, Conv1d, Conv2d and Conv3d layers, by name; `views.layer_view` shows other layers
            as these.
        inputs: Calibration examples in any form, on the device of the model.
        damping: λ as a fraction of the mean of H's diagonal.
        batch_size: Examples per forward pass.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        progress: Called after each batch.

    Returns:
        One Hessian per weight.

    Raises:
        StatisticsError: No example, not a tensor, a shape that the model does not take, damping below 0, or a layer
            whose inputs are all zero.
        NonFiniteError: Inputs of the model or of a layer are not finite.
        ModelError: A name that the model does not have, a layer of another kind, one that does not return weight ·
            input + bias, one whose weight is used elsewhere too, or one that the forward pass does not reach.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    >>> hessian = layer_hessians(model, dict(model.named_parameters()), inputs)["weight"]
    >>> hessian.hessian, hessian.damping
    (tensor([[[ 2.,  4.],
             [ 4., 10.]]], dtype=torch.float64), 0.06)
    """
    examples = as_examples(inputs)
    if not 0 <= damping < float("inf"):
        raise StatisticsError(
            f"Expected a damping of at least 0, as a fraction of the mean curvature, got {damping}."
        )
    check_finite_inputs(examples, "calibration", "The inputs for")
    check_finite(weights, "The weight")
    for name in weights:
        _layer_of(model, name)
    model = with_weights(model, weights).eval()
    run = partial(run_forward, model, forward=partial(call_model, model, forward=forward))
    sums = {name: _HessianSum(name, _layer_of(model, name)) for name in weights}
    with ExitStack() as hooks:
        for layer in sums.values():
            hooks.enter_context(layer.module.register_forward_pre_hook(layer.pre_hook, with_kwargs=True))
            hooks.enter_context(layer.module.register_forward_hook(layer.compare_output))
        batches = examples.batches(batch_size)
        for number, batch in enumerate(batches, start=1):
            run(batch)
            if progress:
                progress("calibration batches", number, len(batches))
    hessians = {name: layer.hessian(len(examples), damping) for name, layer in sums.items()}
    layers = {name: layer.module for name, layer in sums.items()}
    _check_used_by_layers_alone(model, layers, examples.take(slice(NUM_COMPARED_EXAMPLES)).batch, run)
    return hessians


class _HessianSum:
    """The sum of x xᵀ over the inputs of one layer."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.num_vectors, self.num_buffered, self.num_calls = 0, 0, 0
        self.first: Tensor | None = None
        """The first examples of the inputs of the present call, where its output is to be compared."""
        self.buffer: Tensor | None = None
        self.total: Tensor | None = None

    def pre_hook(self, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Add the inputs of a call."""
        x = arguments[0] if arguments else named.get("input")
        if not isinstance(x, Tensor):
            raise ModelError(
                f"Expected a tensor as the input of the layer of {self.name!r} ({type(module).__name__}), got "
                f"{'other arguments' if x is None else f'a {type(x).__name__}'}; exclude {self.name!r}."
            )
        if x.shape[-1] != getattr(module, "in_features", x.shape[-1]):
            return  # the layer's own error says more
        self.num_calls += 1
        # Copied, as a forward may write over its input.
        self.first = first_examples(module, x).clone() if self.num_calls <= NUM_COMPARED_CALLS else None
        try:
            self.add(x)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"Expected inputs that a {type(module).__name__} multiplies for the layer of {self.name!r}, got shape "
                f"{tuple(x.shape)} ({next(iter(str(error).splitlines()), '')}); exclude {self.name!r}."
            ) from error

    def compare_output(self, module: nn.Module, arguments: tuple[Tensor, ...], output: object) -> None:
        """Raise ModelError unless the output of a call is weight · input + bias."""
        if self.first is not None:
            check_layer_output(self.name, module, self.first, output)

    def add(self, inputs: Tensor) -> None:
        """Add the layer's inputs of a batch; copied, as the model may write over them."""
        for x in im2col_batches(self.module, inputs):
            count, size = x.shape[1:]
            if self.buffer is None:
                self.buffer = x.new_empty(len(x), max(BUFFER_ROWS, size), size)
            if self.num_buffered + count > self.buffer.shape[1]:
                self.flush()
            if count < self.buffer.shape[1]:
                self.buffer[:, self.num_buffered : self.num_buffered + count] = x
                self.num_buffered += count
            else:
                self.add_products(x)

    def flush(self) -> None:
        """Add the collected inputs: one product of many costs less than many products of few."""
        if self.buffer is not None and self.num_buffered:
            self.add_products(self.buffer[:, : self.num_buffered])
            self.num_buffered = 0

    def add_products(self, x: Tensor) -> None:
        """Add x xᵀ on and above the diagonal; the sum is in float64."""
        groups, count, size = x.shape
        if self.total is None:
            self.total = torch.zeros(groups, size, size, dtype=torch.float64, device=x.device)
        for first in range(0, size, STRIPE_ROWS):
            end = first + STRIPE_ROWS
            self.total[:, first:end, first:] += x[:, :, first:end].mT @ x[:, :, first:]
        self.num_vectors += count

    def hessian(self, num_examples: int, damping: float) -> LayerHessian:
        """The Hessian; ModelError, NonFiniteError or StatisticsError where there is none."""
        self.flush()
        if self.total is None:
            raise unreached_error(self.name)
        hessian = self.total.mul_(2 / num_examples)
        for first in range(0, hessian.shape[1], STRIPE_ROWS):
            end = first + STRIPE_ROWS
            hessian[:, end:, first:end] = hessian[:, first:end, end:].mT
        check_finite({self.name: hessian}, "The calibration inputs of the layer of")
        pivots = hessian.diagonal(dim1=1, dim2=2)
        positive = pivots[pivots > 0]
        if not len(positive):
            raise uninformative_error(
                f"All inputs of the layer of {self.name!r} are zero in all {num_examples} calibration examples"
            )
        return LayerHessian(hessian, damping * float(positive.mean()), num_examples, self.num_vectors)


@torch.enable_grad()
def _check_used_by_layers_alone(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch, run: Callable[[Batch], object]
) -> None:
    """Raise ModelError where the output of `model` depends on a weight in another way than through its layer's output.

    The outputs of the layers are detached (by hooks that stay), so that a gradient of the model's output, or of a
    layer's input, reaches a weight only where something else uses it.
    """
    parameters = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    weights = {name: p.requires_grad_() for name, p in parameters.items() if not p.is_inference()}
    tensors: list[Tensor] = []
    for layer in layers.values():
        layer.register_forward_hook(partial(_detach, tensors), with_kwargs=True)
    tensors += iter_tensors(run(batch))
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    if not tensors or not weights:
        return
    gradients = torch.autograd.grad(
        tensors, list(weights.values()), [torch.ones_like(t) for t in tensors], allow_unused=True
    )
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            raise ModelError(
                f"Expected {name!r} to be used by its layer alone, but the forward pass of {type(model).__name__} uses "
                f"it elsewhere too, so that the error of its layer's output is not all that changes; exclude {name!r}, "
                "or choose a method that uses weights or gradients alone, as magnitude."
            )


def _detach(
    tensors: list[Tensor],
    module: nn.Module,
    arguments: tuple[object, ...],
    named: dict[str, object],
    output: object,
) -> object:
    """Collect the inputs of a layer, and detach its output from them."""
    tensors += iter_tensors((arguments, named))
    return output.detach() if isinstance(output, Tensor) else output


def _layer_of(model: nn.Module, name: str) -> nn.Module:
    path, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ModelError(f"Expected the name of a weight of {type(model).__name__}, got {name!r}.") from None
    if last != "weight" or not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise ModelError(
            f"Expected weights of Linear and convolutional layers to prune layer by layer, but {name!r} is of a "
            f"{type(module).__name__}; exclude {name!r}."
        )
    return module


def relative_output_errors(
    hessians: Mapping[str, LayerHessian], before: Params, after: Params
) -> dict[str, float]:
    """The squared error of each layer's output after a change of weights, relative to it: |ΔW X|² / |W X|².

    Args:
        hessians: By name of the weight.
        before: The weights before the change.
        after: The weights after it.

    Returns:
        One number per weight of `hessians`.

    Raises:
        NonFiniteError: The output of a layer is all zero.
    """
    return {
        name: hessian.error(after[name].detach() - before[name].detach()) / output_norm(name, hessian, before)
        for name, hessian in hessians.items()
    }


def output_norm(name: str, hessian: LayerHessian, weights: Params) -> float:
    """|W X|² / N of a layer; NonFiniteError where its output is zero for all examples.

    Args:
        name: Name of the weight, for the error.
        hessian: Of its layer.
        weights: The weights, by name.

    Returns:
        The mean over the examples.

    Raises:
        NonFiniteError: The output is zero for all examples.
    """
    norm = hessian.error(weights[name])
    if not norm:
        raise NonFiniteError(
            f"Expected an output of the layer of {name!r} that is not zero on all calibration examples, got zero; "
            f"exclude {name!r}."
        )
    return norm
