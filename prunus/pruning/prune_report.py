"""The report of `prunus.prune`: one row per layer, with the error of its output before and after the update."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from prunus.data.examples import Examples
from prunus.errors import ModelError, StatisticsError
from prunus.masks import mask_density
from prunus.pruning.obs.blocks import hessians_by_block
from prunus.pruning.obs.hessian import LayerHessian, relative_output_errors
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.prunable import coverage, describe_skipped
from prunus.pruning.views import layer_view, why_no_layer_inputs
from prunus.training.outputs import Forward
from prunus.types import Params, Progress


@dataclass(frozen=True)
class LayerRow:
    """One pruned layer. Errors are squared errors of its output, relative to the output."""

    name: str
    shape: tuple[int, ...]
    density: float
    error_before: float | None
    """With the pruned weights set to zero and the others as they were; None where the output cannot be measured."""
    error_after: float | None
    """With the updated weights."""
    seconds: float | None
    """None where the layers were not pruned one by one."""
    damping: float | None
    """What was added to the diagonal of the layer's Hessian; None where the layer has none of its own."""


@dataclass(frozen=True)
class PruneReport:
    """What pruning did, one row per layer; prints as a table."""

    rows: list[LayerRow]
    density: float
    damping: float
    """The largest that was used; 0 where nothing was inverted."""
    predicted_increase: float
    """Of the error, as the method predicts it; NaN where it predicts none."""
    num_recalibrated: int
    """BatchNorm layers whose statistics were estimated again."""
    seconds: float
    """Of pruning alone."""
    coverage: Mapping[str, object]
    """How many of all parameters were not pruned, and why."""
    not_pruned: str
    """The same as a sentence."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """{name: why the output error of the layer was not measured}."""

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """The header and the rows of the table, as text."""
        header = (
            "weights",
            "shape",
            "density (sparsity)",
            "error, zeroed",
            "error, updated",
            "seconds",
            "damping",
        )
        rows = [
            (
                row.name,
                " × ".join(map(str, row.shape)),
                f"{100 * row.density:.2f} % ({100 * (1 - row.density):.2f} %)",
                _percent(row.error_before),
                _percent(row.error_after),
                "–" if row.seconds is None else f"{row.seconds:.2f}",
                "–" if row.damping is None else f"{row.damping:.3g}",
            )
            for row in self.rows
        ]
        return header, rows

    def __str__(self) -> str:
        header, rows = self.table()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in (header, *rows))
        return "\n".join([*lines, f"density {self.density:.4f}; {self.not_pruned}"])

    def to_json(self) -> dict[str, object]:
        """The same for JSON; errors as fractions."""
        return {
            "density": self.density,
            "coverage": dict(self.coverage),
            "damping": self.damping,
            "recalibrated": self.num_recalibrated,
            "seconds": self.seconds,
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
        }


def make_report(
    model: nn.Module,
    before: Params,
    result: PruneResult,
    examples: Examples | None,
    skipped: Mapping[str, str],
    *,
    num_recalibrated: int,
    seconds: float,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> PruneReport:
    """Measure the errors of the layers, and collect what pruning did.

    Args:
        model: The network before pruning.
        before: Its weights, by name.
        result: The pruned weights.
        examples: The examples to measure errors on; None: they are not measured.
        skipped: Why the other parameters were not pruned.
        num_recalibrated: BatchNorm layers whose statistics were estimated again.
        seconds: Of pruning.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        progress: Called after each batch of inputs.

    Returns:
        The report.
    """
    zeroed: Mapping[str, float] = {}
    updated: Mapping[str, float] = {}
    unmeasured: dict[str, str] = {}
    if examples is not None:
        zeroed, updated, unmeasured = _output_errors(model, before, result, examples, forward, progress)
    rows = []
    for name, weight in before.items():
        density = mask_density({name: result.masks[name]})
        errors = zeroed.get(name), updated.get(name)
        cost = result.seconds.get(name), result.dampings.get(name)
        rows.append(LayerRow(name, tuple(weight.shape), density, *errors, *cost))
    return PruneReport(
        rows,
        mask_density(result.masks),
        result.damping,
        result.predicted_increase,
        num_recalibrated,
        seconds,
        coverage(model, skipped),
        describe_skipped(model, skipped),
        unmeasured,
    )


def _output_errors(
    model: nn.Module,
    before: Params,
    result: PruneResult,
    examples: Examples,
    forward: Forward | None,
    progress: Progress | None,
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """The relative errors with pruned weights at zero, and after the update; and why others are not measured."""
    unmeasured = why_no_layer_inputs(model, before)
    before = {name: weight for name, weight in before.items() if name not in unmeasured}
    if not before:
        return {}, {}, unmeasured
    view = layer_view(model, before)
    viewed, names = view.weights(before), view.model_names
    masks, after = view.to_view(result.masks), view.to_view(result.weights)
    zeroed: dict[str, float] = {}
    updated: dict[str, float] = {}
    for name, hessian in _hessians(view.model, viewed, examples, forward, progress, unmeasured, names):
        if not hessian.error(viewed[name]):
            continue  # the error of a layer whose output is zero has no relative size
        bare = {name: torch.where(masks[name], viewed[name], 0.0)}
        for errors, weights in ((zeroed, bare), (updated, after)):
            errors[names[name]] = relative_output_errors({name: hessian}, viewed, weights)[name]
    return zeroed, updated, unmeasured


def _hessians(
    model: nn.Module,
    weights: Params,
    examples: Examples,
    forward: Forward | None,
    progress: Progress | None,
    failed: dict[str, str],
    names: Mapping[str, str],
) -> Iterator[tuple[str, LayerHessian]]:
    """The Hessians of the layers, by block or else one by one; `failed` is given why others have none, by `names`."""
    remaining = dict(weights)
    try:
        for part in hessians_by_block(model, weights, examples, forward=forward, progress=progress):
            for name, hessian in part.items():
                del remaining[name]
                yield name, hessian
    except (ModelError, StatisticsError) as error:
        if len(weights) == 1:
            failed |= {names[name]: str(error) for name in weights}
            return
        for name, weight in remaining.items():
            yield from _hessians(model, {name: weight}, examples, forward, progress, failed, names)


def _percent(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.3g} %"
