"""The built-in models, by name. Each is a function of a seed; its docstring states the number of parameters."""

from collections.abc import Callable

from torch import nn

from prunus.models.conv import conv_2, conv_4, conv_6
from prunus.models.lenet import lenet_5, lenet_300_100
from prunus.models.resnet import resnet_20, resnet_32, resnet_44, resnet_56, resnet_110

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "conv-2": conv_2,
    "conv-4": conv_4,
    "conv-6": conv_6,
    "resnet-20": resnet_20,
    "resnet-32": resnet_32,
    "resnet-44": resnet_44,
    "resnet-56": resnet_56,
    "resnet-110": resnet_110,
}
