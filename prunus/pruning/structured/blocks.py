"""Residual blocks with an identity shortcut, x + F(x): find them, and remove the layers of F.

The blocks come from the exported graph: the shortcut x is an input of the sum and of the computation of F(x). A layer
belongs to a block if its outputs are used for F(x) alone. Blocks whose shortcut is a convolution or a padding are not
listed: without F, their shortcut is not an identity.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from prunus.errors import ModelError, reason_of
from prunus.modules import check_module, unwrapped
from prunus.pruning.structured.edits import merge_edits, set_attributes
from prunus.pruning.structured.graph import (
    as_arguments,
    bind_arguments,
    module_path,
    module_paths,
    operator_name,
    result_shapes,
    trace_model,
)
from prunus.pruning.structured.removal import check_optimizer
from prunus.pruning.structured.verify import difference_of_outputs
from prunus.registry import lookup

SCALABLE = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
"""Layers whose output is zero where their parameters are zero, and can be scaled by them."""


@dataclass(frozen=True)
class RemovableBlock:
    """The computation F of one sum x + F(x)."""

    name: str
    """The layer whose output is added to x."""
    modules: tuple[str, ...]
    """The largest modules that are used by F alone."""


def residual_blocks(model: nn.Module, example_inputs: object) -> list[RemovableBlock]:
    """The residual blocks with an identity shortcut whose last layer is Linear, a convolution or BatchNorm.

    Args:
        model: Any module that `torch.export` can export.
        example_inputs: As for `prunus.slim`.

    Returns:
        The blocks in the order of the computation.

    Raises:
        ModelError: The model cannot be exported.

    Example:
        >>> import prunus
        >>> blocks = residual_blocks(prunus.MODELS["resnet-20"](), torch.zeros(1, 3, 32, 32))
        >>> len(blocks), blocks[0].name, blocks[0].modules[:2]
        (7, 'layer1.0.bn2', ('layer1.0.conv1', 'layer1.0.bn1'))
    """
    check_module(model)
    model = unwrapped(model)
    graph = trace_model(model, example_inputs).graph
    modules = dict(model.named_modules())
    blocks = []
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node.target) == "add":
            for branch, shortcut in (node.args[:2], node.args[1::-1]):
                if isinstance(branch, fx.Node) and isinstance(shortcut, fx.Node):
                    block = _block_of(graph, node, branch, shortcut, modules)
                    blocks += [block] if block is not None else []
    return blocks


def _block_of(
    graph: fx.Graph, total: fx.Node, branch: fx.Node, shortcut: fx.Node, modules: dict[str, nn.Module]
) -> RemovableBlock | None:
    """The block of a sum; None: the shortcut is not an input of the branch, or the last layer cannot be scaled."""
    if set(branch.users) != {total} or _source(shortcut) not in _ancestors(branch):
        return None
    unused = {branch}
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.users and unused.issuperset(node.users):
            unused.add(node)
    name = module_path(_source(branch))
    weight = getattr(modules.get(name), "weight", None)
    if not isinstance(modules.get(name), SCALABLE) or not isinstance(weight, nn.Parameter):
        return None
    used = {path for node in graph.nodes if node not in unused for path in module_paths(node)}
    paths = dict.fromkeys(path for node in graph.nodes if node in unused for path in module_paths(node))
    removable = [path for path in paths if path and path not in used]
    largest = [path for path in removable if not any(path.startswith(f"{p}.") for p in removable)]
    return RemovableBlock(name, tuple(largest)) if name in removable else None


def _source(node: fx.Node) -> fx.Node:
    """The node of which a node is the same value in evaluation mode: before dropout, whole slices and empty padding."""
    while node.op == "call_function" and operator_name(node.target) in ("alias", "dropout", "slice", "pad"):
        source = node.all_input_nodes[0]
        is_padded = operator_name(node.target) == "pad" and any(bind_arguments(node)["pad"])
        if is_padded or result_shapes(node) != result_shapes(source):
            break
        node = source
    return node


def _ancestors(node: fx.Node) -> set[fx.Node]:
    ancestors: set[fx.Node] = set()
    pending = [node]
    while pending:
        new = set(pending.pop().all_input_nodes) - ancestors
        ancestors |= new
        pending += new
    return ancestors


def remove_blocks(
    model: nn.Module,
    example_inputs: object,
    names: Sequence[str],
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """Remove residual blocks in place, so that only their shortcuts remain.

    Each removed layer becomes a module without parameters that returns zero; `prunus.save` stores which layers are
    removed, as after `prunus.slim`.

    Args:
        model: Any module that `torch.export` can export.
        example_inputs: As for `prunus.slim`.
        names: Names of blocks, as `residual_blocks` returns them.
        optimizer: An optimizer of the model's parameters, from which those of removed layers are deleted.

    Returns:
        The model.

    Raises:
        UnknownNameError: There is no such block.
        ModelError: No name, another optimizer, or the outputs without the layers differ from those with outputs of
            zero; the model is unchanged.

    Example:
        >>> import prunus
        >>> model, x = prunus.MODELS["resnet-20"](), torch.zeros(1, 3, 32, 32)
        >>> prunus.count_macs(remove_blocks(model, x, ["layer1.0.bn2", "layer3.2.bn2"]), x)
        31113856
    """
    if isinstance(names, str) or not names:
        raise ModelError(f"Expected a list of names of residual blocks, got {names!r}.")
    check_module(model)
    model = unwrapped(model)
    if optimizer is not None:
        check_optimizer(model, optimizer)
    blocks = {block.name: block for block in residual_blocks(model, example_inputs)}
    removed = [lookup("residual block", blocks, name) for name in names]
    check_removable(model, example_inputs, removed)
    edits = _edits_of(removed)
    removed_ids = {
        id(p) for block in removed for path in block.modules for p in model.get_submodule(path).parameters()
    }
    set_attributes(model, edits)
    if optimizer is not None:
        _forget(optimizer, removed_ids - {id(p) for p in model.parameters()})
    model.edited_attributes = merge_edits(getattr(model, "edited_attributes", {}), edits)  # type: ignore[assignment]
    return model


def check_removable(model: nn.Module, example_inputs: object, blocks: Sequence[RemovableBlock]) -> None:
    """Raise ModelError unless the model without blocks computes what it computes with branches of zero.

    Args:
        model: The model; it is not changed.
        example_inputs: As for `prunus.slim`.
        blocks: Some of its residual blocks, which are removed together from a copy.

    Raises:
        ModelError: The outputs differ, or the model does not run without the blocks.
    """
    names = [block.name for block in blocks]
    what = f"the residual block{'s' if len(names) > 1 else ''} {', '.join(names)}"
    set_to_zero = partial(_set_to_zero, names=names)
    remove = partial(set_attributes, attributes=_edits_of(blocks))
    try:
        error, tolerance = difference_of_outputs(model, as_arguments(example_inputs), set_to_zero, remove)
    except ModelError as problem:
        cause = problem.__cause__ or problem
        raise ModelError(
            f"{type(model).__name__} does not run without {what} ({reason_of(cause)}); keep what cannot be removed. "
            "The model is unchanged."
        ) from cause
    if not error <= tolerance:
        raise ModelError(
            f"Expected the same outputs of {type(model).__name__} with {what} removed and set to zero, but they differ "
            f"by {error:.3g}, relative to the largest output; keep what cannot be removed. The model is unchanged."
        )


def _edits_of(blocks: Sequence[RemovableBlock]) -> dict[str, dict[str, None]]:
    """The attributes that remove blocks, by module name."""
    edits: dict[str, dict[str, None]] = {}
    for path in (path for block in blocks for path in block.modules):
        parent, _, last = path.rpartition(".")
        edits.setdefault(parent, {})[last] = None
    return edits


@torch.no_grad()
def _set_to_zero(model: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        for parameter in model.get_submodule(name).parameters():
            parameter.zero_()


def _forget(optimizer: torch.optim.Optimizer, removed: set[int]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in removed]
    for parameter in [p for p in optimizer.state if isinstance(p, Tensor) and id(p) in removed]:
        del optimizer.state[parameter]
