"""The charts of the page of a compressed network: weights of each layer, and validation error after each epoch.

A chart is SVG paths between two axes. Positions are in percent of the width and height of the plot, so that it
stretches to the width of its page; labels are HTML beside it and keep their size.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from prunus.compression.quantization import CodebookTensor
from prunus.compression.result import Compressed
from prunus.report.formatting import format_int, pluralize

MAX_LOG_TICKS = 8
"""With more ticks at 1, 2 and 5 times powers of ten, a logarithmic axis has ticks at powers of ten alone."""
MAX_TOOLTIPS = 64
"""A codebook of more values is drawn as one path without tooltips, so that a page of many layers stays small."""
STAGE_LABELS = {"pruned": "pruning and retraining", "quantized": "training the centroids"}

Histogram = tuple[Sequence[float], Sequence[int]]
"""Edges of the bins, and weights in each bin."""


class Tick(NamedTuple):
    """A labeled position on an axis, in percent."""

    position: float
    text: str


class Axis(NamedTuple):
    """A range of values, `low` < `high`."""

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...] = ()
    log: bool = False

    def position(self, value: float) -> float:
        """The position of `value` in percent from `low`; a value outside is clipped to the range."""
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 3)


class Mark(NamedTuple):
    """An SVG path with its CSS class and its tooltip."""

    path: str
    css_class: str
    tooltip: str = ""


class Plot(NamedTuple):
    """Marks between two axes, and a description for readers who cannot see them."""

    x: Axis
    y: Axis
    marks: list[Mark]
    description: str


class Panel(NamedTuple):
    """One plot of a layer with its heading; without a plot where no weight remains."""

    heading: str
    caption: str
    plot: Plot | None


class LayerHistograms(NamedTuple):
    """The panels of one layer, which share their x axis."""

    name: str
    panels: list[Panel]


class EpochChart(NamedTuple):
    """The plot and its legend."""

    plot: Plot
    stages: list[tuple[str, str]]
    """CSS class and label of each line."""
    num_rounds: int


def linear_axis(
    label: str, values: Iterable[float], num_ticks: int = 5, *, tight: bool = False, integers: bool = False
) -> Axis:
    """An axis over `values` with about `num_ticks` round ticks. It ends at ticks, or if `tight` at the extremes.

    Args:
        label: The label of the axis.
        values: At least one finite number.
        num_ticks: About how many steps the range is divided into, at least 1.
        tight: Whether the axis ends at the smallest and the largest value instead of at ticks.
        integers: Whether ticks are at least 1 apart, for values that are counts.

    Returns:
        The axis; where all values are equal, its range extends to both sides of them.

    >>> [tick.text for tick in linear_axis("epoch", [0, 37]).ticks]
    ['0', '10', '20', '30', '40']
    """
    low, high = min(values := list(values)), max(values)
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = _round_step((high - low) / num_ticks)
    if integers:
        step = max(step, 1.0)
    if not tight:
        low, high = step * math.floor(low / step), step * math.ceil(high / step)
    axis = Axis(label, low, high)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ticks = tuple(Tick(axis.position(step * i), f"{step * i:,.{places}f}" if i else "0") for i in multiples)
    return axis._replace(ticks=ticks)


def log_axis(label: str, values: Iterable[float], unit: str = "") -> Axis:
    """A logarithmic axis over positive `values`, which ends at ticks.

    Args:
        label: The label of the axis.
        values: At least one finite number; all are above 0.
        unit: The text after the number of each tick.

    Returns:
        The axis, with ticks at 1, 2 and 5 times powers of ten, or at powers of ten where these are more than
        `MAX_LOG_TICKS`.

    >>> [tick.text for tick in log_axis("ratio", [1, 60], "×").ticks]
    ['1×', '2×', '5×', '10×', '20×', '50×', '100×']
    """
    low, high = min(values := list(values)), max(values)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 3)
    for digits in ((1, 2, 5), (1,)):
        stops = [digit * 10.0**power for power in powers for digit in digits]
        first = max(i for i, stop in enumerate(stops) if stop <= low * (1 + 1e-9))
        last = min(i for i, stop in enumerate(stops) if stop >= high * (1 - 1e-9))
        stops = stops[first : max(last, first + 1) + 1]
        if len(stops) <= MAX_LOG_TICKS:
            break
    axis = Axis(label, stops[0], stops[-1], log=True)
    return axis._replace(ticks=tuple(Tick(axis.position(stop), f"{stop:,g}{unit}") for stop in stops))


def line(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    """The path through `points`; a single point becomes a dot where line ends are round.

    Args:
        x: The horizontal axis.
        y: The vertical axis.
        points: At least one pair (x, y) of values; values outside the axes are clipped.

    Returns:
        The data of an SVG path, in percent of the plot.
    """
    positions = [f"{x.position(a):g} {100 - y.position(b):g}" for a, b in points]
    return "M" + "L".join(positions if len(positions) > 1 else positions * 2)


def outline(x: Axis, y: Axis, edges: Sequence[float], counts: Sequence[int]) -> str:
    """The closed outline of a histogram, without the empty bins at its ends.

    Args:
        x: The horizontal axis.
        y: The vertical axis, which begins at zero.
        edges: The edges of the bins, [n + 1], ascending.
        counts: The number of values in each bin, [n].

    Returns:
        The data of an SVG path, in percent of the plot; empty where all bins are empty.
    """
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return ""
    path = f"M{x.position(edges[filled[0]]):.2f} 100"
    for i in range(filled[0], filled[-1] + 1):
        path += f"V{100 - y.position(counts[i]):.2f}H{x.position(edges[i + 1]):.2f}"
    return path + "V100Z"


def weight_histograms(compressed: Compressed) -> list[LayerHistograms]:
    """Three panels of each pruned layer: weights before pruning, after it, and the centroids."""
    by_stage = {stage.name: stage.histograms for stage in compressed.stages}
    result = []
    for name in compressed.masks:
        before, after = (by_stage.get(stage, {}).get(name) for stage in ("dense", "pruned"))
        quantized = compressed.quantized.get(name)
        values = [
            edge for histogram in (before, after) if histogram and any(histogram[1]) for edge in histogram[0]
        ]
        values += quantized.codebook.tolist() if quantized else []
        x = linear_axis("weight", [0.0, *values], 4, tight=True)
        panels = [
            _histogram_panel("before pruning", before, x, "before"),
            _histogram_panel("after pruning and retraining", after, x, "after"),
            _codebook_panel(quantized, x),
        ]
        result.append(LayerHistograms(name, panels))
    return result


def _histogram_panel(heading: str, histogram: Histogram | None, x: Axis, css_class: str) -> Panel:
    if histogram is None or not any(histogram[1]):
        return Panel(heading, "no weights", None)
    edges, counts = histogram
    count = f"{format_int(sum(counts))} weights"
    y = linear_axis("weights per bin", [0, max(counts)], 3, integers=True)
    mark = Mark(outline(x, y, edges, counts), css_class, f"bins of width {edges[1] - edges[0]:.2g}")
    return Panel(heading, count, Plot(x, y, [mark], f"Histogram of {count} {heading}."))


def _codebook_panel(quantized: CodebookTensor | None, x: Axis) -> Panel:
    heading = "centroids"
    if quantized is None or not len(quantized.codebook):
        return Panel(heading, "none", None)
    values = quantized.codebook.tolist()
    uses = quantized.codes.bincount(minlength=len(values)).tolist()
    y = linear_axis("weights per centroid", [0, *uses], 3, integers=True)
    stems = [line(x, y, [(value, 0), (value, n)]) for value, n in zip(values, uses, strict=True)]
    marks = [
        Mark(stem, "stem", f"{pluralize(n, 'weight')} at {value:.4g}")
        for stem, value, n in zip(stems, values, uses, strict=True)
    ]
    if len(values) > MAX_TOOLTIPS:
        marks = [Mark("".join(stems), "stem thin")]
    count = f"{pluralize(len(values), 'centroid')} for {pluralize(len(quantized.codes), 'weight')}"
    return Panel(heading, count, Plot(x, y, marks, f"Weights of each centroid: {count}."))


def epoch_chart(compressed: Compressed) -> EpochChart | None:
    """Validation error from the dense network to the quantized one; None where nothing was trained."""
    epochs, dense = list(compressed.epochs), compressed.stages[0].validation.error
    if not epochs:
        return None
    errors = [dense, *(100 - epoch.validation_accuracy for _, epoch in epochs)]
    x = linear_axis("epochs since dense training", [0, len(epochs)], 6, tight=True, integers=True)
    margin = (max(errors) - min(errors)) / 10
    y = linear_axis("validation error (%)", [max(0.0, min(errors) - margin), max(errors)], 4)
    stages = list(dict.fromkeys(stage for stage, _ in epochs))
    css_class = {stage: f"line-{index % 4}" for index, stage in enumerate(stages)}
    changes = [at for at in range(1, len(epochs)) if epochs[at][0] != epochs[at - 1][0]]
    starts = [at for at, (_, epoch) in enumerate(epochs) if epoch.epoch == 1 and at not in changes]
    marks = [
        Mark(line(x, y, [(at, y.low), (at, y.high)]), kind)
        for kind, ats in (("round", starts), ("change", changes))
        for at in ats
    ]
    marks.append(Mark(line(x, y, [(0, dense), (len(epochs), dense)]), "reference"))
    for start, end in pairwise([0, *changes, len(epochs)]):
        points = [(at, errors[at]) for at in range(start, end + 1)]
        marks.append(Mark(line(x, y, points), css_class[epochs[start][0]]))
    for at, (stage, epoch) in enumerate(epochs, start=1):
        left, right = x.position(at - 0.5), x.position(at + 0.5)
        tooltip = (
            f"epoch {at}, {STAGE_LABELS.get(stage, stage)}: validation error {errors[at]:.2f} %, "
            f"loss {epoch.validation_loss:.4f}"
        )
        marks.append(Mark(f"M{left:g} 0H{right:g}V100H{left:g}Z", "hover", tooltip))
    num_rounds = sum(stage == "pruned" and epoch.epoch == 1 for stage, epoch in epochs)
    plot = Plot(x, y, marks, f"Validation error from {errors[0]:.2f} % to {errors[-1]:.2f} %.")
    return EpochChart(plot, [(css_class[s], STAGE_LABELS.get(s, s)) for s in stages], num_rounds)


def _round_step(rough: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, on a logarithmic scale."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return min((digit * power for digit in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
