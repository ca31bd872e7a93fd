"""Where the activations of a chain of layers are, and which of them the logits depend on.

A neuron or channel is dead if no path of kept weights connects it to the logits. Its gradients are exactly zero,
so that its activation is not computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.training.sparse.trace import ChainLayer, UnsupportedError

Bools = NDArray[np.bool_]

_IN_PLACE = ("relu", "tanh", "sigmoid")


@dataclass
class Slot:
    """The activations of a layer: channels of height × width vectors, with a border of zeros for the next layer."""

    channels: int
    height: int = 1
    width: int = 1
    border: int = 0
    place: int = 0
    """The first place, of the corner of the border of the first channel."""
    live: Bools = field(default_factory=lambda: np.zeros(0, bool))
    """The channels that the logits depend on."""

    @property
    def stride(self) -> int:
        """Places from one row to the next."""
        return self.width + 2 * self.border

    @property
    def area(self) -> int:
        """Places from one channel to the next."""
        return self.stride * (self.height + 2 * self.border)

    @property
    def corner(self) -> int:
        """The place of the first position inside the border, relative to that of the channel."""
        return self.border * (self.stride + 1)

    def places(self) -> NDArray[np.int64]:
        """The place of each value of a flattened tensor [C, H, W], relative to `place`."""
        channel, row, column = np.ogrid[: self.channels, : self.height, : self.width]
        places: NDArray[np.int64] = channel * self.area + self.corner + row * self.stride + column
        return places.reshape(-1)


@dataclass(frozen=True)
class Connection:
    """A layer with the activations that it reads and writes."""

    layer: ChainLayer
    source: Slot
    target: Slot
    mask: Bools
    """The kept weights of a linear layer [O, I] or a convolution [O, I, K, K]; empty for other layers."""


def connect_layers(
    layers: Sequence[ChainLayer], masks: Mapping[str, Tensor], shape: Sequence[int]
) -> list[Connection]:
    """Give every layer its slots, and find the live channels of each.

    Args:
        layers: The layers of a chain in their order.
        masks: The masks of the weights of linear layers and convolutions by parameter name; a weight without one is
            kept.
        shape: The shape of one input, [F] or [C, H, W].

    Returns:
        The layers with their slots; those that flatten are left out.

    Raises:
        UnsupportedError: The layers do not fit each other or the input.
    """
    if len(shape) not in (1, 3):
        raise UnsupportedError(f"its inputs have the shape {list(shape)}")
    height, width = shape[1:] or (1, 1)
    slot, is_flat = Slot(shape[0], height, width), len(shape) == 1
    connections: list[Connection] = []
    for layer in layers:
        if layer.kind == "flatten":
            is_flat = True
            continue
        target = _target(layer, slot, is_flat, is_input=not connections)
        if not target.channels:
            raise UnsupportedError(f"the layer {layer.name!r} has no outputs")
        connections.append(Connection(layer, slot, target, _mask(layer, masks)))
        slot = target
    if not connections or not isinstance(connections[-1].layer.module, nn.Linear):
        raise UnsupportedError("its last layer is not linear")
    place = 0
    for used in {id(c): c for pair in connections for c in (pair.source, pair.target)}.values():
        used.place, place = place, place + used.channels * used.area
    _find_live_channels(connections)
    return connections


def live_features(connection: Connection) -> Bools:
    """A boolean for each value of the flattened input of a layer: whether live outputs depend on it."""
    source, mask = connection.source, connection.mask
    if mask.ndim == 2:
        return np.asarray(mask[connection.target.live].any(0))
    channels = source.live if mask.ndim == 0 else _live_inputs(connection)
    return np.repeat(channels, source.height * source.width)


def convolution_settings(module: nn.Conv2d) -> tuple[tuple[int, int], ...]:
    """Kernel, stride, padding and dilation of a convolution, each for height and width. Raises UnsupportedError."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding: tuple[int, ...] = (0, 0)
    if module.padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif not isinstance(module.padding, str):
        padding = module.padding
    if module.padding_mode != "zeros" or (module.padding == "same" and not all(k % 2 for k in kernel)):
        raise UnsupportedError(f"a convolution has the padding {module.padding!r}, {module.padding_mode!r}")
    return tuple((int(h), int(w)) for h, w in (kernel, stride, padding, dilation))


def _target(layer: ChainLayer, source: Slot, is_flat: bool, is_input: bool) -> Slot:
    """The slot that a layer writes. Raises UnsupportedError if the layer does not fit its input."""
    module = layer.module
    if isinstance(module, nn.Linear):
        if not is_flat or module.in_features != source.channels * source.height * source.width:
            raise UnsupportedError(f"the layer {layer.name!r} does not fit its input")
        return Slot(module.out_features)
    if isinstance(module, nn.Conv2d):
        kernel, stride, padding, dilation = convolution_settings(module)
        source.border = max(padding)
        axes = zip((source.height, source.width), kernel, stride, padding, dilation, strict=True)
        sides = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in axes]
        if is_flat or module.in_channels != source.channels or min(sides) < 1:
            raise UnsupportedError(f"the layer {layer.name!r} does not fit its input")
        return Slot(module.out_channels, sides[0], sides[1])
    if layer.kind == "max_pool":
        sides = [(side - layer.window) // layer.stride + 1 for side in (source.height, source.width)]
        if is_flat or min(sides) < 1:
            raise UnsupportedError("a pooling does not fit its input")
        return Slot(source.channels, sides[0], sides[1])
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        is_1d = isinstance(module, nn.BatchNorm1d)
        if not (module.affine and module.track_running_stats and module.momentum is not None):
            raise UnsupportedError(f"the layer {layer.name!r} has no weights, running statistics or momentum")
        if is_1d != is_flat or module.num_features != source.channels or (is_1d and source.area > 1):
            raise UnsupportedError(f"the layer {layer.name!r} does not fit its input")
    if layer.kind in _IN_PLACE and not is_input:
        return source
    return Slot(source.channels, source.height, source.width)


def _mask(layer: ChainLayer, masks: Mapping[str, Tensor]) -> Bools:
    if not isinstance(layer.module, nn.Linear | nn.Conv2d):
        return np.zeros((), np.bool_)
    mask = masks.get(layer.parameter("weight"))
    return np.ones(layer.module.weight.shape, np.bool_) if mask is None else mask.cpu().numpy()


def _find_live_channels(connections: Sequence[Connection]) -> None:
    """Set `live` of all slots, from the last to the first."""
    last = connections[-1].target
    last.live = np.ones(last.channels, bool)
    for connection in reversed(connections):
        source, target = connection.source, connection.target
        if connection.layer.kind == "batch_norm":  # the running statistics are part of the result
            target.live = np.ones(target.channels, bool)
        source.live = _live_inputs(connection) if connection.mask.ndim else target.live


def _live_inputs(connection: Connection) -> Bools:
    """The channels of the input that kept weights of live outputs read."""
    mask, source, live = connection.mask, connection.source, connection.target.live
    if mask.ndim == 2:
        return np.asarray(mask[live].any(0).reshape(source.channels, -1).any(1))
    groups = source.channels // mask.shape[1]
    by_group = (mask.any((2, 3)) & live[:, None]).reshape(groups, -1, mask.shape[1])
    return np.asarray(by_group.any(1).reshape(-1))
