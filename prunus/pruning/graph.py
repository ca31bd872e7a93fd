"""The traced graph of a model: which layer follows which, and what kind of operation is between them.

`layer_pairs`     pairs of layers where the outputs of the one are the inputs of the other, channel by channel
`layer_chain`     the whole model as a chain of operations, for curvature that is passed backward through it

Both read one trace (torch.fx) and one table of operators, so that functions and methods in a `forward` count as modules
do. An operation that is not in the table is never guessed: `layer_chain` raises, and `layer_pairs` does not follow it
(`unpaired_layers` gives the reason). A module with hooks or with a forward of its own is not a known operation: a trace
does not show what they do.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.errors import ModelError
from prunus.pruning.layer_checks import has_forward_of_torch

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES: dict[Any, int] = {
    **dict.fromkeys((nn.AvgPool1d, nn.AdaptiveAvgPool1d, F.avg_pool1d, F.adaptive_avg_pool1d), 1),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d), 2),
    **dict.fromkeys((nn.AvgPool3d, nn.AdaptiveAvgPool3d, F.avg_pool3d, F.adaptive_avg_pool3d), 3),
}
"""Average poolings, and how many axes they pool, which are the last."""

OPERATORS: dict[Any, str] = {
    **dict.fromkeys(LAYERS, "layer"),
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(AVERAGES, "average pool"),
    **dict.fromkeys(
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
         F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
         F.adaptive_max_pool1d, F.adaptive_max_pool2d),
        "max pool",
    ),
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten"), "flatten"),
    **dict.fromkeys((operator.mul, operator.add, operator.sub, operator.truediv, operator.neg), "arithmetic"),
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
         nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh,
         nn.Hardswish, nn.Hardsigmoid, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
         nn.AlphaDropout, nn.FeatureAlphaDropout,
         F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign,
         F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.hardtanh, F.hardswish, F.hardsigmoid, F.threshold,
         F.tanh, F.sigmoid, F.dropout, torch.relu, torch.selu, torch.celu, torch.tanh, torch.sigmoid, torch.clamp,
         "relu", "tanh", "sigmoid", "clamp", "contiguous"),
        "elementwise",
    ),
}  # fmt: skip
"""Module types, functions, and methods of a tensor by name, with the kind of each."""


def trace(model: nn.Module) -> fx.Graph:
    """The graph of the operations of `model`. Raises ModelError where its forward cannot be traced."""
    try:
        return fx.Tracer().trace(model)
    except (Exception, SystemExit) as error:  # tracing runs the user's forward, which may fail in any way
        raise ModelError(
            f"Expected a forward of {type(model).__name__} that torch.fx can trace, but it cannot be traced "
            f"({type(error).__name__}: {error})."
        ) from error


def operator_kind(module: nn.Module) -> str | None:
    """The kind of operation of a module; None where it is not in the table, or has hooks or a forward of its own."""
    if module._forward_hooks or module._forward_pre_hooks or not has_forward_of_torch(module):
        return None
    return next((OPERATORS[kind] for kind in type(module).__mro__ if kind in OPERATORS), None)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if node.op == "call_module":
        return operator_kind(modules[str(node.target)])
    return OPERATORS.get(node.target) if node.op in ("call_function", "call_method") else None


def _describe(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{str(node.target)!r} ({type(modules[str(node.target)]).__name__})"
    return f"{node.name!r} ({getattr(node.target, '__name__', node.target)})"


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear or convolutional layer, [O, I, ...]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


# --- pairs ------------------------------------------------------------------------------------------------------

LETTERS = {"elementwise": "e", "norm": "n", "max pool": "p", "average pool": "p", "flatten": "f"}
"""Operations that treat each channel alone."""
PATTERNS = {"linear-linear": "[en]*", "conv-conv": "[enp]*", "conv-linear": "[enp]*fe*"}
"""The operations between two layers with which a channel of the one is a channel of the other."""


@dataclass(frozen=True)
class LayerPair:
    """Two layers by module name, and the traced operations between them, in order."""

    first: str
    second: str
    between: tuple[fx.Node, ...]

    def norms(self, modules: dict[str, nn.Module]) -> list[str]:
        """The names of the BatchNorm modules between the two."""
        names = [str(node.target) for node in self.between if node.op == "call_module"]
        return [name for name in names if isinstance(modules[name], NORMS)]


def layer_pairs(model: nn.Module) -> list[LayerPair]:
    """Every pair of layers of `model` that is connected channel by channel, in the order of the forward pass.

    Nothing else may read what passes between the two, and their weights may be used nowhere else.

    Raises ModelError where the model cannot be traced.
    """
    return _pairs(trace(model), model)


def unpaired_layers(model: nn.Module) -> dict[str, str]:
    """Why the outputs of a layer are not followed to a next layer, for each layer that is the first of no pair.

    Args:
        model: Any module that can be traced.

    Returns:
        {module name: reason}

    Raises:
        ModelError: The model cannot be traced.

    >>> unpaired_layers(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Linear(2, 2)))
    {'0': "its outputs go to '1' (Softmax)", '2': "its outputs are the model's"}
    """
    graph, modules = trace(model), dict(model.named_modules())
    paired = {pair.first for pair in _pairs(graph, model)}
    used_once = _used_once(model, graph)
    nodes = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    reasons = {}
    for name, module in modules.items():
        if not isinstance(module, LAYERS) or name in paired:
            continue
        if name not in nodes:
            reasons[name] = "the traced forward does not call it"
        elif name not in used_once:
            reasons[name] = (
                "it has groups, hooks, a forward of its own, or its weight is used in several places"
            )
        else:
            reasons[name] = _why_not_followed(nodes[name], modules)
    return reasons


def _pairs(graph: fx.Graph, model: nn.Module) -> list[LayerPair]:
    modules, used_once, pairs = dict(model.named_modules()), _used_once(model, graph), []
    for node in graph.nodes:
        if node.target in used_once:
            between, reader = _follow(node, modules)
            if reader is not None and reader.target in used_once:
                pairs.append(LayerPair(str(node.target), str(reader.target), between))
    return [pair for pair in pairs if _is_connected(pair, modules)]


def _used_once(model: nn.Module, graph: fx.Graph) -> set[object]:
    """The layers that are called once, and whose tensors nothing else contains or reads."""
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    return {
        name
        for name, module in model.named_modules()
        if operator_kind(module) == "layer"
        and getattr(module, "groups", 1) == 1
        and called.count(name) == 1
        and name not in read | shared
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    }


def _follow(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
    """The operations after a layer that treat each channel alone, and the only reader of their output."""
    between, reader = [], _only_reader(node)
    while reader is not None and _letter(reader, modules):
        between.append(reader)
        reader = _only_reader(reader)
    return tuple(between), None if reader is not None and reader.op == "output" else reader


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].all_input_nodes == [node] else None


def _letter(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The letter of an operation that treats each channel alone, or None."""
    letter = LETTERS.get(_kind(node, modules) or "")
    if letter == "f":
        if node.op == "call_module":
            flatten = modules[str(node.target)]
            assert isinstance(flatten, nn.Flatten)
            return "f" if (flatten.start_dim, flatten.end_dim) == (1, -1) else None
        if (node.args[1:], dict(node.kwargs)) not in (((1,), {}), ((), {"start_dim": 1})):
            return None
    return letter


def _why_not_followed(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    between, reader = _follow(node, modules)
    last = between[-1] if between else node
    if reader is None:
        readers = [user for user in last.users if user.op != "output"]
        if not readers:
            return "its outputs are the model's"
        reader = readers[0]
    return f"its outputs go to {_describe(reader, modules)}"


def _is_connected(pair: LayerPair, modules: dict[str, nn.Module]) -> bool:
    """Whether the second layer's inputs are the first's outputs, or for each of them a block of positions."""
    first, second = modules[pair.first], modules[pair.second]
    kinds = "-".join("linear" if isinstance(layer, nn.Linear) else "conv" for layer in (first, second))
    letters = "".join(_letter(node, modules) or "" for node in pair.between)
    outputs, inputs = weight_of(first).shape[0], weight_of(second).shape[1]
    fits = inputs % outputs == 0 if kinds == "conv-linear" else inputs == outputs
    norms_fit = all(modules[name].num_features == outputs for name in pair.norms(modules))
    return kinds in PATTERNS and re.fullmatch(PATTERNS[kinds], letters) is not None and fits and norms_fit


# --- chain ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChainStep:
    """One operation of a chain."""

    name: str
    """The module's name where there is one, else the graph's."""
    kind: str
    """As in OPERATORS."""
    call: Callable[[Tensor], Tensor]
    layer: nn.Module | None = None
    """The module, where the kind is "layer"."""
    num_axes: int = 0
    """How many axes an average pools."""


def layer_chain(model: nn.Module) -> list[ChainStep]:
    """The operations of `model`, first to last.

    Args:
        model: A chain: each operation takes the output of the one before it and no other tensor.

    Returns:
        One step per operation.

    Raises:
        ModelError: The model is not a chain; the error names the operation.
    """
    modules = dict(model.named_modules())
    step = _module_step("", model)
    if step is not None:
        return [step]
    steps: list[ChainStep] = []
    previous: fx.Node | None = None
    for node in trace(model).nodes:
        if node.op == "placeholder":
            if previous is not None:
                raise ModelError(f"its forward takes a second input, {node.name!r}")
        elif node.all_input_nodes != [previous]:
            raise ModelError(f"{_describe(node, modules)} takes more than the output of the step before it")
        elif node.op != "output":
            steps.append(_step(node, modules))
        previous = node
    return steps


def _step(node: fx.Node, modules: dict[str, nn.Module]) -> ChainStep:
    kind, step = _kind(node, modules), None
    if node.op == "call_module":
        step = _module_step(str(node.target), modules[str(node.target)])
    elif kind is not None:
        step = ChainStep(node.name, kind, _as_function(node), num_axes=AVERAGES.get(node.target, 0))
    if step is None:
        raise ModelError(f"it has no rule for {_describe(node, modules)}")
    return step


def _module_step(name: str, module: nn.Module) -> ChainStep | None:
    kind = operator_kind(module)
    if kind is None or isinstance(module, nn.Conv3d):
        return None
    if kind == "norm" and module.running_mean is None:
        raise ModelError(f"{name!r} has no running statistics, so that examples depend on each other")
    num_axes = next((AVERAGES[base] for base in type(module).__mro__ if base in AVERAGES), 0)
    return ChainStep(name, kind, module, module if kind == "layer" else None, num_axes)


def _as_function(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The node as a function of its one tensor."""
    tensor = node.all_input_nodes[0]

    def call(x: Tensor) -> Tensor:
        # In evaluation mode a traced F.dropout has `training=False` as a constant of the graph.
        arguments = [x if argument is tensor else argument for argument in node.args]
        named = {key: x if value is tensor else value for key, value in node.kwargs.items()}
        result: Tensor
        if isinstance(node.target, str):
            result = getattr(x, node.target)(*arguments[1:], **named)
        else:
            result = node.target(*arguments, **named)
        return result

    return call
