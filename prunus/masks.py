"""Masks: which weights of a model are kept, and `Masks`, which keeps the pruned weights of a model at their values.

A mask is a boolean tensor of the weight's shape, True where the weight is kept. Masks are not part of the model, so the
names of its parameters do not change.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, ModelError
from prunus.modules import check_initialized, find_parameter, trainable_parameters, uncompiled
from prunus.optimizer_hooks import OptimizerHooks
from prunus.types import MaskDict, Params, numel_by_name

Layout = tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...]]
"""The dtype, device, shape and strides of a tensor."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an entry."""


class Masks(Mapping[str, Tensor]):
    """The masks of a model: a mapping from parameter names to boolean tensors, which can be enforced.

    `apply` sets every pruned weight to zero, or to its entry of `pruned_values`. `prunus.train` calls it after every
    step; in a training loop of your own, `attach` makes the optimizer call it. Parameters that have no mask are never
    changed.

    Only the model and the names are stored. The parameters are looked up at every step, so that the masks hold after
    `model.to(...)`, `model.half()`, `load_state_dict(..., assign=True)` and the replacement of a submodule.
    `copy.deepcopy(model)` is a copy without masks; `masks.bind(copy)` masks it. The deep copy of a `Masks` object
    belongs to the same model, or to the copy of the model if the model comes first in the same call, as in
    `copy.deepcopy((model, masks))`. Neither it nor a pickled `Masks` object is attached to an optimizer.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> masks = Masks(model, {"weight": torch.eye(2).bool()})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = masks.attach(optimizer)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> masks.density, masks.verify(), int(model.weight.count_nonzero())
        (0.5, 0, 2)
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], pruned_values: Params | None = None
    ) -> None:
        """Bind masks to a model; the model is not changed until `apply` or `attach`.

        Args:
            model: The model, or a part of the model that is trained. A compiled model stands for the original module.
            masks: Boolean tensors by parameter name, of the parameter's shape.
            pruned_values: The values of pruned weights, by the same names and of the same shapes. None: zero.

        Raises:
            ModelError: A mask is not boolean or has no parameter of its name and shape, or the model has parameters
                without values.
        """
        self.model: nn.Module = uncompiled(model)
        check_initialized(self.model)
        check_boolean(masks)
        masks = {name.removeprefix("_orig_mod."): mask for name, mask in masks.items()}
        parameters = dict(self.model.named_parameters())
        check_masks(parameters, masks)
        self._masks = {name: mask.detach().clone() for name, mask in masks.items()}
        self.pruned_values: dict[str, Tensor] = {}
        """The values of pruned weights, zero where the weight is kept; empty: all pruned weights are zero."""
        if pruned_values is not None:
            values = {name.removeprefix("_orig_mod."): value for name, value in pruned_values.items()}
            check_masks(values, masks)
            self.pruned_values = {
                n: torch.where(m, 0.0, values[n].detach().to(m.device)) for n, m in self._masks.items()
            }
        self._cache: dict[str, tuple[Layout, Tensor, Tensor | None]] = {}
        self._hooks = OptimizerHooks(self.model, list(masks), self._mask_gradient, self.apply)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks(density={self.density:.4g}, tensors={len(self)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Masks":
        made = self.bind(self.model)
        # The copy of a model that contains these masks has no parameters yet, so that it is not checked.
        made.model = made._hooks.model = memo.get(id(self.model), self.model)
        return made

    @classmethod
    def from_state_dict(cls, model: nn.Module, state: Mapping[str, Tensor]) -> "Masks":
        """Masks of `model` from what `state_dict` returned.

        Args:
            model: The model that the masks are bound to.
            state: The bits of each mask by parameter name: uint8 of ceil(n / 8) entries, for n weights.

        Returns:
            The masks. All pruned weights are zero, because `state_dict` does not hold pruned values.

        Raises:
            ModelError: The number of bytes does not fit the parameter of that name, or the model has no such parameter.

        >>> model = nn.Linear(2, 2)
        >>> state = Masks(model, {"weight": torch.eye(2).bool()}).state_dict()
        >>> Masks.from_state_dict(model, state)["weight"]
        tensor([[ True, False],
                [False,  True]])
        """
        shapes = {name.removeprefix("_orig_mod."): p.shape for name, p in model.named_parameters()}
        for name, bits in state.items():
            if name in shapes and bits.numel() != -(-shapes[name].numel() // 8):
                raise ModelError(
                    f"Expected one bit per weight of {name!r}, {list(shapes[name])}, got {bits.numel()} bytes; load "
                    "the masks of this model."
                )
        return cls(model, {name: unpack_mask(bits, shapes.get(name, (0,))) for name, bits in state.items()})

    def bind(self, model: nn.Module) -> "Masks":
        """The same masks and pruned values for another model with these parameters, a copy for example."""
        return Masks(model, self._masks, self.pruned_values or None)

    @property
    def density(self) -> float:
        """The fraction of weights that are kept, all masked parameters together, in [0, 1]."""
        return mask_density(self._masks)

    def apply(self) -> None:
        """Set every pruned weight to zero or to its pruned value.

        Bits of pruned weights are cleared, so that NaN and infinity become zero too. That costs a few percent of a
        training step on CPU, as a product with a float mask would; a boolean fill costs twenty times as much.
        """
        parameters = {name: find_parameter(self.model, name) for name in self._masks}
        # All are checked before the first is changed.
        bits_and_values = {name: self._kept_bits(name, parameter) for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                bits, value = bits_and_values[name]
                clear_bits(parameter, bits)
                if value is not None:
                    parameter.add_(value)

    def verify(self) -> int:
        """The number of pruned weights of the model that are not zero, or not their pruned value."""
        wrong = 0
        for name in self._masks:
            parameter = find_parameter(self.model, name).detach()
            bits, value = self._kept_bits(name, parameter)
            is_wrong = parameter != (0 if value is None else value)
            wrong += int(torch.count_nonzero(is_wrong & (bits == 0)))
        return wrong

    def attach(self, optimizer: torch.optim.Optimizer) -> "Masks":
        """Apply the masks now and after every step of `optimizer`, in any training loop.

        Gradients of pruned weights are zero as soon as they are computed, so that gradient clipping sees the kept
        weights only. Masks may be attached to several optimizers, each of which steps some of the masked parameters;
        attach them to every one that does. What another optimizer adds to pruned weights stays until the next step of
        an attached one.

        Returns:
            These masks.

        Raises:
            ModelError: The optimizer steps none of the masked parameters, or the model was changed and does not have
                them any more. During training: the optimizer does not step one of them any more, because the parameter
                was replaced in the model.
        """
        check_masks({name: find_parameter(self.model, name) for name in self._masks}, self._masks)
        self._hooks.attach(optimizer)
        self.apply()
        return self

    def select(self, kept_indices: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Keep only some entries of dimensions, after channels were removed from the model (`plan.apply`).

        Args:
            kept_indices: The indices that are kept, by parameter name and dimension.
        """
        for tensors in (self._masks, self.pruned_values):
            for name in tensors.keys() & kept_indices.keys():
                for dim, indices in kept_indices[name].items():
                    tensors[name] = tensors[name].index_select(dim, indices.to(tensors[name].device))
        self._cache = {}

    def detach(self) -> None:
        """Remove every hook that `attach` has set; the weights are not changed."""
        self._hooks.detach()

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Every trainable parameter of the model."""
        return trainable_parameters(self.model)

    def before_optimizer_step(self) -> None:
        """Do nothing: the optimizers of a recipe step every weight by itself, and `apply` sets the pruned ones."""

    def finalize(self) -> None:
        """Change every -0.0 to +0.0."""
        for name in self._masks:
            find_parameter(self.model, name).detach().add_(0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, one bit per weight: uint8 of ceil(n / 8) entries by name (see `pack_mask`)."""
        return {name: pack_mask(mask) for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless `state` holds the same masks; masks are never changed."""
        own_masks = self.state_dict()
        if own_masks.keys() != state.keys() or not all(
            torch.equal(own_masks[name], state[name]) for name in own_masks
        ):
            raise CheckpointError(
                "Expected a checkpoint of a training with these masks, got one with other masks; delete it to train "
                "from the start."
            )

    def _mask_gradient(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            bits, _ = self._kept_bits(name, parameter)
            clear_bits(parameter.grad, bits)

    def _kept_bits(self, name: str, parameter: Tensor) -> tuple[Tensor, Tensor | None]:
        """All bits of kept weights, none of pruned ones, and the pruned values, in the layout of the parameter."""
        layout = parameter.dtype, parameter.device, parameter.shape, parameter.stride()
        cached = self._cache.get(name)
        if cached is not None and cached[0] == layout:
            return cached[1:]
        check_masks({name: parameter}, {name: self._masks[name]})
        like = parameter.detach()
        integers = INTEGERS.get(like.itemsize, torch.int64)
        bits = -torch.empty_like(like, dtype=integers).copy_(self._masks[name])  # -1: all bits are 1
        value = None
        if self.pruned_values:
            value = torch.empty_like(like).copy_(self.pruned_values[name])
        self._cache[name] = layout, bits, value
        return bits, value


def clear_bits(tensor: Tensor, bits: Tensor) -> None:
    """Set entries to +0.0 in place, also NaN and infinity.

    A tensor that is not strided, the gradient of an embedding with `sparse=True`, is multiplied by 0 instead, so that
    NaN and infinity become NaN there.

    Args:
        tensor: Of any layout; changed in place.
        bits: Integers of the same shape: 0 clears an entry, -1, all of whose bits are 1, keeps it.

    >>> weight = torch.tensor([float("nan"), -2.0])
    >>> clear_bits(weight, torch.tensor([0, -1], dtype=torch.int32))
    >>> weight
    tensor([ 0., -2.])
    """
    if tensor.layout != torch.strided:  # gradients of an embedding with sparse=True
        tensor.mul_(bits != 0)
    elif tensor.is_complex():
        tensor.masked_fill_(bits == 0, 0)
    else:
        tensor.view(INTEGERS[tensor.itemsize]).bitwise_and_(bits)


def pack_mask(mask: Tensor) -> Tensor:
    """One bit per weight: uint8 of ceil(n / 8) entries, the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1) != 0))


def unpack_mask(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The boolean mask of `shape` from the bits that `pack_mask` returned.

    Args:
        bits: uint8 of ceil(n / 8) entries, for the n weights of `shape`, on any device.
        shape: The shape of the weight.

    Returns:
        A boolean tensor of `shape` on the CPU, True where the bit is 1.
    """
    count = math.prod(shape)
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).reshape(*shape)


def check_masks(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Raise ModelError unless every mask has a parameter of its name and shape.

    Args:
        parameters: The parameters by name; those without a mask are not looked at.
        masks: The masks by parameter name.

    Raises:
        ModelError: The masks are not a mapping, or a mask has no parameter of its name and shape.
    """
    _check_mapping(masks)
    for name, mask in masks.items():
        if name not in parameters:
            raise ModelError(
                f"A mask is named {name!r}, but the model has no parameter of that name; use the names of "
                "model.named_parameters(), in which a tied parameter has its first name."
            )
        if parameters[name].shape != mask.shape:
            raise ModelError(
                f"The mask of {name!r} has shape {tuple(mask.shape)}, but the parameter has "
                f"{tuple(parameters[name].shape)}; pass masks of this model."
            )


def check_boolean(masks: Mapping[str, Tensor]) -> None:
    """Raise ModelError unless the masks are a mapping, and every mask is a boolean tensor."""
    _check_mapping(masks)
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ModelError(
                f"Expected a boolean tensor as the mask of {name!r}, got {got}; True keeps a weight, as in mask != 0."
            )


def _check_mapping(masks: object) -> None:
    if not isinstance(masks, Mapping):
        hint = ", whose masks are .masks" if isinstance(getattr(masks, "masks", None), Mapping) else ""
        raise ModelError(
            f"Expected masks by parameter name, as {{'weight': mask}}, got a {type(masks).__name__}{hint}."
        )


def apply_masks(params: Params, masks: MaskDict) -> Params:
    """The tensors of `params`, with +0.0 where a mask is False; tensors without a mask are returned as they are.

    Args:
        params: Tensors of any shape by name; not modified.
        masks: Boolean tensors, of the same shapes, for all or some of these names.

    Returns:
        The tensors by name, in the order of `params`; those with a mask are new tensors.

    Raises:
        ModelError: A mask has no tensor of its name and shape.
    """
    check_masks(params, masks)
    return {n: torch.where(masks[n], p, torch.zeros_like(p)) if n in masks else p for n, p in params.items()}


def all_kept(weights: Params) -> MaskDict:
    """Masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def are_nested(inner: MaskDict, outer: MaskDict) -> bool:
    """Whether every weight that `inner` keeps is kept by `outer`.

    Args:
        inner: Boolean tensors by name.
        outer: Boolean tensors of the same shapes, with at least the names of `inner`.

    Returns:
        True if no weight that `inner` keeps is pruned by `outer`; True for an empty `inner`.
    """
    return all(not bool((mask & ~outer[name]).any()) for name, mask in inner.items())


def mask_density(masks: MaskDict) -> float:
    """The fraction of weights that `masks` keep, all tensors together."""
    total = sum(numel_by_name(masks).values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0
