"""What the start of a ticket may be made of, and what an action is.

All tensors are the prunable weights, by name. Actions and criteria are given copies: what one of them does to its
own reaches neither the next round nor the receipt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from prunus.training.state import clone_tensors
from prunus.types import MaskDict, Params

Invariants = Mapping[str, bool]
"""What must hold of a result, a short sentence each, and whether it does, bit for bit where it speaks of equality."""


@dataclass(frozen=True)
class WeightHistory:
    """The weights at the moments that matter, for one replicate and one round."""

    original: Params
    """The initialization: step 0 of the dense training, the same in every round."""
    rewind: Params
    """At the rewind step of the dense training; `original` where that is step 0."""
    start: Params
    """What the last training started from: in round 1 the rewind point, later what the actions had made."""
    final: Params
    """What the last training ended at."""
    masks: MaskDict
    """The masks of the last training; all True in round 1."""
    fresh: Callable[[int], Params]
    """A new draw of the initialization, of the same distribution, by a seed."""
    learned: Params = field(default_factory=dict)
    """What a supermask's weights are under its mask, where the masks are a supermask's."""

    def apart(self) -> "WeightHistory":
        """The same on tensors of its own."""
        return replace(
            self,
            original=clone_tensors(self.original),
            rewind=clone_tensors(self.rewind),
            start=clone_tensors(self.start),
            final=clone_tensors(self.final),
            masks=clone_tensors(self.masks),
            learned=clone_tensors(self.learned),
        )


@dataclass(frozen=True)
class Mask1Action:
    """A mask-1 action: where kept weights start, and what else goes with them. Called, it gives its values."""

    values: Callable[[WeightHistory, MaskDict, int], Params]
    """(past, masks, seed) -> whole tensors; only the places that `masks` keeps are used."""
    claims: Callable[[WeightHistory, MaskDict, Params], Invariants]
    """(past, masks, start) -> what must hold at the kept places of `start`."""
    rest: Literal["rewound", "final"] = "rewound"
    """Biases, BatchNorm and its buffers: as at the rewind point, or as the last training left them."""
    rate: Literal["schedule", "last"] = "schedule"
    """The learning rate: its schedule from the rewind step on, or its last value throughout."""

    def __call__(self, past: WeightHistory, masks: MaskDict, seed: int) -> Params:
        """Its values."""
        return self.values(past, masks, seed)


@dataclass(frozen=True)
class Mask0Action:
    """A mask-0 action: what pruned weights are set to, and whether they stay there. Called, it gives its values."""

    values: Callable[[WeightHistory, MaskDict, Params, int], Params]
    """(past, masks, kept, seed) -> the whole start: `kept` from the mask-1 action, pruned places filled in."""
    claims: Callable[[WeightHistory, MaskDict, Params, Params], Invariants]
    """(past, masks, kept, start) -> what must hold of `start`."""
    frozen: bool = True
    """Whether pruned weights keep the values of the start through training."""

    def __call__(self, past: WeightHistory, masks: MaskDict, kept: Params, seed: int) -> Params:
        """Its values."""
        return self.values(past, masks, kept, seed)
