"""Walk over a traced graph: compute the labels of every node from those of its inputs, and collect all couplings."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from prunus.pruning.structured.graph import (
    TracedGraph,
    bind_arguments,
    find_tensor,
    is_getitem,
    live_nodes,
    operator_name,
    result_shapes,
)
from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels
from prunus.pruning.structured.rules import GENERATORS, RULES, UnsupportedCall, elementwise, fixed

ELEMENTWISE = frozenset((
    "_to_copy", "alias", "alpha_dropout", "celu", "clone", "clip", "contiguous", "copy", "detach", "divide",
    "dropout", "elu", "feature_alpha_dropout", "feature_dropout", "fill", "gelu", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "leaky_relu", "lift_fresh", "lift_fresh_copy", "log_sigmoid", "masked_fill", "mish",
    "multiply", "prelu", "relu", "relu6", "rsub", "rrelu", "selu", "silu", "softplus", "softshrink", "subtract",
    "tanh", "threshold", "to", "true_divide", "type_as", "where",
))  # fmt: skip
"""Operators that are elementwise but do not have torch's tag `pointwise`; a test computes that they are."""


@dataclass
class LabeledGraph:
    """The result of a walk."""

    traced: TracedGraph
    coupling: Coupling = field(default_factory=Coupling)
    parameters: dict[str, Labels] = field(default_factory=dict)
    """The labels of every dimension of each parameter, buffer and constant that is used."""
    results: dict[fx.Node, Any] = field(default_factory=dict)
    """The labels of the results of each node."""


IGNORED = frozenset(("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"))
"""Operators that check values and return none."""


def is_elementwise(target: Any) -> bool:
    """Whether an operator computes each entry from the entries at the same position."""
    tags = getattr(target, "tags", ())
    return torch.Tag.pointwise in tags or operator_name(target) in ELEMENTWISE


def label_graph(traced: TracedGraph, model: nn.Module) -> LabeledGraph:
    """Carry the labels of all parameters through a graph.

    Args:
        traced: The graph of the model.
        model: The model, whose tensors can be removed from.

    Returns:
        The labels of the parameters and all couplings.
    """
    result = LabeledGraph(traced)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            result.results[node] = _placeholder(result, model, node)
    _walk(result, traced.graph, traced.owner, result.results)
    return result


def _placeholder(result: LabeledGraph, model: nn.Module, node: fx.Node) -> Labels | None:
    """Labels of an input, or of a parameter, buffer or constant of the model."""
    shape = result_shapes(node)[0]
    name = result.traced.tensors.get(node.name)
    if name is None or shape is None or not node.users:
        return fixed(shape)
    if name not in result.parameters:
        tensor = find_tensor(model, name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            return fixed(shape)
        is_parameter = isinstance(tensor, nn.Parameter)
        layers = [
            LabelLayer((dim,), result.coupling.new(size), is_parameter)
            for dim, size in enumerate(shape)
            if size > 1
        ]
        result.parameters[name] = Labels(shape, tuple(layers))
    return result.parameters[name]


def _walk(result: LabeledGraph, graph: fx.Graph, owner: Any, environment: dict[fx.Node, Any]) -> Any:
    """Process the nodes of a graph; returns the labels of its outputs."""
    coupling, live = result.coupling, live_nodes(graph)
    for (
        node
    ) in graph.nodes:  # also those whose results are not used: the module computes them, so shapes must fit
        coupling.node = node
        num_inexact = len(coupling.inexact)
        if node.op == "get_attr":
            environment[node] = getattr(owner, str(node.target), None)
        elif node.op == "output":
            outputs = _labels_of(node.args, environment)
            if graph is result.traced.graph:
                for labels in flatten_labels(outputs):
                    _block(coupling, labels, "the tensor is an output of the model")
            return outputs[0]
        elif node.op == "call_function":
            environment[node] = _call(result, node, environment)
        if node not in live:  # its values do not matter
            del coupling.inexact[num_inexact:]
    return None


def _call(result: LabeledGraph, node: fx.Node, environment: dict[fx.Node, Any]) -> Any:
    coupling = result.coupling
    if is_getitem(node):
        return environment[node.args[0]][node.args[1]]  # type: ignore[index]
    if operator_name(node.target) in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return _inline(result, node, environment)
    shapes = result_shapes(node)
    arguments = {name: _labels_of(value, environment) for name, value in bind_arguments(node).items()}
    inputs = list(flatten_labels(list(arguments.values())))
    name = operator_name(node.target)
    if not any(labels.layers for labels in inputs) and name not in GENERATORS:
        return _results(node, shapes)
    if name in IGNORED:
        return None
    reason = "prunus has no rule for this operator"
    try:
        if name in RULES:
            return RULES[name](coupling, arguments, shapes)
        if is_elementwise(node.target) and shapes[0] is not None:
            labels = _elementwise(coupling, node, arguments, inputs, shapes[0])
            if node.target._schema.is_mutable:  # type: ignore[union-attr]
                _change_in_place(node, labels, environment)
            return labels
    except UnsupportedCall as error:
        reason = str(error)
    for labels in inputs:
        _block(coupling, labels, reason)
    return _results(node, shapes)


def _change_in_place(node: fx.Node, labels: Labels, environment: dict[fx.Node, Any]) -> None:
    """Update `zero` of the labels of a tensor that an operator changes in place, and of the tensors it is a view of.

    Their labels are as before: an elementwise operator couples them with those of its result.
    """
    changed = node.args[0]
    is_zero = all(layer.zero for layer in labels.layers)
    while isinstance(changed, fx.Node) and isinstance(environment[changed], Labels):
        before = environment[changed]
        layers = [replace(layer, zero=layer.zero and is_zero) for layer in before.layers]
        environment[changed] = replace(before, layers=tuple(layers))
        schema = getattr(changed.target, "_schema", None)
        if schema is None or not schema.arguments or schema.arguments[0].alias_info is None:
            return
        changed = changed.args[0]


def _elementwise(
    coupling: Coupling, node: fx.Node, arguments: dict[str, Any], inputs: list[Labels], shape: tuple[int, ...]
) -> Labels:
    scalars = {name: value for name, value in arguments.items() if not isinstance(value, Labels)}
    if operator_name(node.target) == "prelu" and inputs[1].layers:  # its weight is that of dimension 1
        ones = [1] * (len(shape) - 2)
        inputs = [inputs[0], Labels((inputs[1].shape[0], *ones), inputs[1].layers)]
        return elementwise(coupling, torch.mul, inputs, {}, shape)
    return elementwise(coupling, node.target, inputs, scalars, shape)


def _inline(result: LabeledGraph, node: fx.Node, environment: dict[fx.Node, Any]) -> Any:
    """A block under `torch.no_grad` or `torch.autocast` is a graph of its own."""
    position = next(i for i, argument in enumerate(node.args) if isinstance(argument, fx.Node))
    block = environment[node.args[position]]  # type: ignore[index]
    inputs = [_labels_of(argument, environment) for argument in node.args[position + 1 :]]
    placeholders = [inner_node for inner_node in block.graph.nodes if inner_node.op == "placeholder"]
    return _walk(result, block.graph, block, dict(zip(placeholders, inputs, strict=True)))


def _labels_of(value: Any, environment: dict[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return environment[value]
    if isinstance(value, list | tuple):
        return [_labels_of(item, environment) for item in value]
    if isinstance(value, dict):
        return {key: _labels_of(item, environment) for key, item in value.items()}
    return value


def flatten_labels(value: Any) -> list[Labels]:
    """The labels in a nested value of lists and dicts."""
    if isinstance(value, Labels):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [labels for item in items for labels in flatten_labels(item)]


def _block(coupling: Coupling, labels: Labels, reason: str) -> None:
    for layer in labels.layers:
        coupling.block(layer.atoms, reason)


def _results(node: fx.Node, shapes: list[tuple[int, ...] | None]) -> Any:
    results = [fixed(shape) for shape in shapes]
    return results if isinstance(node.meta.get("val"), list | tuple) else results[0]
