"""Sizes after each stage, beside what the paper reports."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunus.compression.container.inspect import FileInspection
from prunus.compression.result import Compressed, Stage
from prunus.report import formatting
from prunus.report.svg_charts import Axis, logarithmic

WORDS = {
    "dense": ("dense", "as trained, every weight in full"),
    "pruned": ("P", "pruned: what is left, and where it stands"),
    "quantized": ("P + Q", "and shared: in place of each weight the short code of a shared value"),
    "huffman": ("P + Q + H", "and codes and positions in Huffman's code"),
    "range": ("P + Q + range coder", "the same with a range coder in Huffman's place"),
}
PAPER = {"pruned": (9, 13), "quantized": (27, 31), "huffman": (35, 49)}
"""Ratios of Han et al. 2016, abstract; the first counts parameters, not bytes."""


@dataclass(frozen=True)
class Row:
    """A stage as the chart and the table show it; places are in percent of the chart's width."""

    name: str
    says: str
    bytes: str
    ratio: str
    density: str
    fewer: str
    error: str
    paper: str
    bar: tuple[float, float]
    """Where the bar starts, and how long it is."""
    band: tuple[float, float] | None
    pin: float | None
    """Where the ratio of weights stands, for the stage whose paper's range counts them."""


@dataclass(frozen=True)
class Sizes:
    """The stages on one axis, and the file that one of them is."""

    axis: Axis
    rows: tuple[Row, ...]
    weights: str
    n: str
    file_bytes: str
    file_ratio: str


def on_disk(compressed: Compressed, inspection: FileInspection) -> Sequence[Stage]:
    """The stages, all but the dense one with the bytes of a file that says as much as the one on disk does.

    The stage whose coding that file has takes exactly the file's bytes.
    """
    return [
        stage if stage.name == "dense" else replace(stage, bytes=stage.bytes + inspection.metadata_bytes)
        for stage in compressed.stages
    ]


def sizes(compressed: Compressed, inspection: FileInspection) -> Sizes:
    """The stages in order, as ratios of the dense network's bytes."""
    stages = on_disk(compressed, inspection)
    dense, weights = stages[0].bytes, sum(mask.numel() for mask in compressed.masks.values())
    fewer = {stage.name: weights / stage.num_kept for stage in stages if stage.num_kept}
    shown = [dense / stage.bytes for stage in stages] + [fewer.get("pruned", 1.0)]
    shown += [end for paper in PAPER.values() for end in paper]
    axis = logarithmic("times smaller than the dense network", [1.0, *shown], "×")
    return Sizes(
        axis,
        tuple(_row(stage, dense, weights, axis) for stage in stages),
        formatting.format_int(weights),
        formatting.format_int(stages[0].validation.n),
        formatting.format_int(inspection.file_bytes),
        formatting.format_ratio(inspection.ratio),
    )


def _row(stage: Stage, dense: int, weights: int, axis: Axis) -> Row:
    name, says = WORDS.get(stage.name, (stage.name, ""))
    ratio, paper = dense / stage.bytes, PAPER.get(stage.name)
    one, end = axis.place(1.0), axis.place(ratio)
    return Row(
        name,
        says,
        formatting.format_int(stage.bytes),
        formatting.format_ratio(ratio),
        formatting.format_density(stage.num_kept / weights),
        formatting.format_ratio(weights / stage.num_kept) if stage.num_kept else "–",
        formatting.format_error(stage.validation),
        f"{paper[0]}–{paper[1]}×" if paper else "",
        (min(one, end), abs(end - one)),
        (axis.place(paper[0]), axis.place(paper[1]) - axis.place(paper[0])) if paper else None,
        axis.place(weights / stage.num_kept) if stage.name == "pruned" and stage.num_kept else None,
    )
