"""A network as a chain of operations, for curvature that is passed backward through it.

A step is the part of the traced graph between two tensors that everything passes through. Each step has a known kind:

    layer           Linear, Conv1d or Conv2d, with its padding
    norm            BatchNorm with running statistics
    elementwise     one or several operators that compute each entry from the entry at the same position
    avg pool, max pool, flatten

An operation that is not in this list is never guessed: it is refused with its source line.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from prunus.errors import ModelError
from prunus.pruning.structured.graph import (
    TracedGraph,
    bind_arguments,
    describe_node,
    is_getitem,
    layer_path,
    live_nodes,
    module_path,
    operator_name,
)
from prunus.pruning.structured.walk import is_elementwise

_POOLING = re.compile(r"(?:adaptive_)?(?P<kind>avg|max)_pool(?P<axes>\d)d(?:_with_indices)?")


@dataclass(frozen=True)
class ChainStep:
    """One operation of a chain."""

    name: str
    """The module that computes it."""
    kind: str
    call: Callable[[Tensor], Tensor]
    layer: nn.Module | None = None
    """The module, where the kind is "layer"."""
    num_axes: int = 0
    """How many axes an average pools, which are the last."""


def layer_chain(traced: TracedGraph, model: nn.Module) -> list[ChainStep]:
    """The operations of a model, first to last.

    Args:
        traced: The graph of the model, or of a copy with other weights.
        model: A chain: each operation takes the output of the one before it and no other tensor that depends on the
            inputs.

    Returns:
        One step per operation.

    Raises:
        ModelError: The model is not a chain of known operations; the error names the operation.
    """
    tensors = traced.tensors_of(model)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder" and node not in tensors]
    if len(inputs) != 1:
        raise ModelError(f"its forward takes {len(inputs)} inputs")
    steps, source = [], inputs[0]
    for segment in _segments(traced.graph, source):
        steps.append(_layer_step(traced, model, segment) or _step(source, segment, tensors))
        source = segment[-1]
    return steps


def _segments(graph: fx.Graph, source: fx.Node) -> Iterator[list[fx.Node]]:
    """The nodes between two tensors that everything passes through; padding is in the segment of what follows it."""
    live = live_nodes(graph)
    position = {node: i for i, node in enumerate(graph.nodes) if node in live}
    depend_on_inputs, segment = {source}, list[fx.Node]()
    last_use = max([0, *(position.get(user, 0) for user in source.users)])
    for node, place in position.items():
        if depend_on_inputs.isdisjoint(node.all_input_nodes):
            continue
        if node.op == "output":
            break
        depend_on_inputs.add(node)
        segment.append(node)
        value = node.meta.get("val")
        is_floating = isinstance(value, Tensor) and value.is_floating_point()
        if last_use <= place and is_floating and operator_name(node.target) != "pad":
            yield segment
            segment = []
        last_use = max([last_use, *(position.get(user, 0) for user in node.users)])
    if segment:
        raise ModelError(f"{describe_node(segment[-1])} is not the only tensor that it returns")


def _layer_step(traced: TracedGraph, model: nn.Module, segment: Sequence[fx.Node]) -> ChainStep | None:
    """The step of a Linear, Conv1d or Conv2d; None where the nodes are something else, or the layer has hooks."""
    path = layer_path(traced, segment[-1], model)
    if path is None or any(module_path(node) != path for node in segment):
        return None
    layer = model.get_submodule(path)
    is_known = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks
    return ChainStep(path, "layer", layer, layer) if is_known and not has_hooks else None


def _step(source: fx.Node, segment: Sequence[fx.Node], tensors: Mapping[fx.Node, Tensor]) -> ChainStep:
    """The step of any other operation."""
    operations = [node for node in segment if not is_getitem(node)]
    name, path = operator_name(operations[0].target), module_path(segment[-1])
    kind, num_axes = None, 0
    if all(is_elementwise(node.target) for node in operations):
        is_same_shape = segment[-1].meta["val"].shape == source.meta["val"].shape
        kind = "elementwise" if is_same_shape else None
    elif joining := [node for node in segment if len(set(node.all_input_nodes) - tensors.keys()) > 1]:
        raise ModelError(f"{describe_node(joining[0])} takes more than the output of the step before it")
    elif len(operations) == 1 and (pooling := _POOLING.fullmatch(name)):
        kind, num_axes = f"{pooling['kind']} pool", int(pooling["axes"])
    elif len(operations) == 1 and name in ("flatten", "batch_norm"):
        kind = "norm" if name == "batch_norm" else "flatten"
        if name == "batch_norm" and bind_arguments(segment[0])["running_mean"] is None:
            raise ModelError(f"{path!r} has no running statistics, so that examples depend on each other")
    if kind is None or not all(tensors.keys() | {source, *segment} >= {*n.all_input_nodes} for n in segment):
        unknown = [node for node in operations if not is_elementwise(node.target)] or operations
        raise ModelError(f"it has no rule for {describe_node(unknown[0])}")

    def call(x: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {**tensors, source: x}
        for node in segment:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        result: Tensor = values[segment[-1]]
        return result

    return ChainStep(path, kind, call, num_axes=num_axes)
