"""One round of a ticket as a value, its files in the directory of the run, and the weights that the next one may use.

A round is saved so that a kill between any two writes loses nothing: first the masks, then in one file everything that
the next round and the rows need, then the rows.
"""

from dataclasses import dataclass, field
from typing import Any

from prunus.masks import all_kept
from prunus.runs.directory import RunDirectory
from prunus.tickets.actions import WeightHistory
from prunus.tickets.baseline import Baseline, Needed, checkpoint_name, masks_name
from prunus.tickets.ticket import TicketSpec
from prunus.training.state import add_prefix, clone_tensors, strip_prefix
from prunus.types import MaskDict, Params

LAST = "last"
"""The file with the last round."""


@dataclass(frozen=True)
class Round:
    """The masks of a level, and the complete models that its training started from and ended with."""

    level: int
    masks: MaskDict
    start: Params
    final: Params
    row: dict[str, Any] = field(default_factory=dict)
    """The metrics of the level."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """The evaluations during its training."""

    @classmethod
    def dense(cls, baseline: Baseline, names: list[str]) -> "Round":
        """Return level 0: the baseline, from the rewind step to its end, with all weights kept.

        Args:
            baseline: The results of the baseline.
            names: The names of the prunable weights.

        Returns:
            The round, without a row and a curve.
        """
        weights = {name: baseline.rewind.model[name] for name in names}
        return cls(0, all_kept(weights), baseline.rewind.model, baseline.final)

    @classmethod
    def load_last(cls, directory: RunDirectory) -> "Round":
        """Read the round that was saved last."""
        tensors, metadata = directory.load_tensors(LAST), directory.load_metadata(LAST)
        row = metadata["row"]
        masks = directory.load_masks(masks_name(row["level"]))
        start, final = strip_prefix("start/", tensors), strip_prefix("final/", tensors)
        return cls(row["level"], masks, start, final, row, metadata["curve"])

    def save(self, directory: RunDirectory) -> None:
        """Write the round, its curve and its row, and remove the checkpoint of its training."""
        directory.save_masks(masks_name(self.level), self.masks)
        tensors = add_prefix("final/", self.final) | add_prefix("start/", self.start)
        directory.save_tensors(LAST, tensors, {"row": self.row, "curve": self.curve})
        complete_interrupted_save(directory)


def weight_history(ticket: TicketSpec, baseline: Baseline, previous: Round, needed: Needed) -> WeightHistory:
    """Collect the weights that criteria and actions may use: of the baseline, of the last training, and of a redraw.

    Args:
        ticket: The settings.
        baseline: The results of the baseline.
        previous: The round before this one; level 0 if each level is pruned from the baseline.
        needed: The directories of the finished dependencies, of which that of a learned supermask is read.

    Returns:
        The prunable weights by name; a redraw is on the CPU.
    """

    def prunable(model: Params) -> Params:
        return {name: model[name] for name in previous.masks}

    def redraw(seed: int) -> Params:
        weights = ticket.weights_of(ticket.baseline.make_network(seed))
        return {name: weight.cpu() for name, weight in clone_tensors(weights).items()}

    return WeightHistory(
        initial=prunable(baseline.initial),
        rewind=prunable(baseline.rewind.model),
        start=prunable(previous.start),
        final=prunable(previous.final),
        masks=previous.masks,
        redraw=redraw,
        supermask=prunable(needed["masks"].load_tensors("final")) if ticket.learned_masks else {},
    )


def complete_interrupted_save(directory: RunDirectory) -> None:
    """Write the rows of the last round if they are missing, and remove its checkpoint."""
    if not directory.has(LAST):
        return
    metadata = directory.load_metadata(LAST)
    level = metadata["row"]["level"]
    if level not in {row["level"] for row in directory.rows()}:
        directory.append_curve(metadata["curve"])
        directory.append_row(metadata["row"])
    directory.remove(checkpoint_name(level))


def finish_rounds(directory: RunDirectory) -> dict[str, Any]:
    """Keep the network of the last round alone, and return its row."""
    if directory.has(LAST):
        directory.save_tensors("final", strip_prefix("final/", directory.load_tensors(LAST)))
        directory.remove(LAST)
    return dict(directory.rows()[-1])
