"""The state of a training between two steps, as values: what rewinding restores and what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError
from prunus.training.evaluation_totals import Evaluation
from prunus.types import Params, Split


@dataclass(frozen=True)
class TrainingState:
    """Everything that a step changes. The tensors are copies."""

    step: int
    """The number of steps done."""
    model: Params
    """The `state_dict`: parameters and buffers."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """The optimizer's state of each trainable tensor, by "NAME/KEY"; empty before the first step."""
    random: Tensor | None = None
    """The state of the random generators that dropout uses, from `random_state`; None: as at the beginning of a
    training."""
    loss_scale: Tensor | None = None
    """The scale of the loss in float16 and the number of steps since it was changed [2]; None: as at the beginning."""


class TrainingView(Protocol):
    """A training as an observer sees it."""

    model: nn.Module

    @property
    def done(self) -> int:
        """The number of steps done."""

    def capture(self) -> TrainingState:
        """A copy of everything that a step changes."""

    def evaluate(self, split: Split) -> Evaluation:
        """Evaluate the model on a split, with the backend of the training."""


class Observer(Protocol):
    """Observes a training between steps, without changing it."""

    def is_due(self, step: int) -> bool:
        """Whether `observe` is to be called after `step` steps."""

    def observe(self, view: TrainingView) -> None:
        """Observe the training as it is now."""

    def state_dict(self) -> tuple[dict[str, Tensor], Any]:
        """What a checkpoint must hold of the observer: tensors, and values that JSON can represent."""

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Restore what `state_dict` returned.

        Args:
            tensors: The tensors by name.
            values: The values, after they were written as JSON and read again.
        """


def random_state(device: torch.device) -> Tensor:
    """The state of the random generator of the CPU, followed by that of a GPU.

    Args:
        device: Where the model is.

    Returns:
        Bytes, uint8 [n].
    """
    if device.type != "cuda":
        return torch.get_rng_state()
    return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state(device)])


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set the random generators to a state that `random_state` returned.

    Args:
        state: The bytes; those of a GPU are ignored if the model is not on one, and may be missing.
        device: Where the model is.
    """
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[:length].clone())
    if device.type == "cuda" and len(state) > length:
        torch.cuda.set_rng_state(state[length:].clone(), device)


def state_to_tensors(state: TrainingState) -> dict[str, Tensor]:
    """The tensors of a state in one dict: "model/NAME", "optimizer/NAME/KEY", "random" and "loss_scale"."""
    tensors = add_prefix("model/", state.model) | add_prefix("optimizer/", state.optimizer)
    others = {"random": state.random, "loss_scale": state.loss_scale}
    return tensors | {name: tensor for name, tensor in others.items() if tensor is not None}


def state_from_tensors(step: int, tensors: Mapping[str, Tensor]) -> TrainingState:
    """The state from the tensors that `state_to_tensors` returned; other tensors are ignored.

    Args:
        step: The number of steps done.
        tensors: The tensors by prefixed name; they are not copied.

    Returns:
        The state; its `random` and `loss_scale` are None where there is no such tensor.
    """
    return TrainingState(
        step,
        strip_prefix("model/", tensors),
        strip_prefix("optimizer/", tensors),
        tensors.get("random"),
        tensors.get("loss_scale"),
    )


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Params:
    """The same tensors with `prefix` before each name.

    Args:
        prefix: The text before each name, such as "model/".
        tensors: The tensors by name; they are not copied.

    Returns:
        A new dict of these tensors, in the same order.
    """
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Params:
    """The tensors whose names begin with `prefix`, named without it.

    Args:
        prefix: The text that is removed from the names, such as "model/".
        tensors: The tensors by name; they are not copied.

    Returns:
        A new dict of these tensors, in the same order; empty if no name has the prefix.
    """
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def clone_tensors(tensors: Mapping[str, Tensor]) -> Params:
    """A copy of each tensor, in its own memory order."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def optimizer_state(
    optimizer: torch.optim.Optimizer, trainable_tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimizer's state of the trainable tensors, by "NAME/KEY"; not copied.

    Args:
        optimizer: The optimizer.
        trainable_tensors: The tensors that it steps, by name.

    Returns:
        The tensors of the state, without entries that are None; empty before the first step.

    Raises:
        CheckpointError: The state of a tensor holds a value that is not a tensor.
    """
    state = {
        f"{name}/{key}": value
        for name, tensor in trainable_tensors.items()
        for key, value in optimizer.state.get(tensor, {}).items()
        if value is not None
    }
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"Expected an optimizer whose state consists of tensors, got {key} = {value!r}; use another optimizer."
            )
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, trainable_tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Set the optimizer's state to a copy of `state`, in the memory order of the tensors that it belongs to.

    Args:
        optimizer: Steps all `trainable_tensors` in its first parameter group.
        trainable_tensors: The tensors by name.
        state: What `optimizer_state` returned.

    Raises:
        CheckpointError: `state` has an entry of a tensor that is not trained.
    """
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        if name not in trainable_tensors:
            raise CheckpointError(
                f"Expected the optimizer state of trained tensors, got that of {name!r}, which this training does not "
                "train; use the state of a training of the same parameters."
            )
        entries.setdefault(name, {})[entry] = _in_memory_order_of(trainable_tensors[name], value)
    indices = {id(tensor): index for index, tensor in enumerate(optimizer.param_groups[0]["params"])}
    numbered = {indices[id(trainable_tensors[name])]: entry for name, entry in entries.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def _in_memory_order_of(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy in the memory order of its parameter (channels-last, for example), which fused optimizers require."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
    return value.detach().clone()
