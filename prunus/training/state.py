"""A training between two steps, as values: what rewinding goes back to, and what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError
from prunus.types import Params


@dataclass(frozen=True)
class TrainingState:
    """Everything that a step changes. The tensors are copies."""

    step: int
    """How many steps are behind."""
    model: Params
    """The `state_dict`: parameters and buffers."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """"NAME/KEY" of a trainable tensor and of what the optimizer remembers of it; empty: nothing yet."""
    random: Tensor | None = None
    """Where the stream stands that dropout draws from; None: at the beginning of the training's own."""


class TrainingView(Protocol):
    """A training that an observer looks at."""

    model: nn.Module

    @property
    def done(self) -> int:
        """How many steps are behind."""

    def capture(self) -> TrainingState:
        """A copy of all that a step changes."""


class Observer(Protocol):
    """Looks at a training between steps. It must not change what it sees."""

    def is_due(self, step: int) -> bool:
        """Whether to be called when `step` steps are behind."""

    def observe(self, moment: TrainingView) -> None:
        """Look."""

    def state_dict(self) -> tuple[dict[str, Tensor], Any]:
        """What a checkpoint must hold of it: tensors, and what JSON can say."""

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Take it back."""


def state_to_tensors(state: TrainingState) -> dict[str, Tensor]:
    """A state's tensors under one roof: "model/NAME", "optimizer/NAME/KEY", "random"; for a file."""
    model = {f"model/{name}": tensor for name, tensor in state.model.items()}
    optimizer = {f"optimizer/{name}": tensor for name, tensor in state.optimizer.items()}
    return model | optimizer | ({} if state.random is None else {"random": state.random})


def state_from_tensors(step: int, tensors: Mapping[str, Tensor]) -> TrainingState:
    """The state whose tensors `flat` gave; others are left aside."""
    return TrainingState(
        step, strip_prefix("model/", tensors), strip_prefix("optimizer/", tensors), tensors.get("random")
    )


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Params:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def clone_tensors(tensors: Mapping[str, Tensor]) -> Params:
    """Each tensor copied, in its own memory order."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def optimizer_state(
    optimizer: torch.optim.Optimizer, trainable_tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the optimizer remembers, as "NAME/KEY"; not copies."""
    found = {
        f"{name}/{key}": value
        for name, tensor in trainable_tensors.items()
        for key, value in optimizer.state.get(tensor, {}).items()
        if value is not None
    }
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"The optimizer remembers {key} = {value!r}, which is no tensor.")
    return found


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, trainable_tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Make the optimizer remember `state`, copied, laid out in memory as the tensors it belongs to."""
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, of = key.rpartition("/")
        if name not in trainable_tensors:
            raise CheckpointError(f"The optimizer state is of {name!r}, which this training does not train.")
        entries.setdefault(name, {})[of] = _laid_out_as(trainable_tensors[name], value)
    places = {id(tensor): place for place, tensor in enumerate(optimizer.param_groups[0]["params"])}
    numbered = {places[id(trainable_tensors[name])]: entry for name, entry in entries.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy in the memory order of its parameter (channels-last, say), which fused optimizers take for granted."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
    return value.detach().clone()
