"""DenseNet-40, -BC-100 and -121 (Huang et al. 2017, "Densely connected convolutional networks", Tables 1 and 2).

Every layer takes the channels of all layers before it in its block and adds `growth` ones. With a bottleneck (B), a
1 × 1 convolution to 4 · growth channels precedes the 3 × 3 one; with compression (C), a transition halves the channels.
The names of the parameters are those of torchvision.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.models.initialization import IMAGENET_SHAPE, BuiltIn, scaled


class DenseLayer(nn.Module):
    """Normalization, ReLU, convolution, once or twice; the new channels. [B, I, S, S] -> [B, growth, S, S]."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        hidden, size = (4 * growth, 1) if bottleneck else (growth, 3)
        self.conv1 = nn.Conv2d(inputs, hidden, size, padding=size // 2, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden) if bottleneck else None
        self.conv2 = nn.Conv2d(hidden, growth, 3, padding=1, bias=False) if bottleneck else None

    def forward(self, x: Tensor) -> Tensor:
        """The new channels for a batch."""
        x = self.conv1(F.relu(self.norm1(x)))
        return x if self.norm2 is None or self.conv2 is None else self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    """Layers, each of which takes the channels of all before it. [B, I, S, S] -> [B, I + layers · growth, S, S]."""

    def __init__(self, layers: int, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        for number in range(layers):
            layer = DenseLayer(inputs + number * growth, growth, bottleneck)
            self.add_module(f"denselayer{number + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """All channels for a batch."""
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(nn.Module):
    """Normalization, ReLU, a 1 × 1 convolution, and a pooling. [B, I, S, S] -> [B, O, S / 2, S / 2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """Dense blocks with transitions between. [B, 3, S, S] -> [B, classes].

    The CIFAR networks (`cifar`) have a 3 × 3 convolution before the first block, those for ImageNet a 7 × 7 one with
    stride 2 and a pooling.
    """

    def __init__(
        self, blocks: tuple[int, ...], growth: int, bottleneck: bool, cifar: bool = False, classes: int = 1000,
        width: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        growth = scaled(growth, width)
        channels = 2 * growth if bottleneck else scaled(16, width)
        features = nn.Sequential()
        stem = {"kernel_size": 3, "padding": 1} if cifar else {"kernel_size": 7, "stride": 2, "padding": 3}
        features.add_module("conv0", nn.Conv2d(3, channels, bias=False, **stem))  # type: ignore[arg-type]
        if not cifar:
            features.add_module("norm0", nn.BatchNorm2d(channels))
            features.add_module("relu0", nn.ReLU())
            features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for number, layers in enumerate(blocks, start=1):
            features.add_module(f"denseblock{number}", DenseBlock(layers, channels, growth, bottleneck))
            channels += layers * growth
            if number < len(blocks):
                outputs = channels // 2 if bottleneck else channels
                features.add_module(f"transition{number}", Transition(channels, outputs))
                channels = outputs
        features.add_module("norm5", nn.BatchNorm2d(channels))
        self.features = features
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))  # type: ignore[no-any-return]


_DENSENET_40 = partial(DenseNet, (12,) * 3, 12, False, cifar=True, classes=10)
_DENSENET_BC_100 = partial(DenseNet, (16,) * 3, 12, True, cifar=True, classes=10)
_DENSENET_121 = partial(DenseNet, (6, 12, 24, 16), 32, True)
DENSENETS = (
    BuiltIn("densenet-40", "DenseNet-40, growth 12: 1,019,722 parameters.", _DENSENET_40),
    BuiltIn("densenet-bc-100", "DenseNet-BC-100, growth 12: 769,162 parameters.", _DENSENET_BC_100),
    BuiltIn(
        "densenet-121",
        "DenseNet-121: 7,978,856 parameters, 2.83 G multiply-accumulates for ImageNet.",
        _DENSENET_121,
        input_shape=IMAGENET_SHAPE,
    ),
)
