"""Weights of each layer: before pruning, after it, and as shared values."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunus.compression.quantization import CodebookTensor
from prunus.compression.result import Compressed
from prunus.report import formatting
from prunus.report.svg_charts import Axis, Mark, Plot, line, linear, steps

Histogram = tuple[Sequence[float], Sequence[int]]

MOST_NAMED = 64
"""A codebook of more values is drawn as one shape, so that a page of many layers stays light."""


@dataclass(frozen=True)
class Panel:
    """One plot of a layer with its heading; no plot where no weight is left."""

    heading: str
    count: str
    plot: Plot | None


@dataclass(frozen=True)
class Weights:
    """One layer and its panels, on one axis of values."""

    name: str
    panels: tuple[Panel, ...]


def histograms(compressed: Compressed) -> list[Weights]:
    """Every pruned layer, in the model's order; a stage that keeps no histogram of it has no plot."""
    stages = {stage.name: stage.histograms for stage in compressed.stages}
    result = []
    for name in compressed.masks:
        before, after = (stages.get(stage, {}).get(name) for stage in ("dense", "pruned"))
        result.append(_weights(name, before, after, compressed.quantized.get(name)))
    return result


def _weights(
    name: str, before: Histogram | None, after: Histogram | None, shared: CodebookTensor | None
) -> Weights:
    values = [0.0]
    for histogram in (before, after):
        if histogram is not None and any(histogram[1]):
            values += [histogram[0][0], histogram[0][-1]]
    values += shared.codebook.tolist() if shared else []
    x = linear("value of a weight", values, 4, tight=True)
    panels = [
        _counted("before pruning", before, x, "before"),
        _counted("after pruning and retraining", after, x, "after"),
        _codebook(shared, x),
    ]
    return Weights(name, tuple(panels))


def _counted(heading: str, histogram: Histogram | None, x: Axis, look: str) -> Panel:
    if histogram is None or not any(histogram[1]):
        return Panel(heading, "no weight", None)
    edges, counts = histogram
    count, y = (
        f"{formatting.format_int(sum(counts))} weights",
        linear("weights in a bin", [0, max(counts)], 3, whole=True),
    )
    width = f"bins {edges[1] - edges[0]:.2g} wide"
    plot = Plot(x, y, (Mark(steps(x, y, edges, counts), look, width),), f"Weights {heading}: {count}.")
    return Panel(heading, count, plot)


def _codebook(shared: CodebookTensor | None, x: Axis) -> Panel:
    heading = "shared values"
    if shared is None or not len(shared.codebook):
        return Panel(heading, "none", None)
    values = shared.codebook.tolist()
    uses = shared.codes.bincount(minlength=len(values)).tolist()
    y = linear("weights of a value", [0, *uses], 3, whole=True)
    stems = [line(x, y, [(value, 0), (value, n)]) for value, n in zip(values, uses, strict=True)]
    if len(values) > MOST_NAMED:
        marks = [Mark("".join(stems), "stem thin")]
    else:
        words = [
            f"{formatting.pluralize(n, 'weight')} of value {value:.4g}"
            for value, n in zip(values, uses, strict=True)
        ]
        marks = [Mark(stem, "stem", says) for stem, says in zip(stems, words, strict=True)]
    count = f"{formatting.pluralize(len(values), 'value')} for {formatting.pluralize(len(shared.codes), 'weight')}"
    return Panel(heading, count, Plot(x, y, tuple(marks), f"Shared values: {count}."))
