"""Found masks: what a criterion keeps of a trained network, over weights that are not trained.

    accuracy of  w ⊙ m,  w untrained, m = select(criterion(θ_0, θ_T))

Source: Zhou et al. 2019, section 5 and Figure 5: their best is large_final_same_sign over signed constants. The
masks are those that a ticket of the same settings has; the paper's are of networks pruned again and again, as an
iterative ticket is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from prunus.pruning.masks import apply_masks
from prunus.pruning.prunable import prunable_weights
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.tickets.artifacts import RunArtifacts
from prunus.tickets.baseline import BaselineSpec, StepReport, load_saved_state
from prunus.tickets.invariants import InvariantReport, count_kept
from prunus.tickets.monitor import tensors_equal
from prunus.tickets.procedure import TicketRunner, mask_key
from prunus.tickets.supermask.weights import WEIGHT_INITS
from prunus.tickets.ticket import TicketSpec
from prunus.training import evaluate
from prunus.training.state import clone_tensors
from prunus.types import MaskDict, mask_density

EVALUATION = 10.0
"""An evaluation of both splits takes about as long as so many training steps."""


@dataclass(frozen=True)
class CriterionSupermaskSpec:
    """The masks of a ticket's levels over untrained weights. Nothing is trained but what the ticket needs."""

    kind: ClassVar[str] = "found"
    procedure: ClassVar[str] = "prunus.tickets.supermask.criterion_supermask:run_criterion_supermask"

    ticket: TicketSpec = field(default_factory=lambda: TicketSpec(schedule="one_shot"))
    """Whose masks: of a one-shot ticket they are made here; one that is chained, or takes others', is trained first."""
    weights: str = "signed_constant"
    """A key of WEIGHTS."""
    multiplier: float = 1.0

    def dependencies(self) -> dict[str, BaselineSpec | TicketSpec]:
        """The dense training, and the ticket where it must be trained to have its masks."""
        return {"baseline": self.ticket.dense, **({"ticket": self.ticket} if self._trained else {})}

    def code_references(self) -> tuple[str, ...]:
        """Those of the ticket, whose criterion is called here unless the ticket is trained."""
        return self.ticket.code_references()

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.ticket.device

    @property
    def _trained(self) -> bool:
        return self.ticket.chained or self.ticket.masks_from is not None

    def cost(self) -> tuple[str, float]:
        """The evaluations, as training steps."""
        return self.ticket.dense.cost()[0], EVALUATION * (1 + len(self.ticket.trained_levels()))

    def pace(self) -> float:
        """Seconds a training step takes here."""
        return self.ticket.pace()

    def run(
        self, shelf: RunArtifacts, needed: Mapping[str, RunArtifacts], report_steps: StepReport | None = None
    ) -> dict[str, Any]:
        """Write a row a level, without a training. Returns that of the highest validation accuracy."""
        first = load_saved_state(needed["baseline"], "state-0").model
        model = self.ticket.dense.network()
        model.load_state_dict(first)
        draw = lookup("kind of weights", WEIGHT_INITS, self.weights)
        seed = derive_seed(self.ticket.dense.replicate, "supermask-weights")
        values = draw(clone_tensors(prunable_weights(model)), self.multiplier, seed).values
        model.load_state_dict({**first, **values})
        for level in (0, *self.ticket.trained_levels()):
            masks, checks = self._masks(level, shelf, needed, values)
            row = {"level": level, "density": mask_density(masks), **self._score(model, values, masks)}
            state = model.state_dict()
            checks["biases and buffers are as initialized"] = tensors_equal(
                {name: tensor for name, tensor in state.items() if name not in values},
                {name: tensor.to(self.device) for name, tensor in first.items() if name not in values},
            )
            shelf.append_row({**row, "invariants": InvariantReport(checks, 1).to_json()})
        return dict(max(shelf.rows(), key=lambda row: float(row["final_validation_accuracy"])))

    def _masks(
        self, level: int, shelf: RunArtifacts, needed: Mapping[str, RunArtifacts], values: dict[str, Any]
    ) -> tuple[MaskDict, dict[str, bool]]:
        """The masks of a level; at level 0 everything is kept."""
        if level == 0:
            return {name: weight == weight for name, weight in values.items()}, {}
        if self._trained:
            return {k: m.to(self.device) for k, m in needed["ticket"].load_masks(mask_key(level)).items()}, {}
        run = TicketRunner(self.ticket, shelf, needed)
        past, last = run.past(level)
        masks, counts = run.masks(level, past, last)
        exact = {"every layer keeps exactly its count": count_kept(masks, counts) == dict(counts)}
        return {name: mask.to(self.device) for name, mask in masks.items()}, exact

    def _score(self, model: nn.Module, values: dict[str, Any], masks: MaskDict) -> dict[str, float]:
        data = self.ticket.dense.dataset()
        model.load_state_dict({**model.state_dict(), **apply_masks(values, masks)})
        return {
            "final_validation_accuracy": evaluate(model, data.validation).accuracy,
            "final_test_accuracy": evaluate(model, data.test).accuracy,
        }


def run_criterion_supermask(
    spec: CriterionSupermaskSpec,
    shelf: RunArtifacts,
    needed: Mapping[str, RunArtifacts],
    report_steps: StepReport | None = None,
) -> dict[str, Any]:
    """As `CriterionSupermaskSpec.run`."""
    return spec.run(shelf, needed, report_steps)
