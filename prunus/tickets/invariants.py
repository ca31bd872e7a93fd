"""The invariant report of a round: what must hold, checked on the tensors and not by the code that made them.

exact counts        every layer keeps as many weights as its density gives
nested masks        no pruned weight is kept again, where the masks of a level are selected within earlier ones
kept weights        the invariants of the mask-1 action, bit for bit
pruned weights      the invariants of the mask-0 action, and for frozen weights the same values at every evaluation
other tensors       biases, BatchNorm and its buffers start as at the rewind step, or as the last training ended
optimizer           its state is that of the rewind step, or empty
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunus.errors import InvariantWarning
from prunus.masks import are_nested
from prunus.tickets.actions import Mask0Action, Mask1Action, WeightHistory
from prunus.tickets.monitor import TrainingMonitor, tensors_equal
from prunus.training.state import TrainingState
from prunus.types import MaskDict, Params

EXACT_COUNTS = "every layer keeps exactly its number of weights"


@dataclass(frozen=True)
class InvariantReport:
    """The statements that were checked, and at how many evaluations the pruned weights were compared."""

    checks: Mapping[str, bool]
    evaluations: int

    @property
    def passed(self) -> bool:
        """Whether all statements hold."""
        return all(self.checks.values())

    def warn_if_failed(self) -> "InvariantReport":
        """Warn with InvariantWarning about the statements that do not hold; return the report."""
        if failed := [statement for statement, holds in self.checks.items() if not holds]:
            warnings.warn(f"Invariants violated: {'; '.join(failed)}.", InvariantWarning, stacklevel=3)
        return self

    def to_json(self) -> dict[str, object]:
        """Return the report as it is stored in a row."""
        return {"passed": self.passed, "checks": dict(self.checks), "evaluations": self.evaluations}


@dataclass(frozen=True)
class Selection:
    """The masks of a round, with what must hold of them."""

    masks: MaskDict
    counts: Mapping[str, int]
    """How many weights each layer must keep; one entry "all" if layers are ranked together."""
    enclosing: MaskDict | None = None
    """Masks that these must be nested in; None if they were not selected within any."""
    tied_names: Collection[str] = ()
    """Other names of tensors of the network that have several."""

    @property
    def is_exact(self) -> bool:
        """Whether the masks keep as many weights as they must."""
        return count_kept(self.masks, together=set(self.counts) == {"all"}) == dict(self.counts)


def check_round(
    mask1: Mask1Action,
    mask0: Mask0Action,
    history: WeightHistory,
    selection: Selection,
    kept_weights: Params,
    rewind: TrainingState,
    last: Params,
    monitor: TrainingMonitor,
) -> InvariantReport:
    """Check a round after its training; warn with InvariantWarning about statements that do not hold.

    Args:
        mask1: The mask-1 action of the round.
        mask0: The mask-0 action of the round.
        history: The weights that the actions could use.
        selection: The masks of the round.
        kept_weights: The values of the mask-1 action.
        rewind: The training state of the baseline at the rewind step.
        last: The complete model at the end of the last training.
        monitor: What was observed of the training; its `start` is the state that training started from.

    Returns:
        The report.
    """
    masks, start = selection.masks, monitor.start
    checks = {EXACT_COUNTS: selection.is_exact}
    checks["the start of the training was observed"] = start is not None
    if selection.enclosing is not None:
        checks["the masks are nested"] = are_nested(masks, selection.enclosing)
    if mask0.freezes:
        frozen = monitor.count_violations is not None and monitor.violations == 0
        checks["pruned weights have the values of the mask-0 action at every evaluation"] = frozen
    if start is not None:
        weights = {name: start.model[name] for name in masks}
        mask1_checks = mask1.invariants(history, masks, kept_weights)
        mask0_checks = mask0.invariants(history, masks, kept_weights, weights)
        checks |= {f"mask-1: {statement}": holds for statement, holds in mask1_checks.items()}
        checks |= {f"mask-0: {statement}": holds for statement, holds in mask0_checks.items()}
        left_out = masks.keys() | set(selection.tied_names)
        checks |= _check_other_tensors(mask1, left_out, start, rewind, last)
    return InvariantReport(checks, len(monitor.curve) if mask0.freezes else 0).warn_if_failed()


def _check_other_tensors(
    mask1: Mask1Action, left_out: Collection[str], start: TrainingState, rewind: TrainingState, last: Params
) -> dict[str, bool]:
    """Check biases, buffers, the optimizer state and the first step against what the mask-1 action says."""
    rewinds = mask1.other_tensors == "rewind"
    model, optimizer = (rewind.model, rewind.optimizer) if rewinds else (last, {})
    others = tensors_equal(_without(start.model, left_out), _without(model, left_out))
    same_optimizer = tensors_equal(start.optimizer, optimizer)
    return {
        f"biases and buffers are {'rewound' if rewinds else 'those of the last training'}": others,
        f"the optimizer state is {'rewound' if rewinds else 'empty'}": same_optimizer,
        "training starts at the rewind step": start.step == rewind.step,
    }


def count_kept(masks: MaskDict, *, together: bool = False) -> dict[str, int]:
    """Return how many weights masks keep, by layer, or one entry "all" if layers are counted together.

    Args:
        masks: Boolean tensors by name.
        together: Whether all layers are counted together.

    Returns:
        The number of True entries by name of the layer, or under "all".
    """
    kept_weights = {name: int(mask.sum()) for name, mask in masks.items()}
    return {"all": sum(kept_weights.values())} if together else kept_weights


def _without(model: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.items() if name not in names}
