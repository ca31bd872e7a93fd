"""The masks of a ticket over weights that are not trained.

    accuracy of  w ⊙ m,  w untrained,  m = select(criterion(θ_0, θ_T))

Source: Zhou et al. 2019, section 5 and Figure 5: their best is large_final_same_sign over signed constants.

Difference: The masks are those of a one-shot ticket by default; the paper prunes iteratively, as a ticket with
schedule="iterative" does.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from prunus.masks import all_kept, apply_masks, mask_density
from prunus.pruning.weights import set_weights
from prunus.registry import lookup
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.tickets.baseline import Baseline, BaselineRun, BaselineSpec, Needed, StepReport, masks_name
from prunus.tickets.invariants import EXACT_COUNTS, InvariantReport
from prunus.tickets.monitor import tensors_equal
from prunus.tickets.procedure import select_masks
from prunus.tickets.rounds import Round, weight_history
from prunus.tickets.supermask.learned_supermask import final_scores
from prunus.tickets.supermask.weights import WEIGHT_INITS, check_fixed_weights
from prunus.tickets.ticket import TicketSpec
from prunus.training.state import clone_tensors
from prunus.types import MaskDict

EVALUATION_COST = 10.0
"""The time of an evaluation of both splits, in training steps."""


@dataclass(frozen=True)
class CriterionSupermaskSpec(BaselineRun):
    """The masks of a ticket's levels over untrained weights. Only what the masks need is trained."""

    kind: ClassVar[str] = "criterion_supermask"
    procedure: ClassVar[str] = "prunus.tickets.supermask.criterion_supermask:score_criterion_masks"

    ticket: TicketSpec = field(default_factory=lambda: TicketSpec(schedule="one_shot"))
    """The ticket with the masks. Those of a one-shot ticket are selected here; any other ticket is trained first."""
    weights: str = "signed_constant"
    """A key of WEIGHT_INITS."""
    multiplier: float = 1.0
    """Factor of the weights."""

    @property
    def baseline(self) -> BaselineSpec:  # type: ignore[override]
        """The baseline of the ticket."""
        return self.ticket.baseline

    def dependencies(self) -> dict[str, Any]:
        """Return the specs of the runs that this run reads: the baseline, and the ticket if it must be trained."""
        return super().dependencies() | ({"ticket": self.ticket} if self.needs_ticket else {})

    def code_references(self) -> tuple[str, ...]:
        """Return the references to the user's functions that this run calls."""
        return self.ticket.code_references()

    def cost(self) -> tuple[str, float]:
        """Return the unit, and the evaluations as training steps. Raises as `check` does."""
        self.check()
        return self.ticket.baseline.cost()[0], EVALUATION_COST * (1 + len(self.ticket.trained_levels))

    def check(self) -> None:
        """Validate the settings. Raises as `TicketSpec.check` and `check_fixed_weights` do."""
        self.ticket.check()
        check_fixed_weights(self.weights, self.multiplier)

    @property
    def needs_ticket(self) -> bool:
        """Whether the ticket must be trained to have its masks."""
        return self.ticket.is_iterative or self.ticket.masks_from is not None


def score_criterion_masks(
    spec: CriterionSupermaskSpec,
    directory: RunDirectory,
    needed: Needed,
    report_steps: StepReport | None = None,
) -> Row:
    """Evaluate untrained weights under the masks of every level, level 0 without masks; nothing is trained.

    Args:
        spec: The settings.
        directory: Where one row for each level is written.
        needed: The directories of the finished "baseline", and of the "ticket" if it must be trained.
        report_steps: Not used.

    Returns:
        The row with the highest validation accuracy, or the lowest validation loss where there is no accuracy.

    Raises:
        SpecError, UnknownNameError, DensityError, ModelError: As `CriterionSupermaskSpec.check`.
        StoreError: A user's function returns other data than the baseline was computed with.
    """
    spec.check()
    ticket, baseline = spec.ticket, Baseline.load(needed["baseline"])
    model, data = ticket.baseline.make_network(), ticket.baseline.checked_data(directory)
    model.load_state_dict(baseline.initial)
    make_weights = lookup("kind of weights", WEIGHT_INITS, spec.weights)
    seed = derive_seed(ticket.baseline.replicate, "supermask-weights")
    weights = make_weights(clone_tensors(ticket.weights_of(model)), spec.multiplier, seed).values
    names = baseline.initial.keys() - weights.keys() - ticket.tied_names.keys()
    others = {name: baseline.initial[name].to(spec.device) for name in names}
    finished = {row["level"] for row in directory.rows()}
    for level in (level for level in (0, *ticket.trained_levels) if level not in finished):
        masks, checks = _masks_at(spec, level, needed) if level else (all_kept(weights), {})
        set_weights(model, apply_masks(weights, masks))
        scores = final_scores(model, data, ticket.baseline.task)
        row = {"level": level, "density": mask_density(masks), **scores}
        state = {name: tensor for name, tensor in model.state_dict().items() if name in others}
        checks["biases and buffers are as initialized"] = tensors_equal(state, others)
        report = InvariantReport(checks, 1).warn_if_failed()
        directory.append_row({**row, "invariants": report.to_json()})
    rows = directory.rows()
    if "final_validation_accuracy" in rows[0]:
        return dict(max(rows, key=lambda row: float(row["final_validation_accuracy"])))
    return dict(min(rows, key=lambda row: float(row["final_validation_loss"])))


def _masks_at(spec: CriterionSupermaskSpec, level: int, needed: Needed) -> tuple[MaskDict, dict[str, bool]]:
    """Return the masks of a level, on the device of the weights, and the check of their counts if selected here."""
    if spec.needs_ticket:
        masks, checks = needed["ticket"].load_masks(masks_name(level)), dict[str, bool]()
    else:
        baseline = Baseline.load(needed["baseline"], spec.ticket.rewind_step)
        dense = Round.dense(baseline, list(spec.ticket.weights_of(spec.ticket.baseline.make_network())))
        history = weight_history(spec.ticket, baseline, dense, needed)
        selection = select_masks(spec.ticket, level, history, dense, needed)
        masks, checks = selection.masks, {EXACT_COUNTS: selection.is_exact}
    return {name: mask.to(spec.device) for name, mask in masks.items()}, checks
