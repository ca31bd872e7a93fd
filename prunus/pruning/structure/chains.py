"""Pairs of layers where the outputs of the one are the inputs of the other, channel by channel.

Found by tracing the model (torch.fx). Between the two layers of a link only operations may stand that treat
each channel alone (activations, pooling, dropout, flattening, BatchNorm), and nothing else may read what flows
there. Whatever is not such a pair (a residual sum, a concatenation, an operator not listed here) is left alone.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ELEMENTWISE = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
FUNCTIONS: dict[object, str] = {
    **dict.fromkeys((F.relu, torch.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.dropout), "e"),
    **dict.fromkeys((torch.tanh, F.tanh, torch.sigmoid, F.sigmoid), "e"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d), "p"),
    torch.flatten: "f",
}
METHODS: dict[object, str] = {"relu": "e", "tanh": "e", "sigmoid": "e", "contiguous": "e", "flatten": "f"}
"""Kinds of operations: e, elementwise; n, BatchNorm; p, pooling of places; f, flattening from the channels on."""

PATTERNS = {"linear-linear": "[en]*", "conv-conv": "[enp]*", "conv-linear": "[enp]*fe*"}
"""What may stand between two layers: then, and only then, a channel of the one is a channel of the other."""


@dataclass(frozen=True)
class Link:
    """Two layers by module name, and the traced operations between them, in order."""

    first: str
    second: str
    between: tuple[fx.Node, ...]

    def norms(self, modules: dict[str, nn.Module]) -> list[str]:
        """The BatchNorm modules between the two."""
        names = [str(node.target) for node in self.between if node.op == "call_module"]
        return [name for name in names if isinstance(modules[name], NORMS)]


def links(model: nn.Module) -> list[Link]:
    """Every link of `model`, from the input on. Raises ModelError where the model cannot be traced."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # tracing runs the user's forward, which may fail in any way
        raise ModelError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}), so it is not known which "
            "of its layers hang together."
        ) from error
    modules = dict(model.named_modules())
    alone = _used_once(model, graph)
    found = []
    for node in graph.nodes:
        between, reader = [], _only_reader(node)
        while reader is not None and _kind(reader, modules):
            between.append(reader)
            reader = _only_reader(reader)
        if reader is not None and {node.target, reader.target} <= alone:
            found.append(Link(str(node.target), str(reader.target), tuple(between)))
    return [link for link in found if _fits(link, modules)]


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
    }


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The letter of an operation that treats each channel alone, or None."""
    if node.op == "call_module":
        module = modules[str(node.target)]
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


def _fits(link: Link, modules: dict[str, nn.Module]) -> bool:
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
