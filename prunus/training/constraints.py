"""What must hold of the weights after every step: nothing, or a mask. (A third, shared values, is in
`prunus.compression.quantization.finetuning`.)

A constraint says which tensors the optimizer steps (`trainable_tensors`), may change their gradients before the step
(`before_optimizer_step`) and makes itself true after it (`hold`). The loop knows nothing more of it, so that no
optimizer, whatever its momentum or weight decay, can revive a pruned weight.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, ModelError
from prunus.models.initialization import check_initialized
from prunus.types import MaskDict, Params


class Constraint(Protocol):
    """What the training loop asks of a constraint."""

    def trainable_tensors(self) -> dict[str, Tensor]:
        """The tensors the optimizer steps, by name."""

    def before_optimizer_step(self) -> None:
        """Called when gradients are there, before the optimizer's step."""

    def apply(self) -> None:
        """Make the constraint true; called before training, and after every step."""

    def finalize(self) -> None:
        """Called once, after the last step."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the model and the optimizer."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take `state` back; raises CheckpointError where it is another constraint's."""


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that ask for a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def all_trainable_tensors(model: nn.Module, constraint: Constraint) -> dict[str, Tensor]:
    """What the optimizer steps when `model` is trained under `constraint`, by name.

    These are the tensors of the constraint, and where the constraint is of a submodule, every other parameter of
    `model` that asks for a gradient. Raises ModelError where the constraint is of a module that is no part of `model`.
    """
    part = getattr(constraint, "model", model)
    if part is model:
        return constraint.trainable_tensors()
    prefix = next((name for name, module in model.named_modules() if module is part), None)
    if prefix is None:
        raise ModelError(
            f"Expected a constraint of this {type(model).__name__} or of one of its submodules, got a "
            f"{type(constraint).__name__} of another {type(part).__name__}; make the constraint of the model that is "
            "trained, not of a copy."
        )
    covered = {id(p) for p in part.parameters()}
    rest = {name: p for name, p in trainable(model).items() if id(p) not in covered}
    return {**rest, **{f"{prefix}.{name}": tensor for name, tensor in constraint.trainable_tensors().items()}}


class NoConstraint:
    """No constraint."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Every parameter."""
        return trainable(self.model)

    def before_optimizer_step(self) -> None:
        """Nothing."""

    def apply(self) -> None:
        """Nothing."""

    def finalize(self) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back; a masked run's checkpoint is refused."""
        if state:
            raise CheckpointError(
                f"The checkpoint was made under a constraint ({', '.join(state)}), this run has none."
            )


class Masks:
    """Pruned weights are zero after every step, or the value of theirs in `values`; their gradients are zero before it.

    Parameters of the model, or of a larger one of which it is a part, that have no mask train as usual. A float product
    in place costs a few percent of a step on CPU; a boolean fill would cost fourteen times as much.
    """

    def __init__(self, model: nn.Module, masks: MaskDict, values: Params | None = None) -> None:
        self.model = model
        check_initialized(model)
        parameters = dict(model.named_parameters())
        check_masks(parameters, masks)
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ModelError(
                    f"Expected a boolean mask of {name!r}, got {mask.dtype}; True keeps a weight, as in mask != 0."
                )
        self.names = list(masks)
        self.parameters = [parameters[name] for name in masks]
        self.weights = [parameter.detach() for parameter in self.parameters]
        self.factors = [
            torch.empty_like(parameters[name]).detach().copy_(mask) for name, mask in masks.items()
        ]
        self.values: list[Tensor] = []
        """What stands in pruned places, zero in kept ones; empty: zero everywhere."""
        if values is not None:
            check_masks(values, masks)
            self.values = [
                torch.zeros_like(w).copy_(torch.where(masks[n], 0.0, values[n]).to(w.device))
                for n, w in zip(self.names, self.weights, strict=True)
            ]

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Every parameter."""
        return trainable(self.model)

    def before_optimizer_step(self) -> None:
        """Set the gradients of pruned weights to zero, so that a norm of the gradients counts the kept ones alone."""
        pairs = [
            (p.grad, f) for p, f in zip(self.parameters, self.factors, strict=True) if p.grad is not None
        ]
        if pairs:
            gradients, factors = zip(*pairs, strict=True)
            torch._foreach_mul_(gradients, factors)

    def apply(self) -> None:
        """Multiply each weight by its mask, and put pruned weights at their values."""
        torch._foreach_mul_(self.weights, self.factors)
        if self.values:
            torch._foreach_add_(self.weights, self.values)

    def verify(self) -> int:
        """How many pruned weights are not what they should be."""
        held = self.values or [torch.zeros(()).to(w) for w in self.weights]
        return sum(
            int(torch.count_nonzero((w != v) & (f == 0)))
            for w, f, v in zip(self.weights, self.factors, held, strict=True)
        )

    def finalize(self) -> None:
        """Make every -0.0, which a product with zero leaves of a negative weight, +0.0: a hole in a file."""
        torch._foreach_add_(self.weights, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, one bit a weight."""
        return {name: pack_mask(factor) for name, factor in zip(self.names, self.factors, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Check that the checkpoint was made under the same masks."""
        mine = self.state_dict()
        if mine.keys() != state.keys() or not all(torch.equal(mine[name], state[name]) for name in mine):
            raise CheckpointError("The checkpoint was made under other masks than this run's.")


def pack_mask(mask: Tensor) -> Tensor:
    """One bit a weight: uint8 of ceil(n / 8) entries, the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1) != 0))


def unpack_mask(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The boolean mask of `shape` that `pack` made `bits` of."""
    count = math.prod(shape)
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).reshape(*shape)


def check_masks(parameters: Mapping[str, Tensor], masks: MaskDict) -> None:
    """Raise ModelError unless every mask has a parameter of its name and shape."""
    for name, mask in masks.items():
        if name not in parameters:
            raise ModelError(f"A mask is named {name!r}, but the model has no parameter of that name.")
        if parameters[name].shape != mask.shape:
            raise ModelError(
                f"The mask of {name!r} has shape {tuple(mask.shape)}, but the parameter has "
                f"{tuple(parameters[name].shape)}."
            )
