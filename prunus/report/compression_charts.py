"""The charts of the page of a compressed network: sizes of the stages, weights of each layer, and validation errors."""

from collections.abc import Sequence
from itertools import pairwise
from math import isnan, nan
from typing import TYPE_CHECKING, NamedTuple

from prunus.compression.result import Compressed
from prunus.report.curve_styles import PALETTE
from prunus.report.figures import REFERENCE_COLOR, new_figure, set_log_ticks
from prunus.text_tables import pluralize
from prunus.training.evaluation_totals import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOR = "#8e3b76"
PAPER_COLOR = "#d9b65c"
STAGE_LABELS = {"pruned": "pruning and retraining", "quantized": "training the centroids"}
"""Labels of the stages with epochs of training."""


class StageRow(NamedTuple):
    """Size and error of the network after one stage."""

    name: str
    description: str
    bytes: int
    ratio: float
    """Bytes of the dense network ÷ bytes."""
    density: float
    weight_ratio: float | None
    """All weights ÷ remaining weights; None where no weight remains."""
    validation: Evaluation
    paper: tuple[int, int] | None
    """The range of ratios in the paper."""
    paper_counts_weights: bool

    @property
    def paper_text(self) -> str:
        """The range of the paper as text; empty where it has none."""
        return f"{self.paper[0]}–{self.paper[1]}×" if self.paper else ""


def stage_chart(rows: Sequence[StageRow]) -> "Figure":
    """A bar per stage from 1 to its ratio, with the range of the paper and the ratio that counts weights."""
    figure = new_figure(8.5, 0.7 + 0.42 * len(rows))
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        axes.barh(y, row.ratio - 1, left=1, height=0.45, color=COLOR, label="this network, in bytes")
        x, color, side = (0.97, "white", "right") if row.ratio >= 2 else (1.03, "black", "left")
        text = f"{row.ratio:.1f}×"
        axes.text(x * row.ratio, y, text, va="center", ha=side, color=color, fontsize=8)
        if row.paper:
            low, high = row.paper
            label = "Han, Mao and Dally 2016, over four networks"
            axes.barh(
                y, high - low, left=low, height=0.8, color=PAPER_COLOR, alpha=0.6, label=label, zorder=0
            )
        if row.paper_counts_weights and row.weight_ratio:
            label = "this network, in weights" + (", as the paper counts stage P" if row.paper else "")
            axes.plot(row.weight_ratio, y, "|", color="black", markersize=18, mew=2, label=label)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times smaller than the dense network (logarithmic)")
    set_log_ticks(axes)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside upper left", ncols=3, frameon=False, fontsize=7.5)
    return figure


def pruned_caption(compressed: Compressed) -> str:
    """What was done to the weights after the stage of pruning."""
    return "after pruning and retraining" if compressed.is_trained else "after pruning, without retraining"


def weight_chart(compressed: Compressed, name: str) -> "Figure":
    """Three panels of a layer that share their x axis: weights before pruning, after it, and the centroids.

    Args:
        compressed: The result of `compress`.
        name: The name of the weight of the layer.

    Returns:
        The figure; a panel without data says so in its title.
    """
    figure = new_figure(8.5, 2.4)
    before, after, centroids = figure.subplots(1, 3, sharex=True)
    panels = (before, "dense", "before pruning"), (after, "pruned", pruned_caption(compressed))
    for axes, stage, title in panels:
        histograms = next((each.histograms for each in compressed.stages if each.name == stage), {})
        edges, counts = histograms.get(name, ([0.0, 1.0], [0]))
        axes.stairs(counts, edges, fill=True, color=COLOR)
        caption = pluralize(sum(counts), "weight") if name in histograms else "no data"
        axes.set_title(f"{title}\n{caption}", fontsize=9)
        axes.set_ylabel(f"weights per bin of {edges[1] - edges[0]:.2g}", fontsize=8)
    _draw_centroids(centroids, compressed, name)
    for axes in (before, after, centroids):
        axes.set_xlabel("weight", fontsize=8)
        axes.set_ylim(bottom=0)
    return figure


def _draw_centroids(axes: "Axes", compressed: Compressed, name: str) -> None:
    quantized = compressed.quantized.get(name)
    values = quantized.codebook.tolist() if quantized else []
    uses = quantized.codes.bincount(minlength=len(values)).tolist() if quantized else []
    # One path with gaps, which takes a tenth of the bytes of one path per stem.
    xs = [x for value in values for x in (value, value, nan)]
    ys = [y for number in uses for y in (0, number, nan)]
    axes.plot(xs, ys, color=COLOR, linewidth=1.5 if len(values) <= 64 else 0.6)
    caption = "no data"
    if values:
        caption = f"{pluralize(len(values), 'centroid')} for {pluralize(sum(uses), 'weight')}"
    axes.set_title(f"after quantization\n{caption}", fontsize=9)
    axes.set_ylabel("weights per centroid", fontsize=8)


def epoch_chart(compressed: Compressed) -> "Figure | None":
    """Validation error, or else loss, from the dense network to the quantized one; None where there are no epochs."""
    epochs, dense = list(compressed.epochs), compressed.stages[0].validation
    if not epochs:
        return None
    from matplotlib.ticker import MaxNLocator

    has_classes = not isnan(dense.accuracy)
    losses = [dense.loss, *(epoch.validation_loss for _, epoch in epochs)]
    errors = [dense.error, *(100 - epoch.validation_accuracy for _, epoch in epochs)]
    values = errors if has_classes else losses
    changes = [at for at in range(1, len(epochs)) if epochs[at][0] != epochs[at - 1][0]]
    figure = new_figure(8.5, 3.2)
    axes = figure.add_subplot()
    axes.axhline(values[0], color=REFERENCE_COLOR, linestyle="--", linewidth=1, label="dense network")
    for at, (_, epoch) in enumerate(epochs):
        if epoch.epoch == 1 and at not in changes:
            axes.axvline(at, color=REFERENCE_COLOR, linewidth=0.5, alpha=0.5)
    stages = list(dict.fromkeys(stage for stage, _ in epochs))
    for start, end in pairwise([0, *changes, len(epochs)]):
        stage, x, y = epochs[start][0], range(start, end + 1), values[start : end + 1]
        color, label = PALETTE[stages.index(stage) % len(PALETTE)], STAGE_LABELS.get(stage, stage)
        axes.plot(x, y, "o-", markersize=3, color=color, label=label)
    quality = "validation error (%)" if has_classes else "validation loss"
    axes.set(xlabel="epochs since dense training", ylabel=quality)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return figure
