"""A training between two steps, as values: what rewinding goes back to, and what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError
from prunus.nouns import Params


@dataclass(frozen=True)
class State:
    """Everything that a step changes. The tensors are copies."""

    step: int
    """How many steps are behind."""
    model: Params
    """The `state_dict`: parameters and buffers."""
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    """"NAME/KEY" of a trainable tensor and of what the optimiser remembers of it; empty: nothing yet."""
    random: Tensor | None = None
    """Where the stream stands that dropout draws from; None: at the beginning of the training's own."""


class Moment(Protocol):
    """A training that an observer looks at."""

    model: nn.Module

    @property
    def done(self) -> int:
        """How many steps are behind."""

    def capture(self) -> State:
        """A copy of all that a step changes."""


class Observer(Protocol):
    """Looks at a training between steps. It must not change what it sees."""

    def due(self, step: int) -> bool:
        """Whether to be called when `step` steps are behind."""

    def observe(self, moment: Moment) -> None:
        """Look."""

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """What a checkpoint must hold of it: tensors, and what JSON can say."""

    def restore(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Take it back."""


def flat(state: State) -> dict[str, Tensor]:
    """A state's tensors under one roof: "model/NAME", "optimiser/NAME/KEY", "random"; for a file."""
    model = {f"model/{name}": tensor for name, tensor in state.model.items()}
    optimiser = {f"optimiser/{name}": tensor for name, tensor in state.optimiser.items()}
    return model | optimiser | ({} if state.random is None else {"random": state.random})


def unflat(step: int, tensors: Mapping[str, Tensor]) -> State:
    """The state whose tensors `flat` gave; others are left aside."""
    return State(step, under("model/", tensors), under("optimiser/", tensors), tensors.get("random"))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Params:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def copies(tensors: Mapping[str, Tensor]) -> Params:
    """Each tensor copied, in its own memory order."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def optimiser_state(optimiser: torch.optim.Optimizer, trainables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the optimiser remembers, as "NAME/KEY"; not copies."""
    found = {
        f"{name}/{key}": value
        for name, tensor in trainables.items()
        for key, value in optimiser.state.get(tensor, {}).items()
        if value is not None
    }
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"The optimiser remembers {key} = {value!r}, which is no tensor.")
    return found


def put_optimiser_state(
    optimiser: torch.optim.Optimizer, trainables: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Make the optimiser remember `state`, copied, laid out in memory as the tensors it belongs to."""
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, of = key.rpartition("/")
        if name not in trainables:
            raise CheckpointError(f"The optimiser state is of {name!r}, which this training does not train.")
        entries.setdefault(name, {})[of] = _laid_out_as(trainables[name], value)
    places = {id(tensor): place for place, tensor in enumerate(optimiser.param_groups[0]["params"])}
    numbered = {places[id(trainables[name])]: entry for name, entry in entries.items()}
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": numbered, "param_groups": groups})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy in the memory order of its parameter (channels-last, say), which fused optimisers take for granted."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
    return value.detach().clone()
