"""The narrowed networks of `frankle2019.conv`, as functions of a seed."""

from torch import nn

from prunus.models import MODELS

WIDTH = 0.25
"""Factor of the numbers of channels and of hidden units."""


def narrow_conv_2(seed: int = 0) -> nn.Module:
    """Conv-2 with a quarter of the channels: 16 of them, 64 hidden units; 269,616 weights."""
    return MODELS["conv-2"](seed=seed, width=WIDTH)


def narrow_conv_4(seed: int = 0) -> nn.Module:
    """Conv-4 with a quarter of the channels: 16 and 32 of them, 64 hidden units; 152,368 weights."""
    return MODELS["conv-4"](seed=seed, width=WIDTH)


def narrow_conv_6(seed: int = 0) -> nn.Module:
    """Conv-6 with a quarter of the channels: 16, 32 and 64 of them, 64 hidden units; 142,128 weights."""
    return MODELS["conv-6"](seed=seed, width=WIDTH)
