"""The report of `prunus.prune`: one row per layer, with the error of its output before and after the update."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import nn

from prunus.errors import ModelError, StatisticsError
from prunus.masks import mask_density
from prunus.pruning.obs.hessian import LayerHessian
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.prunable import coverage, describe_skipped
from prunus.pruning.views import layer_view, why_no_layer_inputs
from prunus.text_tables import text_table
from prunus.types import Params

CollectHessians = Callable[[nn.Module, Params], Iterator[dict[str, LayerHessian]]]
"""(model, weights) -> the Hessians of some layers at a time."""


@dataclass(frozen=True)
class LayerRow:
    """One pruned layer. Errors are squared errors of its output, relative to the output."""

    name: str
    shape: tuple[int, ...]
    density: float
    error_zeroed: float | None
    """With the pruned weights set to zero and the others as they were; None where the output cannot be measured."""
    error_updated: float | None
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
                _percent(row.error_zeroed),
                _percent(row.error_updated),
                "–" if row.seconds is None else f"{row.seconds:.2f}",
                "–" if row.damping is None else f"{row.damping:.3g}",
            )
            for row in self.rows
        ]
        return header, rows

    def __str__(self) -> str:
        header, rows = self.table()
        table = text_table([header, *rows], text_columns=len(header))
        return f"{table}\ndensity {self.density:.4f}; {self.not_pruned}"

    def to_json(self) -> dict[str, object]:
        """The same for JSON; errors as fractions."""
        return {
            "density": self.density,
            "coverage": dict(self.coverage),
            "damping": self.damping,
            "predicted_increase": None if math.isnan(self.predicted_increase) else self.predicted_increase,
            "recalibrated": self.num_recalibrated,
            "seconds": self.seconds,
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
            "unmeasured": dict(self.unmeasured),
        }


def make_report(
    model: nn.Module,
    before: Params,
    result: PruneResult,
    skipped: Mapping[str, str],
    collect: CollectHessians | None,
    *,
    num_recalibrated: int,
    seconds: float,
) -> PruneReport:
    """Measure the errors of the layers, and collect what pruning did.

    Args:
        model: The network before pruning.
        before: Its weights, by name.
        result: The pruned weights.
        skipped: Why the other parameters were not pruned.
        collect: `hessians_by_block` of the examples to measure errors on; None: they are not measured.
        num_recalibrated: BatchNorm layers whose statistics were estimated again.
        seconds: Of pruning.

    Returns:
        The report.
    """
    errors: dict[str, tuple[float, float]] = {}
    unmeasured: dict[str, str] = {}
    if collect is not None:
        errors, unmeasured = _output_errors(model, before, result, collect)
    rows = []
    for name, weight in before.items():
        density, (zeroed, updated) = mask_density({name: result.masks[name]}), errors.get(name, (None, None))
        cost = result.seconds.get(name), result.dampings.get(name)
        rows.append(LayerRow(name, tuple(weight.shape), density, zeroed, updated, *cost))
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
    model: nn.Module, before: Params, result: PruneResult, collect: CollectHessians
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """The relative errors with pruned weights at zero, and after the update; and why others are not measured."""
    unmeasured = why_no_layer_inputs(model, before)
    before = {name: weight for name, weight in before.items() if name not in unmeasured}
    if not before:
        return {}, unmeasured
    view = layer_view(model, before)
    viewed, names = view.weights(before), view.model_names
    masks, after = view.to_view(result.masks), view.to_view(result.weights)
    errors: dict[str, tuple[float, float]] = {}
    for name, hessian in _hessians(partial(collect, view.model), viewed, unmeasured, names):
        size, weight = hessian.error(viewed[name]), viewed[name].detach()
        if size:  # the error of a layer whose output is zero has no relative size
            zeroed = hessian.error(torch.where(masks[name], weight, 0.0) - weight) / size
            errors[names[name]] = zeroed, hessian.error(after[name].detach() - weight) / size
    return errors, unmeasured


def _hessians(
    collect: Callable[[Params], Iterator[dict[str, LayerHessian]]],
    weights: Params,
    failed: dict[str, str],
    names: Mapping[str, str],
) -> Iterator[tuple[str, LayerHessian]]:
    """The Hessians of the layers, by block or else one by one; `failed` is given why others have none, by `names`."""
    remaining = dict(weights)
    try:
        for part in collect(weights):
            for name, hessian in part.items():
                del remaining[name]
                yield name, hessian
    except (ModelError, StatisticsError) as error:
        if len(weights) == 1:
            failed |= {names[name]: str(error) for name in weights}
            return
        for name, weight in remaining.items():
            yield from _hessians(collect, {name: weight}, failed, names)


def _percent(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.3g} %"
