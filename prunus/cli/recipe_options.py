"""The compression recipe of a command line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from prunus.compression.presets import COMPRESSION_RECIPES

if TYPE_CHECKING:
    from torch import nn


def default_preset(model: "nn.Module", *, train: bool = True, is_trained: bool = False) -> str:
    """The compression preset of a network.

    Args:
        model: The network. A built-in one with a preset of its name, such as "lenet-5", uses that.
        train: Whether anything is trained; "without-training" if not.
        is_trained: Whether its weights are trained. Then "cnn" is the preset of a built-in network with BatchNorm and
            color images; that of every other network is "default".

    Returns:
        A key of `COMPRESSION_RECIPES`.

    >>> from prunus.models.loading import make_model
    >>> resnet = make_model("resnet20")
    >>> default_preset(make_model("lenet5")), default_preset(resnet), default_preset(resnet, is_trained=True)
    ('lenet-5', 'default', 'cnn')
    """
    from torch import nn

    from prunus.models import input_shape

    if not train:
        return "without-training"
    name = getattr(model, "built_in", {}).get("name", "")
    if name in COMPRESSION_RECIPES:
        return str(name)
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return "cnn" if is_trained and has_norm and name and input_shape(name)[0] == 3 else "default"


def parse_epochs(texts: Sequence[str]) -> dict[str, int]:
    """The number of epochs by stage.

    Args:
        texts: Texts of the form "final_retrain=5".

    Returns:
        The numbers; `change_recipe` checks the names of the stages.

    Raises:
        typer.BadParameter: A text is not of the form STAGE=N, or two are of one stage.

    >>> parse_epochs(["final_retrain=5"])
    {'final_retrain': 5}
    """
    epochs: dict[str, int] = {}
    for text in texts:
        stage, equals, number = text.partition("=")
        if not (equals and number.isdecimal() and len(number) <= 9):
            raise typer.BadParameter(
                f"Expected STAGE=N, such as final_retrain=5, got {text!r}.", param_hint="--epochs"
            )
        if stage in epochs:
            raise typer.BadParameter(
                f"Expected one number of epochs of {stage}, got {epochs[stage]} and {number}; give one of them.",
                param_hint="--epochs",
            )
        epochs[stage] = int(number)
    return epochs
