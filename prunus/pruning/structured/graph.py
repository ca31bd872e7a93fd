"""The traced graph of a model: one `torch.export` in evaluation mode, with names of tensors and source lines.

The graph that `torch.export` returns before decompositions keeps operators such as `chunk`, `lstm` and `flatten` whole.
Every node has its operator, the shapes of its results, the module that it belongs to and the user's source line.
"""

import operator
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.data.examples import iter_tensors
from prunus.errors import ModelError, reason_of
from prunus.modules import check_initialized
from prunus.pruning.layer_checks import has_forward_of_torch
from prunus.training.modes import eval_mode

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named arguments of one call of a model."""
_TORCH = torch.__file__.rpartition("/")[0]
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.*)\n(?P<code>.*)')


@dataclass(frozen=True)
class TracedGraph:
    """The graph of a model for inputs of these shapes."""

    graph: fx.Graph
    owner: fx.GraphModule
    """Has the sub-graphs that nodes such as `torch.no_grad` blocks refer to."""
    tensors: dict[str, str]
    """The name in the model of each parameter, buffer or constant, by the name of its placeholder. Tensors that are one
    tensor in the model have one name here."""
    program: Any
    """What `torch.export` returned."""
    inputs: Inputs
    """The example inputs."""

    def tensors_of(self, model: nn.Module) -> dict[fx.Node, Tensor]:
        """The parameters, buffers and constants that placeholders of the graph stand for.

        Args:
            model: The model of the graph, or a copy of it with other values.

        Returns:
            The tensor by placeholder.
        """
        constants = self.program.constants
        names = {node: self.tensors[node.name] for node in self.graph.nodes if node.name in self.tensors}
        return {
            node: constants[name] if (tensor := find_tensor(model, name)) is None else tensor
            for node, name in names.items()
        }


def trace_model(model: nn.Module, example_inputs: object) -> TracedGraph:
    """Trace a model in evaluation mode; the model, and the mode of every module, are as before.

    Args:
        model: Any module.
        example_inputs: What its forward takes: one tensor, a tuple or list of arguments, or a dict of named arguments.

    Returns:
        The graph.

    Raises:
        ModelError: The model cannot be exported (the error has the line of the model where there is one), has tensors
            without values or on several devices, or does not take the inputs.
    """
    check_initialized(model)
    _check_one_device(model)
    inputs = as_arguments(example_inputs)
    try:
        program = export_program(model, inputs)
    except Exception as error:  # the user's forward, and the export of it, may fail in any way
        with eval_mode(model), exact_attention():
            raise _export_error(model, inputs, error) from error
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    shared = _first_names(model)
    tensors = {placeholder: shared.get(name, name) for placeholder, name in names.items()}
    _check_outputs(model, program.graph, tensors)
    return TracedGraph(program.graph, program.graph_module, tensors, program, inputs)


def _check_outputs(model: nn.Module, graph: fx.Graph, tensors: Mapping[str, str]) -> None:
    """Raise ModelError unless an output of at least one number depends on a parameter: others verify nothing."""
    results = [shape for node in graph.output_node().all_input_nodes for shape in result_shapes(node)]
    shapes = [shape for shape in results if shape is not None]
    has_numbers = any(0 not in shape for shape in shapes)
    is_computed = any(node.name in tensors for node in live_nodes(graph))
    if tensors and not (has_numbers and is_computed):
        raise ModelError(
            f"Expected a forward of {type(model).__name__} that returns tensors computed from its parameters, got "
            f"{f'tensors of shapes {shapes}' if shapes else 'no tensor'}; return such tensors, and pass at least one "
            "example."
        )


def export_program(model: nn.Module, inputs: Inputs, dynamic_shapes: Any = None) -> Any:
    """What `torch.export` returns for a model in evaluation mode; raises what the forward and the export raise.

    Args:
        model: Any module.
        inputs: The arguments of its forward.
        dynamic_shapes: The dimensions whose length may be another one later, as `torch.export` takes them.

    Returns:
        The program.
    """
    printed = StringIO()
    with (
        eval_mode(model),
        exact_attention(),
        torch.enable_grad(),
        warnings.catch_warnings(),
        redirect_stderr(printed),
    ):
        warnings.simplefilter("ignore")  # about recurrent modules, and within torch itself
        program = torch.export.export(model, *inputs, dynamic_shapes=dynamic_shapes, strict=False)
    # What the forward printed. Before an export fails, torch prints the graph as far as it has come, which is left out.
    sys.stderr.write(printed.getvalue())
    return program


def as_arguments(example_inputs: object) -> Inputs:
    """The positional and the named arguments of one call of a model.

    >>> as_arguments({"ids": 1})
    ((), {'ids': 1})
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextmanager
def exact_attention() -> Any:
    """Use the ordinary operators of attention modules in the block: the fused path of evaluation mode has no rule."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def source_line(node: fx.Node) -> str:
    """The user's line that made a node, "file:line: code"; the name of the node where it has none."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    if not frames:
        return node.name
    user_frames = [frame for frame in frames if not frame["file"].startswith(_TORCH)]
    frame = (user_frames or frames)[-1]
    return f"{frame['file'].rpartition('/')[2]}:{frame['line']}: {frame['code'].strip()}"


def module_path(node: fx.Node) -> str:
    """The name of the module in whose forward the node was made; "" for the model itself."""
    return [*module_paths(node), ""][0]


def module_paths(node: fx.Node) -> list[str]:
    """The names of the modules in whose forward the node was made, the innermost first."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [str(path).partition("@")[0] for path, _ in reversed(stack)]  # "@1" is the number of the call


def describe_node(node: fx.Node) -> str:
    """The operator of a node, the module that it belongs to, and the user's source line, for messages."""
    path = module_path(node)
    return f"{operator_name(node.target)!r}{f' of {path!r}' if path else ''} ({source_line(node)})"


def layer_path(traced: TracedGraph, node: fx.Node, model: nn.Module) -> str | None:
    """The name of the Linear or convolution whose forward made a node.

    Args:
        traced: The graph of the node.
        node: A node.
        model: The model of the graph.

    Returns:
        The name of the module; None for other nodes, for a weight that is computed or that is also that of a module
        before it, and for a forward that is not torch's.
    """
    weight = bind_arguments(node).get("weight")
    path, _, last = traced.tensors.get(getattr(weight, "name", ""), "").rpartition(".")
    if last != "weight" or path != module_path(node):
        return None
    layer = model.get_submodule(path)
    is_layer = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return path if is_layer and has_forward_of_torch(layer) else None


def operator_name(target: Any) -> str:
    """The name of an operator without namespace, overload, and the underscore of in-place operators.

    >>> operator_name(torch.ops.aten.relu_.default)
    'relu'
    """
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name = str(schema.name).rpartition("::")[2]
    return name if name.startswith("_") and name.endswith("__") else name.rstrip("_")


def bind_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node by the names of the operator's schema, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {"args": node.args, **node.kwargs}
    defaults = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def is_getitem(node: fx.Node) -> bool:
    """Whether a node takes one of several results of another node."""
    return node.target is operator.getitem


def result_shapes(node: fx.Node) -> list[tuple[int, ...] | None]:
    """The shape of each result of a node; None for a result that is not a tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [tuple(v.shape) if isinstance(v, Tensor) else None for v in values]


def live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that an output depends on, or that change a tensor in place."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op == "output" or (schema is not None and schema.is_mutable) or live.intersection(node.users):
            live.add(node)
    return live


def require_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or tensor attribute of a name.

    Args:
        model: A module that has it.
        name: Its name, with the path of its module.

    Returns:
        The tensor.
    """
    tensor = find_tensor(model, name)
    assert tensor is not None
    return tensor


def find_tensor(model: nn.Module, name: str) -> Tensor | None:
    """The parameter, buffer or attribute of a name.

    Args:
        model: A module.
        name: The name, with the path of its module.

    Returns:
        The tensor, or None where the model has none of this name.
    """
    path, _, last = name.rpartition(".")
    try:
        value = getattr(model.get_submodule(path), last)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else None


def _export_error(model: nn.Module, inputs: Inputs, error: Exception) -> ModelError:
    """The error for a model that cannot be exported: does it run at all, and which line is the cause."""
    name, shapes = type(model).__name__, [tuple(t.shape) for t in iter_tensors(inputs)]
    try:
        with torch.no_grad():
            model(*inputs[0], **inputs[1])
    except Exception as cause:
        return ModelError(
            f"{name} does not take example inputs of shapes {shapes}: {reason_of(cause)}; pass what it takes."
        )
    frame = _user_frame(error)
    advice = next((text for part, text in EXPORT_ADVICE.items() if part in str(error)), CONTROL_FLOW)
    return ModelError(f"{name} cannot be exported with torch.export{frame} ({reason_of(error)}); {advice}.")


CONTROL_FLOW = (
    "prunus needs the graph of a forward without control flow that depends on values: replace it by torch.where or "
    "torch.cond, or prune a part of it"
)
EXPORT_ADVICE = {
    "transformers.cache_utils": "turn off the cache of keys and values, which is an output: set "
    "model.config.use_cache = False",
    "register a pytree": "let its forward return tensors, tuples, lists or dicts, or register the class of the output "
    "with torch.export.register_dataclass",
    "ScriptModule": "pass the Python module that was scripted or traced",
    "numpy()": "replace NumPy by functions of torch",
}
"""What to do, by a part of the message of the export."""


def _user_frame(error: Exception) -> str:
    """The last line outside of torch that an error passed, as " at file:line", or an empty text."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/torch/" not in file and not file.startswith("<") and "/prunus/pruning/structured/" not in file:
            place = f" at {file.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    frames = _FRAME.findall(str(error))
    if not place and frames:
        place = f" at {frames[-1][0].rpartition('/')[2]}:{frames[-1][1]}"
    return place


def _first_names(model: nn.Module) -> dict[str, str]:
    """The first name of every parameter and buffer, by each of its names."""
    first: dict[int, str] = {}
    parameters, buffers = model.named_parameters, model.named_buffers
    tensors = [*parameters(remove_duplicate=False), *buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _check_one_device(model: nn.Module) -> None:
    devices = {str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise ModelError(
            f"Expected all parameters on one device, got {sorted(devices)}; move the model with model.to(device) first."
        )
