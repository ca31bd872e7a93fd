"""The built-in models, by name. Each is a function of a seed; its description states the number of parameters."""

from collections.abc import Callable

from torch import nn

from prunus.models.conv import CONVS
from prunus.models.densenet import DENSENETS
from prunus.models.imagenet_resnet import IMAGENET_RESNETS
from prunus.models.lenet import lenet_5, lenet_300_100
from prunus.models.mobilenet import MOBILENET_V2
from prunus.models.preresnet import PRERESNETS
from prunus.models.resnet import RESNETS
from prunus.models.vgg import VGGS
from prunus.models.vit import VIT_SMALL

_CONVOLUTIONAL = (*CONVS, *RESNETS, *PRERESNETS, *DENSENETS[:2], *VGGS, *IMAGENET_RESNETS, DENSENETS[2])
MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    **{model.name: model for model in (*_CONVOLUTIONAL, MOBILENET_V2, VIT_SMALL)},
}


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of one example of a built-in model.

    Args:
        name: A key of MODELS.

    Returns:
        Without the dimension of the batch.

    >>> input_shape("resnet-50"), input_shape("lenet-5")
    ((3, 224, 224), (1, 28, 28))
    """
    default = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    return getattr(MODELS[name], "input_shape", default)
