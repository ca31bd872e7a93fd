"""The result of Deep Compression: the network, and the measurements of each stage."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, isnan

from torch import nn

from prunus.compression.accuracy_budget import Trial
from prunus.compression.presets import CompressionRecipe
from prunus.compression.quantization import CodebookTensor
from prunus.pruning.prunable import coverage
from prunus.text_tables import text_table
from prunus.training import EpochMetrics, Evaluation
from prunus.types import MaskDict

STAGE_LABELS = {
    "dense": "dense",
    "pruned": "P",
    "quantized": "P + Q",
    "huffman": "P + Q + H",
    "range": "P + Q + range coder",
}
"""What tables and charts call each stage."""


@dataclass(frozen=True)
class Stage:
    """One stage of Deep Compression: the size of the network and its evaluation."""

    name: str
    bytes: int
    """Size of a file of the network without metadata; of the dense network, the bytes of its tensors."""
    num_kept: int
    """Number of prunable weights that are not pruned."""
    validation: Evaluation
    histograms: Mapping[str, tuple[list[float], list[int]]]
    """Bin edges and counts of the remaining weights, by tensor."""


@dataclass(frozen=True)
class Compressed:
    """A compressed network with the measurements of each stage. `print` shows the sizes as a table."""

    model: nn.Module
    dense_model: nn.Module
    """The dense network: the model that was given, or its trained copy."""
    masks: MaskDict
    quantized: Mapping[str, CodebookTensor]
    stages: Sequence[Stage]
    epochs: Sequence[tuple[str, EpochMetrics]]
    """Stage and metrics of each epoch of training, except those of the dense network."""
    recipe: CompressionRecipe
    seed: int
    file_bytes: int
    """Size of the file with everything in it, also where no file was written."""
    metadata_bytes: int
    """The part of it that is metadata."""
    skipped: Mapping[str, str]
    """Parameters that were not pruned, with the reasons."""
    is_trained: bool = True
    """Whether pruned weights were retrained and centroids were trained."""
    trials: Sequence[Trial] = ()
    """What the search for `max_accuracy_drop` has tried, in order."""

    @property
    def density(self) -> float:
        """Fraction of the prunable weights that is kept."""
        return self.stages[-1].num_kept / sum(mask.numel() for mask in self.masks.values())

    @property
    def ratio(self) -> float:
        """Compression ratio: bytes of the tensors of the dense network ÷ bytes of the file."""
        return self.stages[0].bytes / self.file_bytes

    @property
    def file_stages(self) -> list[Stage]:
        """The stages with the metadata of the file counted in the size of each but the dense one."""
        dense, *others = self.stages
        return [dense, *(replace(stage, bytes=stage.bytes + self.metadata_bytes) for stage in others)]

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serializable dictionary; errors are in percent, and None stands for NaN and infinity."""
        trials = [{**asdict(trial), "accuracy_drop": _finite(trial.accuracy_drop)} for trial in self.trials]
        return {
            "file_bytes": self.file_bytes,
            "original_bytes": self.stages[0].bytes,
            "ratio": self.ratio,
            "density": self.density,
            "coverage": coverage(self.model, self.skipped),
            "stages": [
                {
                    "name": s.name,
                    "bytes": s.bytes,
                    "num_kept": s.num_kept,
                    "validation_error": _finite(s.validation.error),
                    **(
                        {}
                        if s.validation.metric is None
                        else {"validation_metric": _finite(s.validation.metric)}
                    ),
                }
                for s in self.file_stages
            ],
            **({"trials": trials} if trials else {}),
        }

    def __str__(self) -> str:
        total = sum(mask.numel() for mask in self.masks.values())
        rows = [("stage", "bytes", "ratio", "density (sparsity)", "validation")]
        for stage in self.file_stages:
            density = 100 * stage.num_kept / total
            rows.append(
                (
                    STAGE_LABELS.get(stage.name, stage.name),
                    f"{stage.bytes:,}",
                    f"{self.stages[0].bytes / stage.bytes:.1f}×",
                    f"{density:.1f} % ({100 - density:.1f} %)",
                    _quality(stage.validation),
                )
            )
        return text_table(rows, text_columns=1)


def _finite(number: float) -> float | None:
    """`number`, or None, because JSON has neither NaN nor infinity."""
    return number if isfinite(number) else None


def _quality(result: Evaluation) -> str:
    """The error, the metric, or else the loss."""
    if result.metric is not None:
        return f"metric {result.metric:.4g}"
    return f"loss {result.loss:.4g}" if isnan(result.accuracy) else f"error {result.error:.2f} %"
