"""A network as a chain of steps, each of which knows how curvature passes backwards through it.

    layer        Linear, Conv1d, Conv2d          h_x = (W ∘ W)ᵀ h_a
    elementwise  activations, BatchNorm, ×, +    h_x = f'² h_y + f'' g_y
    choice       max-pooling, flatten, dropout   h_x = h_y, carried back to the input it was copied from
    average      average pooling                 h_x = Σ s² h_y, s an input's share of a window

g and h are the first and the (diagonal of the) second derivative of the error. The chain is found by tracing the
network symbolically (torch.fx), so that functions and methods in a `forward` count as modules do.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.errors import ModelError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardtanh, nn.ReLU6, nn.Hardswish,
)  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CHOICES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip
AVERAGES: dict[Any, int] = {
    **dict.fromkeys((nn.AvgPool1d, nn.AdaptiveAvgPool1d, F.avg_pool1d, F.adaptive_avg_pool1d), 1),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d), 2),
}
"""Modules and functions, and how many axes they pool, which are the last."""

FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys(
        (torch.relu, torch.tanh, torch.sigmoid, F.relu, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish,
         F.tanh, F.sigmoid, F.softplus, F.softsign, F.logsigmoid, F.hardtanh, F.relu6, F.celu, torch.celu, torch.selu,
         F.tanhshrink, F.hardswish, operator.mul, operator.add, operator.sub, operator.truediv,
         operator.neg, "relu", "tanh", "sigmoid"),
        "elementwise",
    ),
    **dict.fromkeys(
        (F.max_pool1d, torch.max_pool1d, F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool1d,
         F.adaptive_max_pool2d, torch.flatten, F.dropout, "flatten"),
        "choice",
    ),
    **dict.fromkeys(AVERAGES, "average"),
}  # fmt: skip
"""What a graph may call besides modules: functions, and methods of a tensor by name."""


@dataclass(frozen=True)
class ChainOp:
    """One step of the chain."""

    name: str
    """The module's name where there is one, else the graph's."""
    kind: str
    """"layer", "elementwise", "choice" or "average"."""
    call: Callable[[Tensor], Tensor]
    layer: nn.Module | None = None
    axes: int = 0
    """How many axes an average pools."""


def trace_chain(model: nn.Module) -> list[ChainOp]:
    """The steps of `model`, first to last. Raises ModelError naming what is no step of a chain."""
    whole = _of_module(model, "", model)
    if whole is not None:
        return [whole]
    try:
        graph = fx.Tracer().trace(model)
    except (Exception, SystemExit) as error:  # a forward may do anything while it is traced
        raise unsupported_model_error(model, f"its forward cannot be traced ({error})") from error
    steps: list[ChainOp] = []
    before: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if before is not None:
                raise unsupported_model_error(model, f"its forward takes a second input, {node.name!r}")
        elif node.all_input_nodes != [before]:
            raise unsupported_model_error(
                model, f"{_described(model, node)} takes more than the output of the step before it"
            )
        elif node.op != "output":
            steps.append(_step(model, node))
        before = node
    return steps


def unsupported_model_error(model: nn.Module, why: str) -> ModelError:
    """The error for a network that no recursion can walk."""
    return ModelError(
        f"The curvature recursion cannot walk {type(model).__name__}: {why}; it walks a chain of Linear, Conv1d, "
        "Conv2d, pooling, flatten, BatchNorm and elementwise activations. For other networks choose "
        "DIAGONALS['exact'] or DIAGONALS['hutchinson']."
    )


def pooling_weights(call: Callable[[Tensor], Tensor], x: Tensor, axes: int) -> Tensor:
    """What an average pooling of the last `axes` axes weighs the inputs of each window with: [L] or [H, W] of output.

    Windows are rectangles, so that the share at (i, j) is (i, 0) · (0, j) / (0, 0), and the first row and column
    tell all: whatever stride, padding, divisor or rounding there is.

    >>> pooling_weights(nn.AvgPool2d(2, ceil_mode=True), torch.ones(1, 1, 3, 3), 2).tolist()
    [[0.25, 0.5], [0.5, 1.0]]
    """
    size = call(x.new_zeros(1, 1, *x.shape[-axes:])).shape[2:]
    asked = []
    for axis, length in enumerate(size):
        along = x.new_zeros(length, 1, *size)
        along[(range(length), 0, *(range(length) if other == axis else 0 for other in range(axes)))] = 1
        asked.append(along)
    blank = x.new_zeros(sum(size), 1, *x.shape[-axes:])
    found = torch.func.vjp(call, blank)[1](torch.cat(asked))[0].flatten(1).amax(1)
    share, *others = torch.split(found, list(size))
    for other in others:
        share = share.unsqueeze(-1) * other / other[0]
    return share


def _step(model: nn.Module, node: fx.Node) -> ChainOp:
    if node.op == "call_module":
        step = _of_module(model, str(node.target), model.get_submodule(str(node.target)))
        if step is not None:
            return step
    elif node.op in ("call_function", "call_method") and FUNCTIONS.get(node.target):
        return ChainOp(node.name, FUNCTIONS[node.target], _calling(node), axes=AVERAGES.get(node.target, 0))
    raise unsupported_model_error(model, f"it has no rule for {_described(model, node)}")


def _of_module(model: nn.Module, name: str, module: nn.Module) -> ChainOp | None:
    """The step that `module` is; None where there is no rule for it."""
    averages = tuple(AVERAGES)
    kinds = {LAYERS: "layer", ACTIVATIONS + NORMS: "elementwise", CHOICES: "choice", averages: "average"}
    for types, kind in kinds.items():
        # Not isinstance: a subclass may compute something else.
        if type(module) in types:
            if isinstance(module, NORMS) and module.running_mean is None:
                raise unsupported_model_error(
                    model, f"{name!r} has no running statistics, so that examples depend on each other"
                )
            layer = module if kind == "layer" else None
            return ChainOp(name, kind, module, layer, axes=AVERAGES.get(type(module), 0))
    return None


def _calling(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The node as a function of its one tensor."""

    def call(x: Tensor) -> Tensor:
        # In evaluation mode a traced F.dropout has `training=False` as a constant of the graph.
        arguments = [x if argument is node.all_input_nodes[0] else argument for argument in node.args]
        named = {k: x if v is node.all_input_nodes[0] else v for k, v in node.kwargs.items()}
        function = getattr(x, node.target) if isinstance(node.target, str) else node.target
        result: Tensor = function(*(arguments[1:] if isinstance(node.target, str) else arguments), **named)
        return result

    return call


def _described(model: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target!r} ({type(model.get_submodule(str(node.target))).__name__})"
    return f"{node.name!r} ({getattr(node.target, '__name__', node.target)})"
