"""The receipt of a ticket: what must hold after a round, checked on the tensors and not by those who made them.

exact counts        every layer keeps as many weights as its density says
nested masks        nothing pruned comes back, where the masks of a level are made within those before
kept weights        what the mask-1 action claims, bit for bit
pruned weights      what the mask-0 action claims, and that they stood so at every evaluation, where they are held
the rest            biases, BatchNorm and its buffers start as at the rewind point, or as the last training left them
the optimizer       remembers what it did at the rewind step, or nothing
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunus.errors import InvariantWarning
from prunus.masks import are_nested
from prunus.tickets.actions import Mask0Action, Mask1Action, WeightHistory
from prunus.tickets.monitor import TrainingMonitor, tensors_equal
from prunus.training.state import TrainingState
from prunus.types import MaskDict, Params


@dataclass(frozen=True)
class InvariantReport:
    """Every check by its sentence, and at how many evaluations the pruned weights were looked at."""

    checks: Mapping[str, bool]
    evaluations: int

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return all(self.checks.values())

    @property
    def failed(self) -> list[str]:
        """The sentences that do not hold."""
        return [sentence for sentence, holds in self.checks.items() if not holds]

    def to_json(self) -> dict[str, object]:
        """The same as JSON has it."""
        return {"passed": self.passed, "checks": dict(self.checks), "evaluations": self.evaluations}


def make_invariant_report(
    past: WeightHistory,
    masks: MaskDict,
    before: MaskDict | None,
    counts: Mapping[str, int],
    kept: Params,
    rewind: TrainingState,
    last: Params,
    watch: TrainingMonitor,
    mask1: Mask1Action,
    mask0: Mask0Action,
) -> InvariantReport:
    """Check a round.

    Args:
        past: what the actions could look at.
        masks: the round's.
        before: the masks that they must lie within; None: of none are they a part by their making.
        counts: how many weights each layer must keep; one entry "all" where they are ranked together.
        kept: what the mask-1 action gave.
        rewind: the dense training at the rewind step.
        last: the whole model as the last training left it.
        watch: what was seen of the training; its `start` is what it really started from.

    Warns with InvariantWarning, naming what does not hold.
    """
    began = watch.start
    checks = {
        "every layer keeps exactly its count": count_kept(masks, counts) == dict(counts),
        "the start was seen": began is not None,
    }
    if before is not None:
        checks["the masks are nested"] = are_nested(masks, before)
    if mask0.frozen:
        held = watch.count_violations is not None and watch.violations == 0
        checks["pruned weights are what the action says at every evaluation"] = held
    if began is not None:
        start: Params = {name: began.model[name] for name in masks}
        checks |= {
            f"mask-1: {sentence}": holds for sentence, holds in mask1.claims(past, masks, kept).items()
        }
        checks |= {
            f"mask-0: {sentence}": holds for sentence, holds in mask0.claims(past, masks, kept, start).items()
        }
        rewound = mask1.rest == "rewound"
        rest, remembered = (rewind.model, rewind.optimizer) if rewound else (last, {})
        checks |= {
            f"biases and buffers are {'rewound' if rewound else 'kept'}": tensors_equal(
                _rest(began.model, masks), _rest(rest, masks)
            ),
            f"the optimizer is {'rewound' if rewound else 'fresh'}": tensors_equal(
                began.optimizer, remembered
            ),
            "training starts at the rewind step": began.step == rewind.step,
        }
    result = InvariantReport(checks, len(watch.curve) if mask0.frozen else 0)
    if not result.passed:
        warnings.warn(f"The receipt fails: {'; '.join(result.failed)}.", InvariantWarning, stacklevel=2)
    return result


def count_kept(masks: MaskDict, counts: Mapping[str, int]) -> dict[str, int]:
    """How many weights `masks` keep, a layer or, where `counts` has one entry "all", together."""
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    return {"all": sum(kept.values())} if set(counts) == {"all"} else kept


def _rest(model: Mapping[str, Tensor], masks: MaskDict) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.items() if name not in masks}
