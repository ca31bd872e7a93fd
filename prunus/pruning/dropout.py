"""Dropout for a pruned layer: fewer connections need less of it.

    D_r = D_o · sqrt(C_ir / C_io)        C_io, C_ir: connections of layer i before and after pruning

Source: Han et al. 2015, section 3.2, eq. 2.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import sqrt

from torch import nn

from prunus.masks import mask_density
from prunus.types import MaskDict

DROPOUT = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout
)  # fmt: skip


def retraining_dropout_rates(model: nn.Module, masks: MaskDict) -> dict[str, float]:
    """The rate D_r of every dropout module, by name: scaled by the density of the next masked layer.

    "Next" is in the order of `named_modules`, that is, of definition. A dropout with no masked layer after it
    keeps its rate, and so does the dropout inside recurrent and attention layers.

    Args:
        model: The network.
        masks: Its masks, by parameter name.

    Returns:
        {module name: rate}
    """
    masks_by_layer: dict[str, MaskDict] = defaultdict(dict)
    for name, mask in masks.items():
        masks_by_layer[name.rpartition(".")[0]][name] = mask
    rates: dict[str, float] = {}
    waiting: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, DROPOUT):
            waiting.append(name)
            rates[name] = module.p
        if name in masks_by_layer:
            for dropout in waiting:
                rates[dropout] *= sqrt(mask_density(masks_by_layer[name]))
            waiting = []
    return rates


@contextmanager
def scaled_dropout(model: nn.Module, masks: MaskDict) -> Iterator[None]:
    """Inside, the dropout modules of `model` have their retraining rates; afterwards their own again.

    Args:
        model: The network; its rates are changed in place.
        masks: Its masks, by parameter name.
    """
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, rate in retraining_dropout_rates(model, masks).items():
            stack.callback(setattr, modules[name], "p", modules[name].p)
            modules[name].p = rate
        yield
