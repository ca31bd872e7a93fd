"""OBD's diagonal: second derivatives carried backwards through the layers at the cost of two gradients.

    d²E/dw_ij² = d²E/da_i² · x_j²                                           (eq. 6)
    d²E/da_i²  = f'(a_i)² Σ_l w_li² d²E/da_l² + f''(a_i) dE/dx_i            (eq. 7)
    h_kk       = the sum over all connections that share parameter k        (a kernel's positions)

Source: LeCun, Denker, Solla 1990, section 3.1. Eq. 7 is printed with minus before f''; the chain rule, and their
own eq. 8, have plus. Means are over the examples.
Also called: diagonal Hessian backpropagation. variant "levenberg_marquardt" drops f'' (their last paragraph of the
section): never negative, a diagonal of the Gauss-Newton kind.
What it leaves out: mixed derivatives between units of a layer. With squared error it is exact for the last layer,
and for a network with one hidden layer that shares no weights; with cross-entropy, for a last layer that shares none,
as a convolution does. (After a last layer nothing but elementwise steps.) Elsewhere it is the paper's approximation.
Where we depart: the loss may be cross-entropy, whose Hessian by the outputs enters by its diagonal p (1 - p);
biases are weights of an input that is one; averages and choices of pooling are linear maps like any other.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from prunus.errors import ModelError
from prunus.pruning.layer_checks import check_layer_output, first_examples
from prunus.pruning.masks import check_finite
from prunus.pruning.second_order.layer_chain import (
    ChainOp,
    pooling_weights,
    trace_chain,
    unsupported_model_error,
)
from prunus.pruning.second_order.objective import Objective
from prunus.pruning.second_order.squared_backward import squared_weight_vjp
from prunus.types import Params, Progress

BATCH = 250
"""Examples at a time, so that memory does not grow with their number."""


def recursion(asked: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
    """The diagonal as the paper's recursion gives it; may be negative. `seed` changes nothing.

    Raises ModelError naming the module where the network is no chain of steps it knows, where a layer does not return
    weight · input + bias, or where a weight is in none of the layers.

    >>> from prunus.pruning.second_order.objective import make_objective
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, d = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
    >>> recursion(make_objective(model, dict(model.named_parameters()), x, d, loss="squared_error"))
    {'weight': tensor([[1., 9.]])}
    """
    return _backwards(asked, True, progress)


def levenberg_marquardt(asked: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
    """The recursion without f'': never negative. `seed` changes nothing. Raises as `recursion` does."""
    return _backwards(asked, False, progress)


@torch.no_grad()
def _backwards(asked: Objective, bent: bool, progress: Progress | None) -> Params:
    steps = trace_chain(asked.model)
    _check_reached(asked, steps)
    total = {name: torch.zeros_like(weight) for name, weight in asked.weights.items()}
    pairs = zip(torch.split(asked.inputs, BATCH), torch.split(asked.targets, BATCH), strict=True)
    for done, (inputs, targets) in enumerate(pairs):
        seen = [inputs]
        for step in steps:
            # A copy, because an activation may work in place.
            seen.append(step.call(seen[-1].clone()))
        if not done:
            _check_steps(asked, steps, seen)
        slope, curve = asked.loss.slope(seen[-1], targets), asked.loss.bend(seen[-1], targets)
        for step, x in zip(reversed(steps), reversed(seen[:-1]), strict=True):
            if step.layer is not None:
                for kind, curvature in _weights(step.layer, x, curve).items():
                    name = f"{step.name}.{kind}".removeprefix(".")
                    if name in total:
                        total[name] += curvature
            slope, curve = _through(step, x, slope, curve, bent)
        if progress:
            progress("batches of the curvature", done + 1, -(-len(asked.inputs) // BATCH))
    result = {name: curvature / len(asked.inputs) for name, curvature in total.items()}
    check_finite(result, "The curvature of")
    return result


def _through(step: ChainOp, x: Tensor, slope: Tensor, curve: Tensor, bent: bool) -> tuple[Tensor, Tensor]:
    """The derivatives by a step's input from those by its output."""
    if step.kind == "elementwise":
        first, second = _derivatives(step.call, x)
        return first * slope, first.square() * curve + (second * slope if bent else 0.0)
    back: Callable[[Tensor], tuple[Tensor]] = vjp(step.call, x)[1]
    if step.layer is not None:
        return back(slope)[0], squared_weight_vjp(step.layer, x, curve)
    if step.kind == "average":
        return back(slope)[0], back(pooling_weights(step.call, x, step.axes) * curve)[0]
    return back(slope)[0], back(curve)[0]


@torch.enable_grad()
def _derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f' and f'' of an elementwise function, everywhere at once."""
    x = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x.clone()).sum(), x, create_graph=True)
    if not first.requires_grad:
        return first, torch.zeros_like(first)
    (second,) = torch.autograd.grad(first.sum(), x, materialize_grads=True)
    return first.detach(), second


def _weights(layer: nn.Module, x: Tensor, curve: Tensor) -> Params:
    """Eq. 6, summed over shared connections and examples: the layer's own backward pass with inputs squared."""
    own = {name: p.detach() for name, p in layer.named_parameters()}
    back = vjp(lambda weights: functional_call(layer, weights, (x.square(),)), own)[1]
    found: Params = back(curve)[0]
    return found


def _check_steps(asked: Objective, steps: list[ChainOp], seen: list[Tensor]) -> None:
    """Raise ModelError where a layer, or the chain as a whole, does not return what the network does: a hook, say."""
    for step, x, output in zip(steps, seen[:-1], seen[1:], strict=True):
        if step.layer is not None:
            name = f"{step.name}.weight".removeprefix(".")
            check_layer_output(name, step.layer, first_examples(step.layer, x), output)
    returned = asked.answer(asked.weights, seen[0])
    off, size = float((returned - seen[-1]).norm()), float(returned.norm())
    if not off <= 1e-3 * size:
        raise unsupported_model_error(
            asked.model,
            f"the chain of its steps does not return what it returns (off by {off:.3g} of {size:.3g})",
        )


def _check_reached(asked: Objective, steps: list[ChainOp]) -> None:
    layers = {step.name for step in steps if step.layer is not None}
    for name in asked.weights:
        if name.rpartition(".")[0] not in layers:
            raise unsupported_model_error(
                asked.model, f"{name!r} belongs to none of the layers it passes, {sorted(layers)}"
            )
    if not steps:
        raise ModelError(f"{type(asked.model).__name__} passes its input on; it has no layer to prune.")
