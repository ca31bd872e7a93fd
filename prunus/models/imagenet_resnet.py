"""ResNet-18, -34 and -50 for ImageNet (He et al. 2016, "Deep residual learning for image recognition", Table 1).

A block has two 3 × 3 convolutions (ResNet-18, -34), or a 1 × 1, a 3 × 3 and a 1 × 1 one with four times the channels
(ResNet-50; the 3 × 3 convolution has the stride). Shortcuts between stages have a 1 × 1 convolution. The names of the
parameters are those of torchvision.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from prunus.models.initialization import IMAGENET_SHAPE, BuiltIn, scaled


class ResidualBlock(nn.Module):
    """Two or three convolutions and the shortcut over them. [B, I, S, S] -> [B, O, S / stride, S / stride]."""

    def __init__(self, inputs: int, hidden: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = hidden * 4 if bottleneck else hidden
        # (inputs, outputs, kernel size, stride) of each convolution
        shapes = [(inputs, hidden, 3, stride), (hidden, hidden, 3, 1)]
        if bottleneck:
            shapes = [(inputs, hidden, 1, 1), (hidden, hidden, 3, stride), (hidden, outputs, 1, 1)]
        self.num_convolutions = len(shapes)
        for number, (i, o, size, step) in enumerate(shapes, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(i, o, size, step, size // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(o))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.num_convolutions + 1):
            x = x if number == 1 else F.relu(x)
            x = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x))
        return F.relu(x + shortcut)


class ImageNetResNet(nn.Module):
    """Four stages of residual blocks. [B, 3, 224, 224] -> [B, classes]."""

    def __init__(
        self, blocks: tuple[int, ...], bottleneck: bool, classes: int = 1000, width: float = 1.0
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, number in enumerate(blocks):
            hidden = scaled(64 * 2**stage, width)
            layer = nn.Sequential()
            for block in range(number):
                stride = 2 if stage and not block else 1
                layer.append(ResidualBlock(channels, hidden, stride, bottleneck))
                channels = hidden * 4 if bottleneck else hidden
            self.add_module(f"layer{stage + 1}", layer)
        self.num_stages = len(blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


IMAGENET_RESNETS = tuple(
    BuiltIn(f"resnet-{depth}", text, partial(ImageNetResNet, blocks, bottleneck), input_shape=IMAGENET_SHAPE)
    for depth, text, blocks, bottleneck in (
        (
            18,
            "ResNet-18: 11,689,512 parameters, 1.81 G multiply-accumulates for ImageNet.",
            (2, 2, 2, 2),
            False,
        ),
        (
            34,
            "ResNet-34: 21,797,672 parameters, 3.66 G multiply-accumulates for ImageNet.",
            (3, 4, 6, 3),
            False,
        ),
        (
            50,
            "ResNet-50: 25,557,032 parameters, 4.09 G multiply-accumulates for ImageNet.",
            (3, 4, 6, 3),
            True,
        ),
    )
)
