"""The CIFAR-10 networks of Liu et al. 2019, at the paper's width and narrowed, as functions of a seed."""

from torch import nn

from prunus.models import MODELS
from prunus.models.densenet import DenseNet
from prunus.models.initialization import build_model, kaiming_normal
from prunus.models.preresnet import PreResNet
from prunus.models.resnet import ResNet

NARROW_VGG, NARROW_RESNET = 0.125, 0.5
"""Widths of the default size, as factors of the number of channels."""


def narrow_vgg_16(seed: int = 0) -> nn.Module:
    """VGG-16 for CIFAR-10 with 1/8 of the channels: 231,746 parameters, 5.1 M multiply-accumulates."""
    return MODELS["vgg-16-bn-cifar"](seed=seed, width=NARROW_VGG)


def cifar_resnet_50(seed: int = 0) -> nn.Module:
    """The CIFAR ResNet of depth 6 · 8 + 2 = 50, which the authors' code builds for depth 50."""
    return build_model("cifar-resnet-50", ResNet(8), seed, kaiming_normal)


def narrow_resnet_20(seed: int = 0) -> nn.Module:
    """ResNet-20 for CIFAR-10 with half of the channels: 67,882 parameters, 10.3 M multiply-accumulates."""
    return MODELS["resnet-20"](seed=seed, width=NARROW_RESNET)


def narrow_preresnet_20(seed: int = 0) -> nn.Module:
    """PreResNet-20 for CIFAR-10 with half of the channels."""
    return build_model("narrow-preresnet-20", PreResNet(3, False, width=0.5), seed, kaiming_normal)


def narrow_densenet_16(seed: int = 0) -> nn.Module:
    """DenseNet-16 for CIFAR-10: three blocks of four layers that add six channels each, half of DenseNet-40's."""
    network = DenseNet((4, 4, 4), 12, bottleneck=False, cifar=True, classes=10, width=0.5)
    return build_model("narrow-densenet-16", network, seed, kaiming_normal)
