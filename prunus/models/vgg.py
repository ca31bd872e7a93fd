"""VGG-11, -13, -16 and -19 (Simonyan & Zisserman 2015, Table 1, A, B, D, E), with and without BatchNorm.

For ImageNet, with the names of the parameters of torchvision. The CIFAR networks (`-cifar`) have the same convolutions
with BatchNorm, four poolings, and one fully connected layer (Liu et al. 2017, "Network slimming").
"""

from functools import partial

from torch import Tensor, nn

from prunus.models.initialization import IMAGENET_SHAPE, BuiltIn, scaled

# The number of convolutions in each of the five stages, between which there are poolings.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five stages of 3 × 3 convolutions. [B, 3, 224, 224] or, with `cifar`, [B, 3, 32, 32] -> [B, classes]."""

    def __init__(
        self, depth: int, batch_norm: bool, cifar: bool = False, classes: int = 1000, width: float = 1.0
    ) -> None:
        super().__init__()
        self.features, channels = nn.Sequential(), 3
        for stage, number in enumerate(STAGES[depth]):
            for _ in range(number):
                outputs = scaled(min(64 * 2**stage, 512), width)
                self.features.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not cifar))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(outputs))
                self.features.append(nn.ReLU(inplace=True))
                channels = outputs
            if not cifar or stage < 4:
                self.features.append(nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1 if cifar else 7)
        hidden = scaled(4096, width)
        self.classifier = nn.Linear(channels, classes) if cifar else nn.Sequential(
            *(nn.Linear(channels * 49, hidden), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        return self.classifier(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def _imagenet(depth: int, batch_norm: bool, parameters: str, macs: str) -> BuiltIn:
    name = f"vgg-{depth}-bn" if batch_norm else f"vgg-{depth}"
    layers = f"VGG-{depth} with BatchNorm" if batch_norm else f"VGG-{depth}"
    text = f"{layers}: {parameters} parameters, {macs} G multiply-accumulates for ImageNet."
    return BuiltIn(name, text, partial(VGG, depth, batch_norm), input_shape=IMAGENET_SHAPE)


def _cifar(depth: int, parameters: str, macs: str) -> BuiltIn:
    text = f"VGG-{depth} with BatchNorm: {parameters} parameters, {macs} M multiply-accumulates for CIFAR-10."
    return BuiltIn(f"vgg-{depth}-bn-cifar", text, partial(VGG, depth, True, True, classes=10))


VGGS = (
    _imagenet(11, False, "132,863,336", "7.61"),
    _imagenet(13, False, "133,047,848", "11.31"),
    _imagenet(16, False, "138,357,544", "15.47"),
    _imagenet(19, False, "143,667,240", "19.63"),
    _imagenet(11, True, "132,868,840", "7.61"),
    _imagenet(13, True, "133,053,736", "11.31"),
    _imagenet(16, True, "138,365,992", "15.47"),
    _imagenet(19, True, "143,678,248", "19.63"),
    _cifar(11, "9,228,362", "153"),
    _cifar(13, "9,413,066", "228"),
    _cifar(16, "14,724,042", "313"),
    _cifar(19, "20,035,018", "398"),
)
