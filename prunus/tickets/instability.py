"""Instability: do two copies of a network, trained from one state in different orders of data, end in one valley?

    error(α) = error of (1 - α) W_1 + α W_2,   barrier = max error(α) - mean of the errors of both ends

Source: Frankle et al. 2020, sections 2 and 3: 30 values of α; a network is stable where the barrier is below 2 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from prunus.errors import SpecError
from prunus.pruning.masks import apply_masks
from prunus.seeds import derive_seed
from prunus.tickets.artifacts import RunArtifacts
from prunus.tickets.baseline import BaselineSpec, StepReport, checkpoint_name, curve_rows, load_saved_state
from prunus.tickets.procedure import mask_key
from prunus.tickets.ticket import TicketSpec
from prunus.training import Masks, evaluate
from prunus.training.state import TrainingState
from prunus.types import MaskDict, Params

COPIES = (1, 2)


@dataclass(frozen=True)
class InstabilitySpec:
    """Two trainings from one state of the dense training, and the errors on the line between their ends."""

    kind: ClassVar[str] = "instability"
    procedure: ClassVar[str] = "prunus.tickets.instability:run_instability"

    dense: BaselineSpec = field(default_factory=BaselineSpec)
    step: int = 0
    """The state both copies start from; one of `dense.states`, or 0."""
    ticket: TicketSpec | None = None
    """Under the masks of a level of this ticket; None: the dense network."""
    level: int = 0
    points: int = 30
    """Values of α, both ends among them."""

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.dense.device

    def dependencies(self) -> dict[str, BaselineSpec | TicketSpec]:
        """The dense training, and the ticket whose masks are taken."""
        return {"baseline": self.dense, **({} if self.ticket is None else {"ticket": self.ticket})}

    def code_references(self) -> tuple[str, ...]:
        """None of its own."""
        return ()

    def cost(self) -> tuple[str, float]:
        """Training steps of both copies. Raises SpecError where the settings contradict each other."""
        self._check()
        unit, steps = self.dense.cost()
        return unit, len(COPIES) * (steps - self.step)

    def pace(self) -> float:
        """Seconds a training step takes here."""
        return self.dense.pace()

    def run(
        self, shelf: RunArtifacts, needed: Mapping[str, RunArtifacts], report_steps: StepReport | None = None
    ) -> dict[str, Any]:
        """Train both copies, then walk the line."""
        self._check()
        state = load_saved_state(needed["baseline"], f"state-{self.step}")
        masks = needed["ticket"].load_masks(mask_key(self.level)) if self.ticket is not None else None
        for copy in COPIES:
            if not shelf.has(f"copy-{copy}"):
                model = self.dense.network()
                start = TrainingState(state.step, _masked(state.model, masks), state.optimizer)
                watch = self.dense.train(
                    model,
                    shelf,
                    copy,
                    constraint=Masks(model, masks) if masks is not None else None,
                    start=start,
                    seed=derive_seed(self._order, copy),
                    report_steps=report_steps,
                )
                shelf.append_curve(curve_rows(copy, watch))
                shelf.save_tensors(f"copy-{copy}", model.state_dict())
                shelf.remove(checkpoint_name(copy))
        rows = self._line(shelf.load_tensors("copy-1"), shelf.load_tensors("copy-2"))
        ends = (rows[0]["test_error"] + rows[-1]["test_error"]) / 2
        barrier = max(row["test_error"] for row in rows) - ends
        for row in rows:
            shelf.append_row({**row, "barrier": barrier} if row is rows[-1] else row)
        return {"barrier": barrier, "stable": barrier < 2.0}

    @property
    def _order(self) -> int:
        return derive_seed(self.dense.replicate, "instability")

    def _line(self, first: Params, second: Params) -> list[dict[str, Any]]:
        """The errors at every α, in percent."""
        model: nn.Module = self.dense.network()
        data, rows = self.dense.dataset(), []
        for place, alpha in enumerate(torch.linspace(0, 1, self.points).tolist()):
            between = {name: torch.lerp(first[name].double(), second[name].double(), alpha) for name in first}
            model.load_state_dict({name: tensor.to(first[name].dtype) for name, tensor in between.items()})
            errors = {split: evaluate(model, getattr(data, split)).error for split in ("validation", "test")}
            rows.append(
                {"level": place, "alpha": alpha, **{f"{split}_error": e for split, e in errors.items()}}
            )
        return rows

    def _check(self) -> None:
        if self.points < 2:
            raise SpecError(f"{self.points} points were asked; a line has at least its two ends.")
        if self.step and self.step not in self.dense.states:
            raise SpecError(
                f"Copies were to start at step {self.step}, but `dense.states` are {self.dense.states}."
            )
        if self.ticket is not None and self.level not in self.ticket.trained_levels():
            raise SpecError(f"Level {self.level} was asked of a ticket whose levels are others.")


def run_instability(
    spec: InstabilitySpec,
    shelf: RunArtifacts,
    needed: Mapping[str, RunArtifacts],
    report_steps: StepReport | None = None,
) -> dict[str, Any]:
    """As `InstabilitySpec.run`."""
    return spec.run(shelf, needed, report_steps)


def _masked(model: Params, masks: MaskDict | None) -> Params:
    return model if masks is None else apply_masks(model, masks)
