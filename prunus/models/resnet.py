"""ResNet-20 to -110 for CIFAR (He et al. 2016, "Deep residual learning for image recognition", section 4.2).

A 3 × 3 convolution; three stages of n blocks with 16, 32 and 64 channels on 32 × 32, 16 × 16 and 8 × 8 positions; the
mean over all positions; 10 units: 6n + 2 layers. A block is two 3 × 3 convolutions with BatchNorm and ReLU, and a
shortcut over both without parameters (option A of the paper): where a stage halves the side, the shortcut takes every
second position and pads the new channels with zeros, half of them before and half after the old ones. Kaiming-normal
weights.

The names of the parameters are those of Idelbayev's "Proper ResNet implementation for CIFAR10/CIFAR100 in PyTorch", so
that weights trained with it can be loaded. They were trained on images that are normalized with the constants of
ImageNet, and `cifar-10` is normalized with its own: the network first converts one normalization into the other. This
is a fixed change of scale and origin, not a parameter, and not in the state_dict; a network that is trained from
scratch learns the same functions with it.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.data.cifar10 import MEAN, STD
from prunus.errors import ModelError
from prunus.models.initialization import BuiltIn, scaled

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two convolutions and the shortcut over them. [B, I, S, S] -> [B, O, S / stride, S / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        before = self.new // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))
        return F.relu(residual + shortcut)


class ResNet(nn.Module):
    """`blocks` residual blocks per stage. [B, 3, 32, 32], normalized as `cifar-10` is -> [B, 10]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, blocks: int, width: float = 1.0) -> None:
        super().__init__()
        channels = [scaled(base, width) for base in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[0], blocks, 1)
        self.layer2 = _stage(channels[0], channels[1], blocks, 2)
        self.layer3 = _stage(channels[1], channels[2], blocks, 2)
        self.linear = nn.Linear(channels[2], 10)
        # (x · STD + MEAN - IMAGENET_MEAN) / IMAGENET_STD, channel by channel
        mean, std, imagenet_mean, imagenet_std = (
            torch.tensor(constants, dtype=torch.float64).reshape(1, 3, 1, 1)
            for constants in (MEAN, STD, IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("scale", (std / imagenet_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - imagenet_mean) / imagenet_std).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch. Raises ModelError unless the images have three channels."""
        if x.dim() != 4 or x.shape[1] != 3:  # one channel would be broadcast to three
            raise ModelError(f"Expected images [B, 3, H, W] of three channels, got {list(x.shape)}.")
        x = F.relu(self.bn1(self.conv1(x * self.scale + self.shift)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


_DESCRIPTIONS = {
    20: "ResNet-20: 268,336 weights, 269,722 parameters.",
    32: "ResNet-32: 461,872 weights, 464,154 parameters.",
    44: "ResNet-44: 655,408 weights, 658,586 parameters.",
    56: "ResNet-56: 848,944 weights, 853,018 parameters.",
    110: "ResNet-110: 1,719,856 weights, 1,727,962 parameters.",
}
RESNETS = tuple(
    BuiltIn(f"resnet-{depth}", text, partial(ResNet, (depth - 2) // 6))
    for depth, text in _DESCRIPTIONS.items()
)
