"""The diagonal of a Hessian, in four ways that are chosen by name.

    recursion             OBD's, through a chain of layers; costs two gradients
    levenberg_marquardt   the same without f'': never negative
    exact                 a Hessian-vector product per weight, any network
    hutchinson            the mean of v ∘ H v over random signs v, any network; one product per sample

The recursion:

    d²E/dw_ij² = d²E/da_i² · x_j²                                           (eq. 6)
    d²E/da_i²  = f'(a_i)² Σ_l w_li² d²E/da_l² + f''(a_i) dE/dx_i            (eq. 7)
    h_kk       = the sum over all connections that share parameter k        (a kernel's positions)

    layer                      h_x = (W ∘ W)ᵀ h_a
    elementwise, BatchNorm     h_x = f'² h_y + f'' g_y
    max pooling, flatten       h_x = h_y, passed back to the input it was copied from
    average pooling            h_x = Σ s² h_y, s the weight of an input in a window

g and h are the first derivative and the diagonal of the second derivative of the error.

Source: LeCun, Denker, Solla 1990, eqs. 6 to 8 (the first two); Pearlmutter 1994 (H v); Hutchinson 1990, Bekas et al.
2007 (the last). Eq. 7 is printed with minus before f''; the chain rule, and their own eq. 8, have plus. Means are over
the examples. "levenberg_marquardt" drops f'' (last paragraph of the section): a diagonal of the Gauss-Newton kind.
Also called: diagonal Hessian backpropagation.
What the recursion leaves out: mixed derivatives between units of a layer. With squared error it is exact for the last
layer, and for a network with one hidden layer that shares no weights; with cross-entropy, for a last layer that shares
none, as a convolution does. (After a last layer nothing but elementwise operations.) Elsewhere it is the paper's
approximation. The variance of an entry of hutchinson is Σ_{j≠i} H_ij² / samples: it may be negative, and large where
weights are correlated.
Differences from the paper: the loss may be cross-entropy, whose Hessian by the outputs enters by its diagonal
p (1 - p); biases are weights of an input that is one; averages and choices of pooling are linear maps like any other.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from prunus.data.examples import Batch, inputs_of
from prunus.errors import ModelError, PrunusError, reason_of
from prunus.pruning.layer_checks import check_layer_output, first_examples
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import im2col_batches
from prunus.pruning.obs.chain import ChainStep, layer_chain
from prunus.pruning.obs.objective import Objective, flatten_weights, unflatten_weights
from prunus.pruning.progress import tracked
from prunus.seeds import make_generator
from prunus.types import Params, Progress

NUM_PRODUCTS_AT_ONCE = 32
"""Hessian-vector products."""
BATCH_SIZE = 250
"""Examples of the recursion at a time, so that memory does not grow with their number."""
NUM_SAMPLES = 200


class Diagonal(Protocol):
    """(objective, seed=0, progress=None) -> d²E/dw² of every weight, of the weight's shape."""

    def __call__(self, objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
        """The diagonal at the weights of the objective."""


def exact(objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
    """The true diagonal, up to rounding: e_q · H e_q for every weight q.

    Args:
        objective: The error and its weights.
        seed: Unused.
        progress: Called after each batch of weights.

    Returns:
        d²E/dw², of the shapes of the weights.

    Raises:
        NonFiniteError: A second derivative is not finite.

    >>> from prunus.pruning.obs.objective import make_objective
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, d = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
    >>> exact(make_objective(model, dict(model.named_parameters()), x, d, loss="squared_error"))
    {'weight': tensor([[1., 9.]])}
    """
    w = flatten_weights(objective.weights)

    def entry(index: Tensor) -> Tensor:
        basis = torch.zeros_like(w).scatter(0, index.reshape(1), 1.0)
        return basis @ hessian_vector_product(objective, basis)

    parts = []
    batches = torch.split(torch.arange(len(w), device=w.device), NUM_PRODUCTS_AT_ONCE)
    for indices in tracked(batches, "batches of the diagonal", progress):
        parts.append(vmap(entry)(indices))
    return _check_diagonal(unflatten_weights(torch.cat(parts), objective.weights))


def hutchinson(
    objective: Objective, *, seed: int = 0, num_samples: int = NUM_SAMPLES, progress: Progress | None = None
) -> Params:
    """An unbiased estimate of the diagonal from random sign vectors.

    Args:
        objective: The error and its weights.
        seed: Seed of the signs.
        num_samples: Number of sign vectors.
        progress: Called after each sample.

    Returns:
        An estimate of d²E/dw², of the shapes of the weights.

    Raises:
        NonFiniteError: A second derivative is not finite.
    """
    w, generator = flatten_weights(objective.weights), make_generator(seed, "hutchinson")
    total = torch.zeros_like(w)
    for _ in tracked(range(num_samples), "samples of the diagonal", progress):
        signs = (torch.randint(2, w.shape, generator=generator) * 2 - 1).to(w)
        total += signs * hessian_vector_product(objective, signs)
    return _check_diagonal(unflatten_weights(total / num_samples, objective.weights))


def hessian_vector_product(objective: Objective, direction: Tensor) -> Tensor:
    """The Hessian times a vector [P] over all weights, by differentiating the gradient.

    Args:
        objective: The error and its weights.
        direction: The vector.

    Returns:
        H v, [P].

    Raises:
        ModelError: The loss cannot be differentiated twice.
    """

    def error(vector: Tensor) -> Tensor:
        return objective.error(unflatten_weights(vector, objective.weights))

    try:
        # Backward twice: forward-mode differentiation warns on its first use, and a Hessian is symmetric.
        result: Tensor = vjp(grad(error), flatten_weights(objective.weights))[1](direction)[0]
    except (PrunusError, torch.OutOfMemoryError):
        raise
    except RuntimeError as cause:
        raise ModelError(
            f"The loss of {type(objective.model).__name__} cannot be differentiated twice "
            f"({reason_of(cause)[:80]}); choose another method, such as fisher."
        ) from cause
    return result


def _check_diagonal(diagonal: Params) -> Params:
    check_finite(diagonal, "The curvature of")
    return {name: curvature.detach() for name, curvature in diagonal.items()}


def recursion(objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
    """The diagonal by the paper's recursion; may be negative.

    Args:
        objective: The error of a chain of layers, and weights of these layers.
        seed: Unused.
        progress: Called after each batch of examples.

    Returns:
        d²E/dw², of the shapes of the weights.

    Raises:
        ModelError: The network is not a chain of known operations, a layer does not return weight · input + bias, or a
            weight is in none of the layers; the error names it.
        NonFiniteError: A second derivative is not finite.

    >>> from prunus.pruning.obs.objective import make_objective
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, d = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
    >>> recursion(make_objective(model, dict(model.named_parameters()), x, d, loss="squared_error"))
    {'weight': tensor([[1., 9.]])}
    """
    return _pass_backward(objective, True, progress)


def levenberg_marquardt(objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
    """The recursion without f'': never negative.

    Args:
        objective: The error of a chain of layers, and weights of these layers.
        seed: Unused.
        progress: Called after each batch of examples.

    Returns:
        The approximation of d²E/dw², of the shapes of the weights.

    Raises:
        ModelError: The network is not a chain of known operations, a layer does not return weight · input + bias, or a
            weight is in none of the layers; the error names it.
        NonFiniteError: A second derivative is not finite.
    """
    return _pass_backward(objective, False, progress)


@torch.no_grad()
def _pass_backward(objective: Objective, with_second: bool, progress: Progress | None) -> Params:
    try:
        steps = layer_chain(objective.graph, objective.model)
    except ModelError as error:
        raise _unsupported(objective.model, str(error)) from error
    _check_layers(objective, steps)
    total = {name: torch.zeros_like(weight) for name, weight in objective.weights.items()}
    loss, num_examples = objective.differentiable_loss, len(objective.examples)
    batches = objective.labeled_batches(BATCH_SIZE)
    for number, (batch, targets) in enumerate(tracked(batches, "batches of the curvature", progress)):
        values = [inputs_of(batch)]
        for step in steps:
            # A copy, because an activation may work in place.
            values.append(step.call(values[-1].clone()))
        if number == 0:
            _check_values(objective, steps, values, batch)
        gradient = loss.gradient(values[-1], targets)
        curvature = loss.hessian_diagonal(values[-1], targets)
        for step, x in zip(reversed(steps), reversed(values[:-1]), strict=True):
            if step.layer is not None:
                for kind, second in _weight_curvature(step.layer, x, curvature).items():
                    name = f"{step.name}.{kind}".removeprefix(".")
                    if name in total:
                        total[name] += second
            gradient, curvature = _step_backward(step, x, gradient, curvature, with_second)
    result = {name: curvature / num_examples for name, curvature in total.items()}
    check_finite(result, "The curvature of")
    return result


def _step_backward(
    step: ChainStep, x: Tensor, gradient: Tensor, curvature: Tensor, with_second: bool
) -> tuple[Tensor, Tensor]:
    """The derivatives by a step's input from those by its output."""
    if step.kind in ("elementwise", "norm"):
        first, second = _derivatives(step.call, x)
        return first * gradient, first.square() * curvature + (second * gradient if with_second else 0.0)
    backward: Callable[[Tensor], tuple[Tensor]] = vjp(step.call, x)[1]
    if step.layer is not None:
        return backward(gradient)[0], squared_weight_vjp(step.layer, x, curvature)
    if step.kind == "avg pool":
        return backward(gradient)[0], backward(pooling_weights(step.call, x, step.num_axes) * curvature)[0]
    return backward(gradient)[0], backward(curvature)[0]


@torch.enable_grad()
def _derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f' and f'' of an elementwise function, everywhere at once."""
    x = x.detach().clone().requires_grad_()
    total = function(x.clone()).sum()
    if not total.requires_grad:  # steps such as rounding
        return torch.zeros_like(x), torch.zeros_like(x)
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    if not first.requires_grad:
        return first, torch.zeros_like(first)
    (second,) = torch.autograd.grad(first.sum(), x, materialize_grads=True)
    return first.detach(), second


def _weight_curvature(layer: nn.Module, x: Tensor, curvature: Tensor) -> Params:
    """Eq. 6, summed over shared connections and examples: the layer's own backward pass with inputs squared."""
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    backward = vjp(lambda weights: functional_call(layer, weights, (x.square(),)), parameters)[1]
    result: Params = backward(curvature)[0]
    return result


def squared_weight_vjp(layer: nn.Module, x: Tensor, curvature: Tensor) -> Tensor:
    """Σ_l w_li² h_l for every input i of a layer, through the layer's own backward pass.

    w_li is the derivative of output l by input i. Where padding repeats an input within a window (replicate, reflect,
    or circular around a small image), the kernel positions over it are one connection, and w_li is their sum:

        (Σ_k w_k)² = Σ_k w_k (Σ_k' w_k')        k, k' the kernel positions over input i

    so that the kernel of such a window is w_k Σ_k' w_k', and windows that padding makes alike are processed together.

    Args:
        layer: Linear, Conv1d or Conv2d.
        x: Its input.
        curvature: h, of the shape of its output.

    Returns:
        Of the shape of `x`.

    >>> layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 2.0, 3.0]]]))
    >>> squared_weight_vjp(layer, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))  # (1 + 2)² + 1², 3² + (2 + 3)²
    tensor([[[10., 34.]]])
    """
    weight = layer.get_parameter("weight").detach()
    if not isinstance(layer, nn.Conv1d | nn.Conv2d) or layer.padding_mode == "zeros":
        return _input_vjp(layer, weight.square(), x, curvature)
    flat, total = weight.flatten(2), torch.zeros_like(x)
    for same_input, windows in _window_kinds(layer, x):
        merged = (flat * (flat @ same_input.to(flat.dtype))).reshape(weight.shape)
        total += _input_vjp(layer, merged, x, curvature * windows.reshape(curvature.shape[2:]))
    return total


def _input_vjp(layer: nn.Module, weight: Tensor, x: Tensor, curvature: Tensor) -> Tensor:
    result: Tensor = vjp(lambda z: functional_call(layer, {"weight": weight}, (z,)), x)[1](curvature)[0]
    return result


def _window_kinds(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every kind of window: which kernel positions are over the same input, [K, K], and which windows, [L]."""
    size = x.shape[2:]
    # Float64 distinguishes all inputs of a channel, and channels are padded alike: the first is enough.
    inputs = torch.arange(size.numel(), dtype=torch.float64, device=x.device).reshape(1, 1, *size)
    windows = torch.cat(list(im2col_batches(layer, inputs.expand(1, layer.in_channels, *size))), 1)
    windows = windows[0, :, :: layer.in_channels // layer.groups]
    first = (windows.unsqueeze(2) == windows.unsqueeze(1)).byte().argmax(2)
    kinds, kind_of = torch.unique(first, dim=0, return_inverse=True)
    for kind, positions in enumerate(kinds):
        yield positions.unsqueeze(1) == positions, kind_of == kind


def pooling_weights(call: Callable[[Tensor], Tensor], x: Tensor, num_axes: int) -> Tensor:
    """The weight of each input in a window of an average pooling, by the position of the output.

    Windows are rectangles, so that the weight at (i, j) is (i, 0) · (0, j) / (0, 0), and the first row and column
    determine all: whatever stride, padding, divisor or rounding there is.

    Args:
        call: The pooling.
        x: Its input.
        num_axes: The number of last axes that it pools.

    Returns:
        [L] or [H, W] of the output.

    >>> pooling_weights(nn.AvgPool2d(2, ceil_mode=True), torch.ones(1, 1, 3, 3), 2).tolist()
    [[0.25, 0.5], [0.5, 1.0]]
    """
    size = call(x.new_zeros(1, 1, *x.shape[-num_axes:])).shape[2:]
    selectors = []
    for axis, length in enumerate(size):
        selector = x.new_zeros(length, 1, *size)
        index = (range(length) if other == axis else 0 for other in range(num_axes))
        selector[(range(length), 0, *index)] = 1
        selectors.append(selector)
    blank = x.new_zeros(sum(size), 1, *x.shape[-num_axes:])
    largest = torch.func.vjp(call, blank)[1](torch.cat(selectors))[0].flatten(1).amax(1)
    weights, *others = torch.split(largest, list(size))
    for other in others:
        weights = weights.unsqueeze(-1) * other / other[0]
    return weights


def _unsupported(model: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"The curvature recursion does not support {type(model).__name__}: {why}; it supports a chain of Linear, "
        "Conv1d, Conv2d, pooling, flatten, BatchNorm and elementwise activations. For other networks choose "
        "the criterion 'obd_hutchinson', which estimates the diagonal for any network."
    )


def _check_values(objective: Objective, steps: list[ChainStep], values: list[Tensor], batch: Batch) -> None:
    """Raise ModelError where a layer, or the chain as a whole, does not return the outputs of the network."""
    for step, x, output in zip(steps, values[:-1], values[1:], strict=True):
        if step.layer is not None:
            name = f"{step.name}.weight".removeprefix(".")
            check_layer_output(name, step.layer, first_examples(step.layer, x), output)
    outputs = objective.outputs(objective.weights, batch)
    difference, size = float((outputs - values[-1]).norm()), float(outputs.norm())
    if not difference <= 1e-3 * size:
        raise _unsupported(
            objective.model,
            f"the chain of its operations does not return its outputs (off by {difference:.3g} of {size:.3g})",
        )


def _check_layers(objective: Objective, steps: list[ChainStep]) -> None:
    """Raise ModelError where a weight is in none of the layers."""
    layers = {step.name for step in steps if step.layer is not None}
    for name in objective.weights:
        if name.rpartition(".")[0] not in layers:
            raise _unsupported(objective.model, f"{name!r} belongs to none of its layers, {sorted(layers)}")


DIAGONALS: dict[str, Diagonal] = {
    "recursion": recursion,
    "levenberg_marquardt": levenberg_marquardt,
    "exact": exact,
    "hutchinson": hutchinson,
}
