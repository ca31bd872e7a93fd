"""Pairs of layers where the outputs of the one are the inputs of the other, channel by channel.

Found by tracing the model (torch.fx). Between the two layers of a link only operations may stand that treat
each channel alone (activations, pooling, dropout, flattening, BatchNorm), and nothing else may read what flows
there. Whatever is not such a pair (a residual sum, a concatenation, an operator not listed here) is left alone:
`layers_without_link` names those layers with the reason. A module with hooks or with a forward of its own is never part
of a link: a trace does not show what they do.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.errors import ModelError
from prunus.pruning.layer_checks import has_forward_of_torch

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
FUNCTIONS: dict[object, str] = {
    **dict.fromkeys(
        (F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign,
         F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.hardtanh, F.hardswish, F.hardsigmoid, F.threshold,
         F.tanh, F.sigmoid, F.dropout, torch.relu, torch.selu, torch.celu, torch.tanh, torch.sigmoid, torch.clamp),
        "e",
    ),
    **dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
         F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
         F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d),
        "p",
    ),
    torch.flatten: "f",
}  # fmt: skip
METHODS: dict[object, str] = {
    **dict.fromkeys(("relu", "tanh", "sigmoid", "clamp", "contiguous"), "e"),
    "flatten": "f",
}
"""Kinds of operations: e, elementwise; n, BatchNorm; p, pooling of places; f, flattening from the channels on."""

PATTERNS = {"linear-linear": "[en]*", "conv-conv": "[enp]*", "conv-linear": "[enp]*fe*"}
"""What may stand between two layers: then, and only then, a channel of the one is a channel of the other."""


@dataclass(frozen=True)
class LayerPair:
    """Two layers by module name, and the traced operations between them, in order."""

    first: str
    second: str
    between: tuple[fx.Node, ...]

    def norms(self, modules: dict[str, nn.Module]) -> list[str]:
        """The BatchNorm modules between the two."""
        names = [str(node.target) for node in self.between if node.op == "call_module"]
        return [name for name in names if isinstance(modules[name], NORMS)]


def layer_pairs(model: nn.Module) -> list[LayerPair]:
    """Every link of `model`, from the input on. Raises ModelError where the model cannot be traced."""
    graph = _trace(model)
    modules = dict(model.named_modules())
    alone = _used_once(model, graph)
    found = []
    for node in graph.nodes:
        if node.target not in alone:
            continue
        between, reader = _followed(node, modules)
        if reader is not None and reader.target in alone:
            found.append(LayerPair(str(node.target), str(reader.target), between))
    return [link for link in found if _fits(link, modules)]


def layers_without_link(model: nn.Module) -> dict[str, str]:
    """Why the outputs of a layer are not followed to a next layer, for each layer where they are not: {name: reason}.

    Raises ModelError where the model cannot be traced.

    >>> layers_without_link(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Linear(2, 2)))
    {'0': "its outputs go to '1' (Softmax)", '2': "its outputs are the model's"}
    """
    graph, modules = _trace(model), dict(model.named_modules())
    linked = {link.first for link in layer_pairs(model)}
    alone = _used_once(model, graph)
    nodes = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    reasons = {}
    for name, module in modules.items():
        if not isinstance(module, LAYERS) or name in linked:
            continue
        if name not in nodes:
            reasons[name] = "the traced forward does not call it"
        elif name not in alone:
            reasons[name] = (
                "it has groups, hooks, a forward of its own, or its weight is used in several places"
            )
        else:
            reasons[name] = _why_not_followed(nodes[name], modules)
    return reasons


def _why_not_followed(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    between, reader = _followed(node, modules)
    last = between[-1] if between else node
    if reader is None:
        readers = [user for user in last.users if user.op != "output"]
        if not readers:
            return "its outputs are the model's"
        reader = readers[0]
    kind = modules[str(reader.target)] if reader.op == "call_module" else reader.target
    name = type(kind).__name__ if isinstance(kind, nn.Module) else getattr(kind, "__name__", str(kind))
    return (
        f"its outputs go to {(str(reader.target) if reader.op == 'call_module' else reader.name)!r} ({name})"
    )


def _followed(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
    """The operations that treat each channel alone after a layer, and the only reader of what they give."""
    between, reader = [], _only_reader(node)
    while reader is not None and _kind(reader, modules):
        between.append(reader)
        reader = _only_reader(reader)
    return tuple(between), None if reader is not None and reader.op == "output" else reader


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except (Exception, SystemExit) as error:  # tracing runs the user's forward, which may fail in any way
        raise ModelError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}), so it is not known which "
            "of its layers hang together."
        ) from error


def _used_once(model: nn.Module, graph: fx.Graph) -> set[object]:
    """The layers that are called once, and whose tensors nobody else holds or reads."""
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    holders: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    shared = {name for names in holders.values() if len(names) > 1 for name in names}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        and getattr(module, "groups", 1) == 1
        and called.count(name) == 1
        and name not in read | shared
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and _is_traced_whole(module)
    }


def _is_traced_whole(module: nn.Module) -> bool:
    """Whether a module does what its type does: it has no hooks, and the forward is that of torch.nn."""
    return not (module._forward_hooks or module._forward_pre_hooks) and has_forward_of_torch(module)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The letter of an operation that treats each channel alone, or None."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not _is_traced_whole(module):
            return None
        if isinstance(module, nn.Flatten):
            return "f" if (module.start_dim, module.end_dim) == (1, -1) else None
        kinds = {"e": ELEMENTWISE, "n": NORMS, "p": POOLS}
        return next((letter for letter, types in kinds.items() if isinstance(module, types)), None)
    kind = {"call_method": METHODS, "call_function": FUNCTIONS}.get(node.op, {}).get(node.target)
    if kind == "f" and (node.args[1:], dict(node.kwargs)) not in (((1,), {}), ((), {"start_dim": 1})):
        return None
    return kind


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].all_input_nodes == [node] else None


def _fits(link: LayerPair, modules: dict[str, nn.Module]) -> bool:
    """Whether the second layer's inputs are the first's outputs, or for each of them a block of places."""
    first, second = modules[link.first], modules[link.second]
    way = "-".join("linear" if isinstance(layer, nn.Linear) else "conv" for layer in (first, second))
    kinds = "".join(_kind(node, modules) or "" for node in link.between)
    outputs, inputs = weight_of(first).shape[0], weight_of(second).shape[1]
    blocks = inputs % outputs == 0 if way == "conv-linear" else inputs == outputs
    norms = all(modules[name].num_features == outputs for name in link.norms(modules))
    return way in PATTERNS and re.fullmatch(PATTERNS[way], kinds) is not None and blocks and norms


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear or convolutional layer, [O, I, ...]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
