"""The page of a compressed network: one HTML file that needs nothing else, no network and no script."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from prunus.compression.container.inspect import FileInspection
from prunus.compression.result import Compressed
from prunus.files import write_atomic
from prunus.report import formatting
from prunus.report.epoch_chart import curve
from prunus.report.histograms import histograms
from prunus.report.layer_table import table
from prunus.report.mask_images import bitmaps, input_coverage, kernels
from prunus.report.stage_sizes import sizes
from prunus.report.templating import environment
from prunus.training.evaluate import Evaluation

NAMES = {
    "dense": "dense training, where not given trained",
    "density": "density of the weights",
    "retrain": "retraining after a round",
    "final_retrain": "retraining after the last round",
    "bits": "bits of a code",
    "finetune": "training of the centroids",
    "kmeans_init": "start of k-means",
    "half_precision_biases": "biases in half precision",
    "encoding": "coding of the file",
}
"""What the settings of a recipe are called on the page, where their names do not say it."""


@dataclass(frozen=True)
class Headline:
    """The numbers at the top, in words."""

    ratio: str
    file_bytes: str
    original_bytes: str
    density: str
    sparsity: str
    kept: str
    weights: str
    test: str | None
    dense_test: str | None
    test_n: str
    dense_n: str
    more: str
    """How many more examples are wrong than with the dense network; empty where that cannot be said."""


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
) -> None:
    """Write the page of `compressed` and its file to `path`; the same arguments give the same bytes.

    Args:
        inspection: of the file that `compressed` was saved to.
        title: what was compressed, "LeNet-300-100 on MNIST".
        dense_test, test: of the network before and after, on the test split; None where nobody looked.
        seconds: the time all of it took.
        provenance: where the data came from (`Dataset.provenance`).

    The page appears whole or not at all. Raises OutputError where it cannot be written, PrunusError where jinja2
    is not installed.
    """
    page = (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            headline=headline(compressed, inspection, dense_test, test),
            sizes=sizes(compressed, inspection),
            table=table(inspection),
            weights=histograms(compressed),
            curve=curve(compressed),
            looks=input_coverage(compressed),
            kernels=kernels(compressed),
            bitmaps=bitmaps(compressed),
            making=provenance_rows(compressed, inspection, seconds, provenance),
        )
    )
    write_atomic(path, page)


def headline(
    compressed: Compressed, inspection: FileInspection, dense_test: Evaluation | None, test: Evaluation | None
) -> Headline:
    """The numbers a reader came for."""
    density, sparsity = formatting.format_density_pair(compressed.density)
    return Headline(
        formatting.format_ratio(inspection.ratio),
        formatting.format_int(inspection.file_bytes),
        formatting.format_int(inspection.original_bytes),
        density,
        sparsity,
        formatting.format_int(compressed.stages[-1].num_kept),
        formatting.format_int(sum(mask.numel() for mask in compressed.masks.values())),
        formatting.format_error(test) if test else None,
        formatting.format_error(dense_test) if dense_test else None,
        formatting.format_int(test.n) if test else "",
        formatting.format_int(dense_test.n) if dense_test else "",
        _more(dense_test, test),
    )


def provenance_rows(
    compressed: Compressed, inspection: FileInspection, seconds: float | None, provenance: str
) -> dict[str, str]:
    """How it was made: the recipe, the seed, what the file says beyond them, the data, the time."""
    recipe = compressed.recipe
    rows = {
        NAMES.get(f.name, f.name): formatting.format_settings(getattr(recipe, f.name)) for f in fields(recipe)
    }
    rows["seed"] = formatting.format_settings(compressed.seed)
    rows |= {str(key): formatting.format_settings(value) for key, value in _rest(inspection.metadata).items()}
    if provenance:
        rows["data"] = provenance
    if seconds is not None:
        rows["time"] = formatting.format_duration(seconds)
    return {name: words for name, words in rows.items() if words != "–"}


def _rest(made: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in made.items() if key not in ("recipe", "seed")}


def _more(dense: Evaluation | None, test: Evaluation | None) -> str:
    if dense is None or test is None or dense.n != test.n:
        return ""
    more = round((dense.accuracy - test.accuracy) * test.n / 100)
    return (
        formatting.pluralize(abs(more), f"{'fewer' if more < 0 else 'more'} mistake")
        if more
        else "as many mistakes"
    )
