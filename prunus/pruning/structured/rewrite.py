"""The exported graph of a model as a module, with the sizes that are constants of its code changed."""

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from prunus.errors import ModelError
from prunus.pruning.structured.graph import TracedGraph
from prunus.pruning.structured.labels import SizeConstant


def exported_module(traced: TracedGraph) -> fx.GraphModule:
    """A copy of the exported graph as a module: the names and values of the model's tensors, the call of the model.

    It computes what the model computes in evaluation mode, also after `train()`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch copies trees with a deprecated class of its own
        module = copy.deepcopy(traced.program.module(check_guards=False))
    if not isinstance(module, fx.GraphModule):
        raise ModelError("Expected torch.export to return a graph module; use rewrite=False.")
    for name in ("train", "eval"):  # torch sets functions that refuse to be called
        module.__dict__.pop(name, None)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in list(part.graph.nodes):
                if "_assert_tensor_metadata" in str(node.target) and not node.users:
                    part.graph.erase_node(node)  # the dtype of the model may change
            part.recompile()
    return module


def change_constants(
    module: nn.Module, constants: Iterable[SizeConstant], new_value: Callable[[SizeConstant], int]
) -> None:
    """Change the arguments of nodes that are sizes of labeled dimensions, in place.

    Args:
        module: What `exported_module` returned, or a copy of it.
        constants: The sizes, whose nodes have the same names in the module.
        new_value: The new number of entries of each.
    """
    graphs = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    nodes = {(node.name, str(node.target)): node for part in graphs for node in part.graph.nodes}
    for constant in constants:
        node = nodes[constant.node.name, str(constant.node.target)]
        _set_argument(node, constant, new_value(constant))
    for part in graphs:
        part.recompile()


def _set_argument(node: fx.Node, constant: SizeConstant, value: int) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(constant.argument)
    old: Any = node.args[position] if position < len(node.args) else node.kwargs[constant.argument]
    new: Any = (
        -value if constant.position is None and old < 0 else value
    )  # a negative end counts from the end
    if constant.position is not None:
        new = [*old[: constant.position], value, *old[constant.position + 1 :]]
    if position < len(node.args):
        node.update_arg(position, new)
    else:
        node.update_kwarg(constant.argument, new)
