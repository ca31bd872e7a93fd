"""Pairs of layers where the outputs of the one are the inputs of the other, channel by channel.

Found by tracing the model (torch.fx). Between the two layers of a link only operations may stand that treat
each channel alone (activations, pooling, dropout, flattening, BatchNorm), and nothing else may read what flows
there. Whatever is not such a pair (a residual sum, a concatenation, an operator not listed here) is left alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.errors import ModelError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNELWISE_MODULES = (
    *NORMS,
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
    nn.Flatten,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
CHANNELWISE_FUNCTIONS = {
    F.relu,
    torch.relu,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    torch.tanh,
    F.tanh,
    torch.sigmoid,
    F.sigmoid,
    F.hardswish,
    F.dropout,
    F.max_pool2d,
    torch.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.flatten,
}
CHANNELWISE_METHODS = {"relu", "tanh", "sigmoid", "flatten", "contiguous"}


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
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        if not _is_layer(node, modules) or called.count(str(node.target)) > 1:
            continue
        between, reader = [], _only_reader(node)
        while reader is not None and _is_channelwise(reader, modules):
            between.append(reader)
            reader = _only_reader(reader)
        if reader is not None and _is_layer(reader, modules) and called.count(str(reader.target)) == 1:
            found.append(Link(str(node.target), str(reader.target), tuple(between)))
    return [link for link in found if _fits(link, modules)]


def _is_layer(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    return isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1


def _is_channelwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], CHANNELWISE_MODULES)
    if node.op == "call_method":
        return node.target in CHANNELWISE_METHODS
    return node.op == "call_function" and node.target in CHANNELWISE_FUNCTIONS


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].all_input_nodes == [node] else None


def _fits(link: Link, modules: dict[str, nn.Module]) -> bool:
    """Whether the second layer's inputs are a whole number of the first's outputs."""
    return weight_of(modules[link.second]).shape[1] % weight_of(modules[link.first]).shape[0] == 0


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear or convolutional layer, [O, I, ...]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
