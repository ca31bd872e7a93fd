"""Mask-1 and mask-0 actions: what kept and pruned weights are set to before a round trains.

Source: Zhou et al. 2019, section 2, steps 3 and 4 of the generalized lottery ticket algorithm.

All tensors are the prunable weights by name. An action receives copies, so that an action that writes to its
arguments changes neither the next round nor the invariant report. The built-in actions are in
`prunus.tickets.mask1_actions` and `prunus.tickets.mask0_actions`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunus.training.state import clone_tensors
from prunus.types import MaskDict, Params

Invariants = Mapping[str, bool]
"""Statements that must hold, and whether each does. Where a statement says "equal", it means bit for bit."""


@dataclass(frozen=True)
class WeightHistory:
    """The weights of one replicate that the actions of one round may use."""

    initial: Params
    """The initialization: step 0 of the baseline, the same in every round."""
    rewind: Params
    """The baseline at the rewind step; equal to `initial` where that is step 0."""
    start: Params
    """The weights that the last training started from: in round 1 those of the rewind step, later the last round's."""
    final: Params
    """The weights that the last training ended with."""
    masks: MaskDict
    """The masks of the last training; all True in round 1."""
    redraw: Callable[[int], Params]
    """Draw the initialization again, from the same distribution, with a seed."""
    supermask: Params = field(default_factory=dict)
    """The weights times the factors of a learned supermask, where the masks of the ticket are learned."""

    def clone(self) -> "WeightHistory":
        """Return the same history with copies of all tensors."""
        copies: dict[str, Any] = {
            name: clone_tensors(value) for name, value in vars(self).items() if name != "redraw"
        }
        return replace(self, **copies)


@dataclass(frozen=True)
class Mask1Action:
    """A mask-1 action: what kept weights start from, and what the other tensors start from."""

    values: Callable[[WeightHistory, MaskDict, int], Params]
    """(history, masks, seed) -> complete tensors, of which only the kept places are used."""
    invariants: Callable[[WeightHistory, MaskDict, Params], Invariants]
    """(history, masks, start) -> statements about the kept places of `start`, and whether they hold."""
    other_tensors: Literal["rewind", "final"] = "rewind"
    """Biases, BatchNorm parameters and buffers start as at the rewind step, with its optimizer state; or as the last
    training ended, with a new optimizer."""
    learning_rate: Literal["schedule", "last"] = "schedule"
    """The schedule from the rewind step on, or its last value throughout."""
    description: str = ""
    """One line with the formula, and the source, for `prunus list`."""


@dataclass(frozen=True)
class Mask0Action:
    """A mask-0 action: what pruned weights are set to, and whether they train."""

    values: Callable[[WeightHistory, MaskDict, Params, int], Params]
    """(history, masks, kept, seed) -> the complete start: `kept` from the mask-1 action, and the pruned places."""
    invariants: Callable[[WeightHistory, MaskDict, Params, Params], Invariants]
    """(history, masks, kept, start) -> statements about `start`, and whether they hold."""
    freezes: bool = True
    """Whether pruned weights keep the values of the start throughout the training."""
    description: str = ""
    """One line with the formula, and the source, for `prunus list`."""
