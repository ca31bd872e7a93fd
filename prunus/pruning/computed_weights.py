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
        prefix, tensor = f"parametrizations.{attribute}.", trial().detach()
        own = {name: p for name, p in trial.named_parameters(recurse=False) if p.shape == tensor.shape}
        if len(own) != 1:
            continue
        (name,) = own
        half = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor.device) < 0.5
        own[name].copy_(own[name] * half)
        keeps_zeros = not trial()[~half].any()

        def invert(value: Tensor, chain: nn.Module = chain, prefix: str = prefix, name: str = name) -> Params:
            trial = copy.deepcopy(chain).eval()
            try:
                trial.right_inverse(value)
            except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError):
                return {prefix + name: value}  # the parametrization cannot be inverted
            return {prefix + key: p.detach() for key, p in trial.named_parameters(recurse=False)}

        given = tensor * half
        for key, value in invert(given).items():
            trial.get_parameter(key.removeprefix(prefix)).copy_(value)
        keeps_values = torch.allclose(trial(), given, rtol=1e-2, atol=1e-6)
        function = ", ".join(type(part).__name__.lstrip("_") for part in chain)
        yield ComputedWeight(
            layer, attribute, prefix + name, f"the parametrization {function}",
            lambda chain=chain: copy.deepcopy(chain).eval()().detach(), invert, keeps_zeros, keeps_values,
        )  # fmt: skip


@torch.no_grad()
def _hooks(layer: nn.Module) -> Iterator[ComputedWeight]:
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            g, v, dim = f"{hook.name}_g", f"{hook.name}_v", hook.dim
            yield ComputedWeight(
                layer, hook.name, v, "weight_norm",
                lambda hook=hook: hook.compute_weight(layer).detach(),
                lambda value, g=g, v=v, dim=dim: {g: torch.norm_except_dim(value, 2, dim), v: value},
                keeps_zeros=True, keeps_values=True,
            )  # fmt: skip
        elif isinstance(hook, SpectralNorm):
            original = f"{hook.name}_orig"
            yield ComputedWeight(
                layer, hook.name, original, "spectral_norm",
                lambda hook=hook: hook.compute_weight(layer, do_power_iteration=False).detach(),
                lambda value, original=original: {original: value},
                keeps_zeros=True, keeps_values=False,
            )  # fmt: skip
        elif isinstance(hook, BasePruningMethod):
            original = f"{hook._tensor_name}_orig"
            mask = layer.get_buffer(f"{hook._tensor_name}_mask")
            yield ComputedWeight(
                layer, hook._tensor_name, original, "torch.nn.utils.prune",
                lambda hook=hook: hook.apply_mask(layer).detach(),
                lambda value, original=original: {original: value},
                keeps_zeros=True, keeps_values=True, mask=mask.bool(),
            )  # fmt: skip
