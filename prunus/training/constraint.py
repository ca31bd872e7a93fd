"""Constraints on the weights that hold after every training step.

Implementations: `NoConstraint`, `prunus.masks.Masks`, `prunus.compression.quantization.CodebookConstraint` and
`prunus.tickets.supermask.SupermaskConstraint`. The training loop knows this protocol only, so that no optimizer,
whatever its momentum or weight decay, can change a pruned weight.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from prunus.errors import CheckpointError, ModelError
from prunus.modules import trainable_parameters


class Constraint(Protocol):
    """What the training loop requires of a constraint."""

    def trainable_tensors(self) -> dict[str, Tensor]:
        """The tensors that the optimizer steps, by name."""

    def before_optimizer_step(self) -> None:
        """Change the gradients; called after the backward pass and before the optimizer's step."""

    def apply(self) -> None:
        """Make the constraint true; called before training and after every step."""

    def finalize(self) -> None:
        """Called once, after the last step."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold in addition to the model and the optimizer."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; raises CheckpointError for the state of another constraint."""


class NoConstraint:
    """The constraint of ordinary training: none."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Every trainable parameter."""
        return trainable_parameters(self.model)

    def before_optimizer_step(self) -> None:
        """Do nothing."""

    def apply(self) -> None:
        """Do nothing."""

    def finalize(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """An empty dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless `state` is empty."""
        if state:
            raise CheckpointError(
                f"Expected the checkpoint of a training without a constraint, got one with the state of a constraint "
                f"({', '.join(state)}); delete it to train from the start."
            )


def all_trainable_tensors(model: nn.Module, constraint: Constraint) -> dict[str, Tensor]:
    """The tensors that the optimizer steps when `model` is trained under `constraint`, by name.

    These are the tensors of the constraint and, if the constraint belongs to a submodule, every other trainable
    parameter of `model`.

    Args:
        model: The model that is trained.
        constraint: The constraint. If it has an attribute `model`, that is `model` or one of its submodules; otherwise
            it belongs to `model`.

    Returns:
        The tensors by their names in `model`; those of a constraint of a submodule have the name of the submodule as
        prefix.

    Raises:
        ModelError: The constraint belongs to a module that is not part of `model`.
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
    rest = {name: p for name, p in trainable_parameters(model).items() if id(p) not in covered}
    return {**rest, **{f"{prefix}.{name}": tensor for name, tensor in constraint.trainable_tensors().items()}}
