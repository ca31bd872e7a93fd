"""Any `nn.Module`: checks before work is done with it, its parameters, and its copies."""

import copy
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunus.errors import ModelError, reason_of


def check_module(model: nn.Module) -> None:
    """Raise ModelError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"Expected a torch.nn.Module, got a {type(model).__name__}; pass the network itself."
        )


def check_initialized(model: nn.Module, *, is_changed: bool = True) -> None:
    """Check that `model` is a module whose tensors have values and, if it is changed, can be changed.

    Args:
        model: Any object.
        is_changed: Whether the tensors of the model will be changed.

    Raises:
        ModelError: It is no module, or a tensor is lazy, is on the meta device, or cannot be changed.
    """
    check_module(model)
    for kind, tensors in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for name, tensor in tensors():
            if is_lazy(tensor):
                raise ModelError(
                    f"Expected initialized tensors, but the {kind} {name!r} is lazy and has no shape yet; pass one "
                    "batch through the model first."
                )
            if tensor.is_meta:
                raise ModelError(
                    f"Expected tensors with values, but the {kind} {name!r} is on the meta device; load the weights "
                    "first, after model.to_empty(device=...)."
                )
            if is_changed and tensor.is_inference() and not torch.is_inference_mode_enabled():
                raise ModelError(
                    f"Expected tensors that can be changed, but the {kind} {name!r} was made in torch.inference_mode; "
                    "make the model outside of it."
                )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of those that torch.compile, DataParallel and DistributedDataParallel return.

    >>> unwrapped(nn.DataParallel(nn.Linear(1, 1)))
    Linear(in_features=1, out_features=1, bias=True)
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model.module if isinstance(model, wrappers) else model._orig_mod  # type: ignore[assignment]
    return model


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that torch.compile was called with, whose parameters have no prefix `_orig_mod.`; else `model`."""
    return getattr(model, "_orig_mod", model)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters with `requires_grad = True`, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def find_parameter(model: nn.Module, name: str) -> Tensor:
    """The parameter of this name that the model has now; several times as fast as `get_parameter`.

    Args:
        model: The model.
        name: A name of its `state_dict`.

    Returns:
        The parameter itself.

    Raises:
        ModelError: The model has no parameter of that name.

    >>> find_parameter(nn.Sequential(nn.Linear(2, 1)), "0.bias").shape
    torch.Size([1])
    """
    *modules, last = name.split(".")
    module, parameter = model, None
    try:
        for part in modules:
            module = module._modules[part]  # type: ignore[assignment]
        parameter = module._parameters[last]
    except (AttributeError, KeyError):
        pass
    if parameter is None:
        raise ModelError(
            f"Expected the parameter {name!r}, but the model has no parameter of that name any more; use the model "
            "that the masks were made for, or make new masks."
        )
    return parameter


def copied(model: nn.Module, replaced: Mapping[Tensor, Tensor] | None = None) -> nn.Module:
    """A deep copy of `model`.

    Args:
        model: Any module.
        replaced: What the copy has in place of some tensors; None: a copy of each.

    Returns:
        The copy.

    Raises:
        ModelError: It holds something that cannot be copied.

    >>> copied(nn.Linear(1, 1)).in_features
    1
    """
    # A tensor that a hook computed (weight_norm, torch.nn.utils.prune) is not a leaf, which deepcopy refuses.
    memo = {id(t): t.detach().clone() for t in _tensors_set_by_hooks(model) if not t.is_leaf}
    memo |= {id(tensor): other for tensor, other in (replaced or {}).items()}
    try:
        with warnings.catch_warnings():
            # torch copies graph modules with a deprecated class of its own.
            warnings.simplefilter("ignore", FutureWarning)
            return copy.deepcopy(model, memo)
    except Exception as error:  # a user's module may hold anything
        raise ModelError(
            f"{type(model).__name__} cannot be copied with copy.deepcopy ({reason_of(error)}); remove what cannot be "
            "copied, such as a tensor that was computed from parameters."
        ) from error


def _tensors_set_by_hooks(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that hooks of torch compute from parameters; other computed tensors may be anything."""
    for module in model.modules():
        names = map(computed_attribute, module._forward_pre_hooks.values())
        tensors = [vars(module).get(name) for name in names if name is not None]
        if isinstance(module, nn.RNNBase):
            tensors += module._flat_weights
        yield from (tensor for tensor in tensors if isinstance(tensor, Tensor))


def computed_attribute(hook: object) -> str | None:
    """The name of the tensor that a pre-hook of torch computes from parameters; None for any other hook."""
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name
    return hook.name if isinstance(hook, WeightNorm | SpectralNorm) else None
