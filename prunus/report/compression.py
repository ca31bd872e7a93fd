"""The page of a compressed network: one HTML file without scripts, which needs no other file and no network."""

import io
import math
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus.compression.container.inspection import Average, FileInspection, TensorStats
from prunus.compression.result import STAGE_LABELS, Compressed
from prunus.files import write_atomic
from prunus.report.compression_charts import (
    StageRow,
    epoch_chart,
    pruned_caption,
    stage_chart,
    weight_chart,
)
from prunus.report.figures import figure_style, to_png
from prunus.report.formatting import (
    format_bits,
    format_density,
    format_duration,
    format_settings,
)
from prunus.report.mask_images import draw_kernels, draw_masks, input_coverage
from prunus.report.templating import load_template
from prunus.text_tables import pluralize
from prunus.training.evaluation_totals import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTING_NAMES = {
    "dense": "training of the dense network, if not trained already",
    "retrain": "retraining after each round",
    "final_retrain": "retraining after the last round",
    "bits": "bits per code",
    "finetune": "training of the centroids",
    "kmeans_init": "initialization of k-means",
    "reserve_zero": "one code is left for zero",
    "half_precision_biases": "biases in half precision",
    "encoding": "encoding of the file",
}
"""Labels of the settings of a recipe, other than their names."""

STAGES = {
    "dense": "all weights in float32",
    "pruned": "pruned: the remaining weights and their positions",
    "quantized": "quantized: a short code in place of each weight",
    "huffman": "codes and positions Huffman-coded",
    "range": "codes and positions range-coded instead",
}
"""The description of each stage."""

MAX_LAYERS = 12
"""Layers whose weights are drawn, so that the page of a network of many layers stays small."""
PAPER_RATIOS = {"pruned": (9, 13), "quantized": (27, 31), "huffman": (35, 49)}
"""Compression ratios of Han et al. 2016, abstract; that of the pruned stage counts weights, not bytes."""
PAPER_NETWORKS = ("lenet-300-100", "lenet-5")
"""The networks that the paper compresses too; its ratios are shown for these only."""


class TensorRow(NamedTuple):
    """The size of one tensor, of the framing, or of the whole file, as text."""

    name: str
    shape: str
    weights: str
    density: str
    values: str
    weight_bits: tuple[str, str]
    """Before and after entropy coding."""
    index_bits: tuple[str, str]
    bytes: str
    fraction: str
    """Of its original bytes."""
    percent_of_file: float


def write_page(
    path: str | os.PathLike[str],
    compressed: Compressed,
    inspection: FileInspection,
    *,
    title: str,
    dense_test: Evaluation | None = None,
    test: Evaluation | None = None,
    seconds: float | None = None,
    provenance: str = "",
    activation_zeros: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Write the page of `compressed` and its file to `path`; the same arguments give the same bytes.

    The page appears whole or not at all.

    Args:
        path: The file to write.
        compressed: The result of `compress`.
        inspection: The inspection of the file that `compressed` was saved to.
        title: What was compressed, such as "LeNet-300-100 on MNIST".
        dense_test, test: The evaluation of the network before and after on the test split; None if it was not
            evaluated.
        seconds: The time that everything took.
        provenance: Where the data came from (`Dataset.provenance`).
        activation_zeros: The fraction of zeros in the inputs of each layer, "before" and "after" compression
            (`prunus.activation_zeros`); None if it was not measured.

    Raises:
        OutputError: The page cannot be written.
        PrunusError: Jinja2 or matplotlib is not installed.
    """
    template = load_template("page.html")
    stages = stage_rows(compressed, inspection)
    page = template.render(
        charts=_charts(compressed, stages),
        title=title,
        compressed=compressed,
        num_weights=sum(mask.numel() for mask in compressed.masks.values()),
        inspection=inspection,
        test=test,
        dense_test=dense_test,
        mistakes=_compare_mistakes(dense_test, test),
        stages=stages,
        pruned_caption=pruned_caption(compressed),
        by_epoch=replace(compressed.stages[0].validation, metric=None),  # epochs have no metric
        tensors=tensor_rows(inspection),
        activation_zeros=activation_zeros,
        coverage=input_coverage(compressed),
        kernels=draw_kernels(compressed),
        masks=draw_masks(compressed),
        num_rounds=sum(stage == "pruned" and epoch.epoch == 1 for stage, epoch in compressed.epochs),
        provenance=_provenance_rows(compressed, inspection, seconds, provenance),
    )
    write_atomic(path, page)


def _charts(compressed: Compressed, stages: list[StageRow]) -> dict[str, Any]:
    """The charts as PNG: of the stages, of the weights of each layer, and of the epochs."""
    with figure_style():
        epochs, layers = epoch_chart(compressed), list(compressed.masks)[:MAX_LAYERS]
        weights = {name: _small_png(weight_chart(compressed, name)) for name in layers}
        of_epochs = _small_png(epochs) if epochs is not None else None
        return {"stages": _small_png(stage_chart(stages)), "weights": weights, "epochs": of_epochs}


def _small_png(figure: "Figure") -> bytes:
    """Draw a figure in 32 colors, which takes a third of the bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(to_png(figure))).convert("RGB").quantize(32).save(file, "png", optimize=True)
    return file.getvalue()


def stage_rows(compressed: Compressed, inspection: FileInspection) -> list[StageRow]:
    """One row per stage. Each but the dense one has the size of a file with the same metadata as the saved file.

    Args:
        compressed: The result of `compress`.
        inspection: The inspection of the file that `compressed` was saved to; the size of its metadata is used.

    Returns:
        The rows in the order of the stages of `compressed`.
    """
    dense = compressed.stages[0].bytes
    num_weights = sum(mask.numel() for mask in compressed.masks.values())
    name = getattr(compressed.model, "built_in", {}).get("name")
    ratios = PAPER_RATIOS if name in PAPER_NETWORKS else {}
    rows = []
    for stage in compressed.stages:
        size = stage.bytes if stage.name == "dense" else stage.bytes + inspection.metadata_bytes
        rows.append(
            StageRow(
                STAGE_LABELS.get(stage.name, stage.name),
                STAGES.get(stage.name, ""),
                bytes=size,
                ratio=dense / size,
                density=stage.num_kept / num_weights,
                weight_ratio=num_weights / stage.num_kept if stage.num_kept else None,
                validation=stage.validation,
                paper=ratios.get(stage.name),
                paper_counts_weights=stage.name == "pruned",
            )
        )
    return rows


def tensor_rows(inspection: FileInspection) -> list[TensorRow]:
    """One row per tensor, then the framing, then the whole file, whose bits are averages."""

    def row(
        name: str,
        size: int,
        original: int,
        stored: TensorStats | Average | None,
        texts: tuple[str, str, str, str] = ("", "", "", ""),
    ) -> TensorRow:
        names = ("weight_bits", "coded_weight_bits", "index_bits", "coded_index_bits")
        bits = ["" if stored is None else format_bits(getattr(stored, name)) for name in names]
        fraction = f"{100 * size / original:.2f} %" if original else "–"
        percent_of_file = round(100 * size / inspection.file_bytes, 2)
        of_bits = (bits[0], bits[1]), (bits[2], bits[3])
        return TensorRow(name, *texts, *of_bits, f"{size:,}", fraction, percent_of_file)

    def row_of(layer: TensorStats) -> TensorRow:
        shape = " × ".join(map(str, layer.shape)) or "scalar"
        values = f"{layer.distinct:,}" if layer.distinct is not None else "–"
        texts = (shape, f"{layer.weights:,}", format_density(layer.density), values)
        return row(layer.name, layer.bytes, layer.original_bytes, layer, texts)

    num_weights = sum(layer.weights for layer in inspection.layers)
    nonzero = sum(layer.nonzero for layer in inspection.layers)
    counts = (f"{num_weights:,}", format_density(nonzero / num_weights)) if num_weights else ("", "")
    original = inspection.original_bytes
    return [
        *map(row_of, inspection.layers),
        row("framing", inspection.framing_bytes, original, None),
        row("the file", inspection.file_bytes, original, inspection.average, ("", *counts, "")),
    ]


def _provenance_rows(
    compressed: Compressed, inspection: FileInspection, seconds: float | None, provenance: str
) -> dict[str, str]:
    """The recipe, the seed, the other metadata of the file, the data and the time."""
    recipe = compressed.recipe
    values: dict[str, object] = {
        SETTING_NAMES.get(f.name, f.name): getattr(recipe, f.name) for f in fields(recipe)
    }
    values["seed"] = compressed.seed
    values |= {str(key): value for key, value in inspection.metadata.items() if key not in ("recipe", "seed")}
    rows = {name: format_settings(value) for name, value in values.items()}
    if provenance:
        rows["data"] = provenance
    if seconds is not None:
        rows["time"] = format_duration(seconds)
    return {name: text for name, text in rows.items() if text != "–"}


def _compare_mistakes(dense: Evaluation | None, test: Evaluation | None) -> str:
    """How many more examples are misclassified than by the dense network; empty where that is unknown."""
    if dense is None or test is None or dense.n != test.n or math.isnan(dense.accuracy + test.accuracy):
        return ""
    more = round((dense.accuracy - test.accuracy) * test.n / 100)
    if not more:
        return "as many mistakes"
    return pluralize(abs(more), f"{'fewer' if more < 0 else 'more'} mistake")
