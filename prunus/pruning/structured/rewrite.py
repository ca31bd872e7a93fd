"""The exported graph of a model as a module, with the sizes that are constants of its code changed."""

import copy
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunus.data.examples import iter_tensors
from prunus.pruning.structured.graph import TracedGraph, exact_attention, export_program
from prunus.pruning.structured.labels import KeptIds, SizeConstant
from prunus.pruning.structured.verify import LOW_PRECISION_TOLERANCE, largest_difference, outputs_of
from prunus.training.modes import eval_mode


def exported_module(traced: TracedGraph, model: nn.Module) -> fx.GraphModule:
    """The exported graph as a module with a copy of the model's tensors, of the same names.

    It computes what the model computes in evaluation mode, also after `train()`; for batches of any size where the
    model can be exported for these, else for batches of the size of the example inputs.

    Args:
        traced: The graph of the model.
        model: The model.

    Returns:
        The module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch copies trees with a deprecated class of its own
        program = _program_for_any_batch(traced, model) or traced.program
        module = copy.deepcopy(program.module(check_guards=False))
    assert isinstance(module, fx.GraphModule)
    for name in ("train", "eval"):  # torch sets functions that refuse to be called
        module.__dict__.pop(name, None)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in list(part.graph.nodes):
                if "_assert_tensor_metadata" in str(node.target) and not node.users:
                    part.graph.erase_node(node)  # the dtype of the model may change
            part.recompile()
    return module


@torch.no_grad()
def _program_for_any_batch(traced: TracedGraph, model: nn.Module) -> Any:
    """The program for batches of any size; None where it has other nodes, or does not compute what the model does."""
    sizes = [len(x) for x in iter_tensors(traced.inputs) if x.dim()]

    def inputs(count: int) -> Any:
        """The example inputs with another number of examples."""
        indices = torch.arange(count) % sizes[0]
        return pytree.tree_map(
            lambda x: x[indices] if isinstance(x, Tensor) and x.dim() and len(x) == sizes[0] else x,
            traced.inputs,
        )

    try:
        larger = inputs(sizes[0] + 1)
        dimensions: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for x in iter_tensors(larger):
            if x.dim() and len(x) == sizes[0] + 1:
                dimensions[x] = {0: torch.export.Dim.AUTO}
        program = export_program(model, larger, dimensions)
        module = program.module(check_guards=False)
        with eval_mode(model), exact_attention():
            pairs = [
                (outputs_of(model, inputs(count)), outputs_of(module, inputs(count)))
                for count in (1, sizes[0], sizes[0] + 1)
            ]
    except Exception:  # the code of the model may demand any size
        return None
    is_same = all(
        largest_difference(expected, actual) <= LOW_PRECISION_TOLERANCE for expected, actual in pairs
    )
    is_unlimited = all(limits.upper > sys.maxsize // 2 for limits in program.range_constraints.values())
    nodes = [
        [(n.name, str(n.target)) for n in graph.nodes if not isinstance(n.meta.get("val"), torch.SymInt)]
        for graph in (traced.graph, program.graph)
    ]
    return program if is_same and is_unlimited and nodes[0] == nodes[1] else None


def change_constants(module: nn.Module, constants: Iterable[SizeConstant], is_kept: KeptIds) -> None:
    """Change the arguments of nodes that are sizes of labeled dimensions, in place.

    Args:
        module: What `exported_module` returned, or a copy of it.
        constants: The sizes, whose nodes have the same names in the module.
        is_kept: The ids of entries that are kept.
    """
    graphs = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    nodes = {(node.name, str(node.target)): node for part in graphs for node in part.graph.nodes}
    for constant in constants:
        node = nodes[constant.node.name, str(constant.node.target)]
        _set_argument(node, constant, constant.reduced_value(is_kept))
    for part in graphs:
        part.recompile()


def _set_argument(node: fx.Node, constant: SizeConstant, value: int) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(constant.argument)
    old: Any = node.args[position] if position < len(node.args) else node.kwargs[constant.argument]
    if constant.position is None:
        new: Any = -value if old < 0 else value  # a negative end counts from the end
    else:
        new = [*old[: constant.position], value, *old[constant.position + 1 :]]
    if position < len(node.args):
        node.update_arg(position, new)
    else:
        node.update_kwarg(constant.argument, new)
