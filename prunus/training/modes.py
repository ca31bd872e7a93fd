"""Training and evaluation modes: which modules train, and every mode restored afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

Modes = Sequence[tuple[nn.Module, bool]]
"""Each module of a model, the model itself first, and whether it is in training mode."""


def module_modes(model: nn.Module) -> Modes:
    """The mode of every module."""
    return [(module, module.training) for module in model.modules()]


def set_modes(modes: Modes) -> None:
    """Put every module into its mode."""
    root, mode = modes[0]
    root.train(mode)  # modules may override `train`, to merge weights for inference for example
    for module, mode in modes:
        module.training = mode


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module on leaving, also after an error."""
    modes = module_modes(model)
    try:
        yield
    finally:
        set_modes(modes)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; on leaving every module is in the mode it had, a frozen BatchNorm too.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with eval_mode(model):
    ...     model.training
    False
    >>> model.training, model[1].training
    (True, False)
    """
    with restored_modes(model):
        model.eval()
        yield


def start_training(model: nn.Module) -> Modes:
    """Put the modules that are to train into training mode; returns the modes of all modules.

    A model that is in training mode keeps the mode of each of its modules: a BatchNorm or a dropout that was put into
    evaluation mode stays there. A model that is in evaluation mode as a whole, as after loading a trained one, is put
    into training mode, except for normalization layers whose parameters are all frozen (`requires_grad = False`).

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).requires_grad_(False), nn.Dropout()).eval()
    >>> [mode for _, mode in start_training(model)]
    [True, True, False, True]
    """
    if not model.training:
        frozen = [module for module in model.modules() if not module.training and _is_frozen_norm(module)]
        model.train()
        for module in frozen:
            module.training = False
    return module_modes(model)


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether the module is a BatchNorm or InstanceNorm with parameters, none of which is to be trained."""
    parameters = list(module.parameters(recurse=False))
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
    return is_norm and bool(parameters) and not any(p.requires_grad for p in parameters)
