"""Instability: whether two copies of a network, trained from one state with different orders of data, are connected.

    error(α) = error of (1 - α) W_1 + α W_2,   error barrier = max error(α) - mean of the errors at both ends

Source: Frankle et al. 2020, sections 2 and 3: 30 values of α; a network is stable if the barrier is below 2 %.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from prunus.errors import SpecError
from prunus.masks import Masks, apply_masks
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.tickets.baseline import (
    BaselineRun,
    BaselineSpec,
    Needed,
    StepReport,
    checkpoint_name,
    load_saved_state,
    masks_name,
)
from prunus.tickets.ticket import TicketSpec, check_same_weights
from prunus.training import evaluate
from prunus.training.state import TrainingState
from prunus.types import Dataset, MaskDict, Params

COPIES = (1, 2)
STABLE_BELOW = 2.0
"""The error barrier below which a network is stable, in percent."""


@dataclass(frozen=True)
class InstabilitySpec(BaselineRun):
    """Two trainings from one state of a baseline, and the errors on the line between their ends."""

    kind: ClassVar[str] = "instability"
    procedure: ClassVar[str] = "prunus.tickets.instability:measure_instability"

    baseline: BaselineSpec = field(default_factory=BaselineSpec)
    step: int = 0
    """The step whose state both copies start from: one of the baseline's `checkpoint_steps`, or 0."""
    ticket: TicketSpec | None = None
    """Train under the masks of a level of this ticket; None: the dense network."""
    level: int = 0
    """The level of the ticket."""
    points: int = 30
    """Number of values of α, both ends included."""

    def dependencies(self) -> dict[str, Any]:
        """Return the specs of the runs that this run reads: the baseline, and the ticket with the masks."""
        return super().dependencies() | ({} if self.ticket is None else {"ticket": self.ticket})

    def cost(self) -> tuple[str, float]:
        """Return the unit, and the training steps of both copies. Raises as `check` does."""
        self.check()
        unit, steps = self.baseline.cost()
        return unit, len(COPIES) * (steps - self.step)

    def check(self) -> None:
        """Validate the settings. Raises SpecError if they contradict each other, and as `TicketSpec.check` does."""
        if self.points < 2:
            raise SpecError(f"Expected at least 2 points, the ends of the line, got {self.points}.")
        self.baseline.check_trained_by_recipe()
        self.baseline.check_has_state("step", self.step)
        if self.ticket is None and self.level:
            raise SpecError(
                f"Expected level = 0 without a ticket, got {self.level}; leave out level, or set ticket."
            )
        if self.ticket is not None:
            check_same_weights(self.baseline, self.ticket.baseline)
            if self.level not in self.ticket.trained_levels:
                raise SpecError(
                    f"Expected a level of the ticket, {self.ticket.trained_levels}, got {self.level}."
                )


def measure_instability(
    spec: InstabilitySpec, directory: RunDirectory, needed: Needed, report_steps: StepReport | None = None
) -> Row:
    """Train both copies, and evaluate the networks on the line between them.

    Args:
        spec: The settings.
        directory: Where results and checkpoints are written; a repeated call continues from there.
        needed: The directories of the finished "baseline", and of the "ticket" if there is one.
        report_steps: Called with the number of training steps since the last call.

    Returns:
        The error barrier in percent, and whether the network is stable.

    Raises:
        SpecError: If settings contradict each other.
    """
    spec.check()
    masks = needed["ticket"].load_masks(masks_name(spec.level)) if spec.ticket is not None else None
    for copy in COPIES:
        if not directory.has(f"copy-{copy}"):
            _train_copy(spec, copy, masks, directory, needed["baseline"], report_steps)
        elif report_steps is not None:
            report_steps(spec.baseline.total_steps() - spec.step)
        directory.remove(checkpoint_name(copy))
    ends = [directory.load_tensors(f"copy-{copy}") for copy in COPIES]
    rows = _evaluate_line(spec, ends[0], ends[1], spec.baseline.checked_data(directory))
    errors = [row["test_error"] for row in rows]
    barrier = max(errors) - (errors[0] + errors[-1]) / 2
    rows[-1]["barrier"] = barrier
    directory.append_rows(rows[len(directory.rows()) :])  # the others were written before a kill
    return {"barrier": barrier, "stable": barrier < STABLE_BELOW}


def _train_copy(
    spec: InstabilitySpec,
    copy: int,
    masks: MaskDict | None,
    directory: RunDirectory,
    baseline: RunDirectory,
    report_steps: StepReport | None,
) -> None:
    """Train one copy with its own order of examples, and save it."""
    state, model = load_saved_state(baseline, spec.step), spec.baseline.make_network()
    weights = state.model if masks is None else apply_masks(state.model, masks)
    constraint = Masks(model, masks) if masks is not None else None
    start = TrainingState(state.step, weights, state.optimizer)
    seed = derive_seed(derive_seed(spec.baseline.replicate, "instability"), copy)
    monitor = spec.baseline.train(
        model, directory, copy, constraint=constraint, start=start, seed=seed, report_steps=report_steps
    )
    directory.append_curve(monitor.curve_rows(copy))
    directory.save_tensors(f"copy-{copy}", model.state_dict())


def _evaluate_line(spec: InstabilitySpec, first: Params, second: Params, data: Dataset) -> list[Row]:
    """Return the errors at every α, in percent."""
    baseline, model, rows = spec.baseline, spec.baseline.make_network(), []
    splits = {"validation_error": data.validation, "test_error": data.test}
    for index, alpha in enumerate(torch.linspace(0, 1, spec.points).tolist()):
        between = {name: torch.lerp(first[name].double(), second[name].double(), alpha) for name in first}
        model.load_state_dict({name: tensor.to(first[name].dtype) for name, tensor in between.items()})
        row: Row = {"level": index, "alpha": alpha}
        for key, split in splits.items():
            row[key] = evaluate(model, split, backend=baseline.backend, **baseline.task).error
        rows.append(row)
    return rows
