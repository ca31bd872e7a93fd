"""The layers of a model in their order, if it is a chain of layers that the sparse backend has kernels for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from prunus.training.modes import restored_modes


class UnsupportedError(Exception):
    """The sparse backend cannot compute a model; the message is a clause that says why."""


@dataclass(frozen=True)
class ChainLayer:
    """One layer of a chain."""

    kind: str
    """"weighted", "relu", "tanh", "sigmoid", "dropout", "max_pool", "batch_norm" or "flatten"."""
    module: nn.Module | None = None
    name: str = ""
    """The name of the module, which precedes the names of its parameters."""
    window: int = 0
    stride: int = 0
    """Of max-pooling."""

    def parameter(self, key: str) -> str:
        """The name of a parameter of the module in the model, such as "weight"."""
        return f"{self.name}.{key}".removeprefix(".")


_MODULES: dict[type[nn.Module], str] = {
    nn.Linear: "weighted",
    nn.Conv2d: "weighted",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Dropout: "dropout",
    nn.MaxPool2d: "max_pool",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.Flatten: "flatten",
    nn.Identity: "identity",
}
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), "relu"),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), "tanh"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), "sigmoid"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), "max_pool"),
    **dict.fromkeys((torch.flatten, "flatten"), "flatten"),
}


def trace_layers(model: nn.Module) -> list[ChainLayer]:
    """The layers of `model` in their order, without those that do nothing.

    Args:
        model: The model, in the modes in which it is trained; it is not changed.

    Returns:
        The layers.

    Raises:
        UnsupportedError: The model is not a chain of supported layers.
    """
    for name, module in model.named_modules():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, kind) for kind in hooks):
            raise UnsupportedError(f"the module {name or type(module).__name__!r} has hooks")
    graphs = [_trace(model, is_training) for is_training in (False, True)]
    if str(graphs[0]) != str(graphs[1]):
        raise UnsupportedError("its forward pass in training mode differs from that in evaluation mode")
    modules, layers, last = dict(model.named_modules()), [], None
    for node in graphs[0].nodes:
        if node.op in ("placeholder", "output"):
            if node.op == "placeholder" and last is not None:
                raise UnsupportedError("its forward pass takes more than one input")
        else:
            if [*node.all_input_nodes] != [last]:
                raise UnsupportedError(f"{_name(node)} does not take the output of the layer before it alone")
            layers.append(_layer(node, modules))
        last = node if node.op != "output" else last
    if node.args != (last,):
        raise UnsupportedError("it does not return the output of its last layer")
    return [layer for layer in layers if layer.kind != "identity"]


def _trace(model: nn.Module, is_training: bool) -> fx.Graph:
    with restored_modes(model):
        for module in model.modules():
            module.training = is_training
        try:
            return fx.Tracer().trace(model)
        except Exception as error:  # a user's forward may fail in any way on a symbolic input
            raise UnsupportedError(f"its forward pass cannot be traced ({type(error).__name__})") from error


def _name(node: fx.Node) -> str:
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> ChainLayer:
    """The layer of a node. Raises UnsupportedError."""
    if node.op == "call_module":
        name, module = str(node.target), modules[str(node.target)]
        kind, settings, what = _MODULES.get(type(module)), vars(module), f"the layer {name!r}"
        if kind is None:
            raise UnsupportedError(f"{what} is a {type(module).__name__}")
        if kind == "dropout" and (not module.training or settings["p"] == 0):
            kind = "identity"
    else:
        name, module = "", None
        kind, settings, what = _FUNCTIONS.get(node.target), _arguments(node), _name(node)
        if kind is None:
            raise UnsupportedError(f"its forward pass uses {what}")
    if kind == "flatten" and (settings.get("start_dim", 0), settings.get("end_dim", -1)) != (1, -1):
        raise UnsupportedError(f"{what} does not flatten all dimensions")
    window, stride = _pooling(node, settings) if kind == "max_pool" else (0, 0)
    return ChainLayer(kind, module, name, window, stride)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a function behind the input, by name."""
    pooling, flattening = ("kernel_size", "stride", "padding", "dilation"), ("start_dim", "end_dim")
    names = flattening if _name(node) == "flatten" else pooling
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _pooling(node: fx.Node, settings: dict[str, Any]) -> tuple[int, int]:
    """Window and stride of max-pooling. Raises UnsupportedError unless windows are squares without padding."""
    window, stride = settings["kernel_size"], settings.get("stride") or settings["kernel_size"]
    sides = {*(window if isinstance(window, tuple) else (window,))}
    steps = {*(stride if isinstance(stride, tuple) else (stride,))}
    others = [settings.get("padding", 0) not in (0, (0, 0)), settings.get("dilation", 1) not in (1, (1, 1))]
    others += [bool(settings.get(key)) for key in ("ceil_mode", "return_indices")]
    if len(sides) > 1 or len(steps) > 1 or any(others):
        raise UnsupportedError(
            f"the pooling {_name(node)} has padding, dilation, or a window that is not square"
        )
    return sides.pop(), steps.pop()
