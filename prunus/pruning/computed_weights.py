"""Weights that a layer computes from parameters: parametrizations, weight_norm, spectral_norm, torch.nn.utils.prune.

Such a weight is pruned through one parameter, of the same shape, whose zeros are zeros of the weight:

    torch.nn.utils.parametrizations.*    parametrizations.weight.original, or original1 of weight_norm
    torch.nn.utils.weight_norm           weight_v       w = g · v / |v|
    torch.nn.utils.spectral_norm         weight_orig    w = v / σ(v)
    torch.nn.utils.prune                 weight_orig    w = v · mask

Whether zeros stay zero is tried, because a parametrization may be any function: that of an orthogonal matrix does not
keep them.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunus.types import Params


@dataclass(frozen=True)
class ComputedWeight:
    """A tensor of a layer that is computed from parameters."""

    layer: nn.Module
    attribute: str
    """The name of the computed tensor in the layer, such as "weight"."""
    parameter: str
    """The name in the layer of the parameter of the same shape whose zeros are those of the tensor."""
    function: str
    """What computes the tensor, for messages."""
    compute: Callable[[], Tensor]
    """() -> the tensor."""
    invert: Callable[[Tensor], Params]
    """Tensor -> the values, by name in the layer, of the parameters from which it is computed."""
    keeps_zeros: bool
    """Whether a zero of the parameter is a zero of the tensor."""
    keeps_values: bool
    """Whether the tensor is the one that was given to `invert`; spectral_norm scales it."""
    mask: Tensor | None = None
    """The mask of torch.nn.utils.prune."""


def computed_weights(layer: nn.Module) -> list[ComputedWeight]:
    """The tensors of a layer, not of its submodules, that are computed from parameters of the same shape.

    >>> [c.parameter for c in computed_weights(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))]
    ['parametrizations.weight.original1']
    """
    return [*_parametrizations(layer), *_hooks(layer)]


def refresh_computed_weights(layer: nn.Module) -> None:
    """Compute again the tensors that a pre-hook of `layer` sets before each forward pass."""
    for computed in _hooks(layer):
        setattr(layer, computed.attribute, computed.compute())


@torch.no_grad()
def _parametrizations(layer: nn.Module) -> Iterator[ComputedWeight]:
    if not parametrize.is_parametrized(layer):
        return
    parametrizations = layer.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    for attribute, chain in parametrizations.items():
        assert isinstance(chain, parametrize.ParametrizationList)
        # A copy, because a parametrization may change its buffers.
        trial = copy.deepcopy(chain).eval()
        tensor = _value(chain)
        originals = {name: p for name, p in trial.named_parameters(recurse=False) if p.shape == tensor.shape}
        if len(originals) != 1:
            continue
        (name,) = originals
        half = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor.device) < 0.5
        originals[name].copy_(originals[name] * half)
        keeps_zeros = not _value(trial)[~half].any()
        prefix = f"parametrizations.{attribute}."
        invert = partial(_invert_parametrization, chain, prefix, name)
        for key, value in invert(tensor * half).items():
            trial.get_parameter(key.removeprefix(prefix)).copy_(value)
        keeps_values = torch.allclose(_value(trial), tensor * half, rtol=1e-2, atol=1e-6)
        function = ", ".join(type(part).__name__.lstrip("_") for part in chain)
        yield ComputedWeight(
            layer, attribute, prefix + name, f"the parametrization {function}",
            partial(_value, chain), invert, keeps_zeros, keeps_values,
        )  # fmt: skip


@torch.no_grad()
def _value(chain: nn.Module) -> Tensor:
    value: Tensor = copy.deepcopy(chain).eval()()
    return value.detach()


@torch.no_grad()
def _invert_parametrization(chain: nn.Module, prefix: str, name: str, value: Tensor) -> Params:
    trial = copy.deepcopy(chain).eval()
    assert isinstance(trial, parametrize.ParametrizationList)
    try:
        trial.right_inverse(value)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return {prefix + name: value}  # the parametrization cannot be inverted
    return {prefix + key: p.detach() for key, p in trial.named_parameters(recurse=False)}


def _hooks(layer: nn.Module) -> Iterator[ComputedWeight]:
    """The tensors that pre-hooks of torch compute, by their classes."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield ComputedWeight(
                layer, hook.name, f"{hook.name}_v", "weight_norm", partial(_detached, hook.compute_weight, layer),
                partial(_invert_weight_norm, hook.name, hook.dim), keeps_zeros=True, keeps_values=True,
            )  # fmt: skip
        elif isinstance(hook, SpectralNorm):
            compute = partial(hook.compute_weight, do_power_iteration=False)
            original = f"{hook.name}_orig"
            yield ComputedWeight(
                layer, hook.name, original, "spectral_norm", partial(_detached, compute, layer),
                partial(_as_parameter, original), keeps_zeros=True, keeps_values=False,
            )  # fmt: skip
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            mask = layer.get_buffer(f"{name}_mask").bool()
            yield ComputedWeight(
                layer, name, f"{name}_orig", "torch.nn.utils.prune", partial(_detached, hook.apply_mask, layer),
                partial(_as_parameter, f"{name}_orig"), keeps_zeros=True, keeps_values=True, mask=mask,
            )  # fmt: skip


def _detached(compute: Callable[[nn.Module], Tensor], layer: nn.Module) -> Tensor:
    return compute(layer).detach()


def _as_parameter(name: str, value: Tensor) -> Params:
    return {name: value}


def _invert_weight_norm(name: str, dim: int, value: Tensor) -> Params:
    return {f"{name}_g": torch.norm_except_dim(value, 2, dim), f"{name}_v": value}
