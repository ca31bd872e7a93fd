"""MobileNetV2 (Sandler et al. 2018, Table 2), with the names of the parameters of torchvision."""

from torch import Tensor, nn

from prunus.models.initialization import IMAGENET_SHAPE, BuiltIn, scaled

# expansion, output channels, number of blocks, stride of the first
STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def _normed(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """A 1 × 1 expansion, a depthwise 3 × 3 and a linear 1 × 1 convolution; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential()
        if expansion > 1:
            self.conv.append(_normed(inputs, hidden, 1))
        self.conv.append(_normed(hidden, hidden, 3, stride, groups=hidden))
        self.conv.extend([nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)])
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        return x + self.conv(x) if self.is_residual else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """Inverted residual blocks. [B, 3, S, S] -> [B, classes]; channels are multiples of 8 at every width."""

    def __init__(self, classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width, 8)
        self.features = nn.Sequential(_normed(3, channels, 3, 2))
        for expansion, base_channels, number, first_stride in STAGES:
            for block in range(number):
                outputs = scaled(base_channels, width, 8)
                stride = 1 if block else first_stride
                self.features.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = scaled(1280, max(width, 1.0), 8)
        self.features.append(_normed(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


MOBILENET_V2 = BuiltIn(
    "mobilenet-v2",
    "MobileNetV2: 3,504,872 parameters, 0.30 G multiply-accumulates for ImageNet.",
    MobileNetV2,
    input_shape=IMAGENET_SHAPE,
)
