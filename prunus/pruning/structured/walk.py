"""Walk over a traced graph: compute the labels of every node from those of its inputs, and collect all couplings."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunus.pruning.structured.graph import (
    TracedGraph,
    bind_arguments,
    find_tensor,
    is_getitem,
    live_nodes,
    operator_name,
    result_shapes,
)
from prunus.pruning.structured.labels import Coupling, Labels
from prunus.pruning.structured.rules import GENERATORS, MOVING, RULES, UnsupportedCall, elementwise

ELEMENTWISE = frozenset((
    "_to_copy", "alias", "alpha_dropout", "celu", "clone", "clip", "contiguous", "copy", "detach", "divide",
    "dropout", "elu", "feature_alpha_dropout", "feature_dropout", "fill", "gelu", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "leaky_relu", "lift_fresh", "lift_fresh_copy", "log_sigmoid", "masked_fill", "mish",
    "multiply", "prelu", "relu", "relu6", "rsub", "rrelu", "selu", "silu", "softplus", "softshrink", "subtract",
    "tanh", "threshold", "to", "true_divide", "type_as", "where",
))  # fmt: skip
"""Operators that are elementwise but do not have torch's tag `pointwise`; a test computes that they are."""


IGNORED = frozenset(("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"))
"""Operators that check values and return none."""

Environment = dict[fx.Node, Any]
"""The labels of the results of each node; other values of nodes that are no tensors."""


@dataclass
class LabeledGraph:
    """The result of a walk."""

    traced: TracedGraph
    coupling: Coupling = field(default_factory=Coupling)
    parameters: dict[str, Labels] = field(default_factory=dict)
    """The labels of every dimension of each parameter, buffer and constant that is used."""
    results: Environment = field(default_factory=dict)


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
    labeled = LabeledGraph(traced)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            labeled.results[node] = _placeholder(labeled, model, node)
    outputs = _walk(labeled.coupling, traced.graph, traced.owner, labeled.results)
    _block(labeled.coupling, flatten_labels(outputs), "the tensor is an output of the model")
    return labeled


def _placeholder(labeled: LabeledGraph, model: nn.Module, node: fx.Node) -> Labels | None:
    """Labels of an input, or of a parameter, buffer or constant of the model."""
    [shape] = result_shapes(node)
    name = labeled.traced.tensors.get(node.name)
    if shape is None:
        return None
    if name is None or not node.users:
        return Labels(shape)
    if name not in labeled.parameters:
        tensor = find_tensor(model, name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            return Labels(shape)
        labeled.parameters[name] = labeled.coupling.new_labels(shape, isinstance(tensor, nn.Parameter))
    return labeled.parameters[name]


def _walk(coupling: Coupling, graph: fx.Graph, owner: Any, environment: Environment) -> Any:
    """Process the nodes of a graph; returns the labels of its outputs."""
    live = live_nodes(graph)
    # A node whose result is not used is processed too: the module computes it, so its shapes must fit.
    for node in graph.nodes:
        coupling.node = node
        num_inexact = len(coupling.inexact)
        if node.op == "get_attr":
            environment[node] = getattr(owner, str(node.target), None)
        elif node.op == "output":
            return _labels_of(node.args[0], environment)
        elif node.op == "call_function":
            environment[node] = _call(coupling, node, environment)
            if not _only_passes_on(node):
                inputs = flatten_labels(_labels_of([node.args, node.kwargs], environment))
                coupling.read += [layer.ids.ravel() for labels in inputs for layer in labels.layers]
        if node not in live:  # its values do not matter
            del coupling.inexact[num_inexact:]
    return None


def _only_passes_on(node: fx.Node) -> bool:
    """Whether only entries that an operator reads the result of are needed: it moves them, or changes each alone."""
    name, schema = operator_name(node.target), getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        return False
    is_block = name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # its operators are walked over
    return is_getitem(node) or is_block or name in MOVING or name in IGNORED or is_elementwise(node.target)


def _call(coupling: Coupling, node: fx.Node, environment: Environment) -> Any:
    """The labels of the results of an operator."""
    name = operator_name(node.target)
    if is_getitem(node):
        return environment[node.args[0]][node.args[1]]  # type: ignore[index]
    if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return _inline(coupling, node, environment)
    if name in IGNORED:
        return None
    arguments = {key: _labels_of(value, environment) for key, value in bind_arguments(node).items()}
    inputs = flatten_labels(arguments)
    if any(labels.layers for labels in inputs) or name in GENERATORS:
        reason = "prunus has no rule for this operator"
        try:
            if name in RULES:
                return _as_results(node, RULES[name](coupling, arguments, coupling.shapes[0]))
            if is_elementwise(node.target) and coupling.shapes:
                labels = _elementwise(coupling, arguments, inputs)
                if node.target._schema.is_mutable:  # type: ignore[union-attr]
                    _change_in_place(node, labels, environment)
                return _as_results(node, labels)
        except UnsupportedCall as error:
            reason = str(error)
        _block(coupling, inputs, reason)
    return _as_results(node, [])


def _as_results(node: fx.Node, labels: Labels | list[Labels]) -> Any:
    """The labels of each result of a node; results without labels have fixed dimensions."""
    known = labels if isinstance(labels, list) else [labels]
    shapes = result_shapes(node)
    fixed = [None if shape is None else Labels(shape) for shape in shapes[len(known) :]]
    results = [*known, *fixed]
    return results if isinstance(node.meta.get("val"), list | tuple) else results[0]


def _change_in_place(node: fx.Node, labels: Labels, environment: Environment) -> None:
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


def _elementwise(coupling: Coupling, arguments: dict[str, Any], inputs: list[Labels]) -> Labels:
    shape, target = coupling.shapes[0], coupling.node.target
    if coupling.operator == "prelu" and inputs[1].layers:  # its weight is that of dimension 1
        weight = inputs[1].unsqueezed(len(shape) - 2)
        return elementwise(coupling, torch.mul, [inputs[0], weight], {}, shape)
    scalars = {name: value for name, value in arguments.items() if not isinstance(value, Labels)}
    return elementwise(coupling, target, inputs, scalars, shape)


def _inline(coupling: Coupling, node: fx.Node, environment: Environment) -> Any:
    """A block under `torch.no_grad` or `torch.autocast` is a graph of its own."""
    position = next(i for i, argument in enumerate(node.args) if isinstance(argument, fx.Node))
    block, *inputs = _labels_of(node.args[position:], environment)
    placeholders = [inner_node for inner_node in block.graph.nodes if inner_node.op == "placeholder"]
    return _walk(coupling, block.graph, block, dict(zip(placeholders, inputs, strict=True)))


def _labels_of(value: Any, environment: Environment) -> Any:
    return fx.map_arg(value, lambda node: environment[node])


def flatten_labels(value: Any) -> list[Labels]:
    """The labels in a nested value of lists and dicts."""
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Labels)]


def _block(coupling: Coupling, tensors: list[Labels], reason: str) -> None:
    for labels in tensors:
        for layer in labels.layers:
            coupling.block(layer.ids, reason)
