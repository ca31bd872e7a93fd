"""Han, Mao, Dally 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization
and Huffman Coding".

    tables   Tables 1, 2 and 3: both LeNets with P, P+Q and P+Q+H, layer by layer
    starts   Figure 8: accuracy against bits for the starts of k-means
    sizes    Figure 6: accuracy against size for pruning alone, sharing alone, both

Where we depart: Figures 6 and 8 are of AlexNet on ImageNet; here they are LeNet-300-100 on MNIST. The tables use
the paper's densities, bits and index widths (recipes han2016-*); sizes are of whole files, header included.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from prunus.compression.container import EncodingConfig, inspect, pack
from prunus.compression.deep_compression import compress
from prunus.compression.presets import COMPRESSION_RECIPES
from prunus.compression.quantization import CodebookConstraint, quantize_weights
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.compression.result import Compressed
from prunus.compression.save import save
from prunus.experiments.lenet_presets import dense, mnist, pruned, scale_recipe
from prunus.experiments.results import Result, Row, Say, curve, start_record, summarize
from prunus.pruning.prunable import prunable_weights
from prunus.seeds import derive_seed
from prunus.training import Recipe, evaluate, train
from prunus.types import Dataset, MaskDict, Progress

PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "lenet-300-100": {
        "fc1": (8, 6, 4.4, 5, 3.7, 3.1, 2.32),
        "fc2": (9, 6, 4.4, 5, 4.3, 3.8, 3.04),
        "fc3": (26, 6, 4.3, 5, 3.2, 15.7, 12.70),
        "total": (8, 6, 5.1, 5, 3.7, 3.1, 2.49),
    },
    "lenet-5": {
        "conv1": (66, 8, 7.2, 5, 1.5, 78.5, 67.45),
        "conv2": (12, 8, 7.2, 5, 3.9, 6.0, 5.28),
        "fc1": (8, 5, 4.5, 5, 4.5, 2.7, 2.45),
        "fc2": (19, 5, 5.2, 5, 3.7, 6.9, 6.13),
        "total": (8, 5.3, 4.1, 5, 4.4, 3.05, 2.55),
    },
}
"""Tables 2 and 3: weights %, weight bits P+Q and P+Q+H, index bits P+Q and P+Q+H, rate P+Q and P+Q+H in %."""

COLUMNS = ("weights %", "weight bits", "weight bits H", "index bits", "index bits H", "P+Q %", "P+Q+H %")


def tables(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Tables 1-3: both LeNets after pruning, sharing and Huffman encoding, beside the paper's numbers."""
    record = start_record("han2016.tables", size, out, replicates, seed, report, progress)
    data, rows = mnist(size), []
    for replicate in record.seeds:
        for name in PUBLISHED:
            recipe = scale_recipe(COMPRESSION_RECIPES[f"han2016-{name}"], size)
            model = dense(name, data, recipe, replicate, progress)
            compressed = compress(model, data=data, preset=recipe, seed=replicate, progress=progress)
            errors = {
                "dense error": evaluate(model, data.test).error,
                "error": evaluate(compressed.model, data.test).error,
            }
            rows += [
                {"network": name, "replicate": replicate, **row, **errors} for row in layer_rates(compressed)
            ]
            record.say(f"replicate {replicate}: {name}")
    table = summarize(
        rows, ["network", "layer"], [*COLUMNS, "bytes P+Q", "bytes P+Q+H", "dense error", "error"]
    )
    for row in table:
        published = PUBLISHED[row["network"]].get(row["layer"], [""] * len(COLUMNS))
        row.update({f"paper {column}": value for column, value in zip(COLUMNS, published, strict=True)})
    note = (
        "Rates are shares of the float32 bytes; the rows of the layers count their weights, 'total' the whole "
        "file. Paper: 1.64 -> 1.58 % error and 40x for LeNet-300-100, 0.80 -> 0.74 % and 39x for LeNet-5."
    )
    return record.finish(table, note)


def layer_rates(compressed: Compressed) -> list[Row]:
    """What each layer of weights takes in the file, fixed-width and with Huffman codes, and the whole file."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for codec in ("bitpack", "huffman"):
            save(compressed, f"{folder}/{codec}", encoding=replace(compressed.recipe.encoding, codec=codec))
            found[codec] = inspect(f"{folder}/{codec}")
    fixed, coded = found["bitpack"], found["huffman"]
    rows = []
    for before, after in zip(fixed.layers, coded.layers, strict=True):
        if before.name in compressed.masks:
            values = (
                100 * before.density,
                before.weight_bits,
                after.coded_weight_bits,
                before.index_bits,
                after.coded_index_bits,
                100 * before.fraction,
                100 * after.fraction,
            )
            rows.append(_rates(before.name.removesuffix(".weight"), values, before.bytes, after.bytes))
    entries = {layer.name: layer.entries for layer in coded.layers if layer.name in compressed.masks}

    def average(key: str) -> float:
        layers = [layer for layer in coded.layers if layer.name in entries]
        return float(sum(getattr(layer, key) * layer.entries for layer in layers)) / sum(entries.values())

    total = (
        100 * compressed.density,
        average("weight_bits"),
        average("coded_weight_bits"),
        average("index_bits"),
        average("coded_index_bits"),
        100 / fixed.ratio,
        100 / coded.ratio,
    )
    return [*rows, _rates("total", total, fixed.file_bytes, coded.file_bytes)]


def _rates(layer: str, values: Sequence[float], fixed: int, coded: int) -> Row:
    return {
        "layer": layer,
        **dict(zip(COLUMNS, values, strict=True)),
        "bytes P+Q": fixed,
        "bytes P+Q+H": coded,
    }


def _shared(
    model: nn.Module,
    masks: MaskDict,
    data: Dataset,
    bits: int,
    start: str,
    recipe: Recipe,
    seed: int,
    progress: Progress | None,
) -> nn.Module:
    """A copy of `model` with shared values, its centroids trained by `recipe`."""
    model = copy.deepcopy(model)
    tied = CodebookConstraint(model, quantize_weights(prunable_weights(model), masks, bits, start, seed))
    train(model, data, recipe, constraint=tied, seed=derive_seed(seed, "finetune"), progress=progress)
    return model


def starts(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Figure 8: accuracy of the pruned LeNet-300-100 against bits, by start of k-means, fine-tuned and not."""
    record = start_record("han2016.starts", size, out, replicates, seed, report, progress)
    data, recipe = mnist(size), scale_recipe(COMPRESSION_RECIPES["han2016-lenet-300-100"], size)
    widths = {"smoke": (1, 3, 6)}.get(size, (1, 2, 3, 4, 5, 6, 7, 8))
    epochs = {"smoke": 1, "default": 1, "full": 5}[size]
    rows: list[Row] = []
    for replicate in record.seeds:
        model, masks = pruned(
            dense("lenet-300-100", data, recipe, replicate, progress), data, recipe, replicate, progress
        )
        for start in KMEANS_INITS:
            for bits in widths:
                row = {"start": start, "bits": bits, "replicate": replicate}
                for stage, tuning in (("k-means", 0), ("fine-tuned", epochs)):
                    tuned = recipe.finetune.replace(epochs=tuning)
                    shared = _shared(model, masks, data, bits, start, tuned, replicate, progress)
                    row[stage] = evaluate(shared, data.test).accuracy
                rows.append(row)
        record.say(f"replicate {replicate}: {len(rows)} points")
    for stage in ("k-means", "fine-tuned"):
        record.draw(
            stage,
            [curve(s, [r for r in rows if r["start"] == s], "bits", stage) for s in KMEANS_INITS],
            title=f"LeNet-300-100 on MNIST, pruned: accuracy after {stage.replace('fine-tuned', 'fine-tuning')}",
            x_label="bits of a shared value",
            y_label="test accuracy (%)",
        )
    return record.finish(
        summarize(rows, ["start", "bits"], ["k-means", "fine-tuned"]), "Test accuracy in percent."
    )


def sizes(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Figure 6: accuracy lost against the size left, for pruning alone, sharing alone, and both."""
    record = start_record("han2016.sizes", size, out, replicates, seed, report, progress)
    data, recipe = mnist(size), scale_recipe(COMPRESSION_RECIPES["han2016-lenet-300-100"], size)
    densities = {"smoke": (0.2, 0.05)}.get(size, (0.5, 0.3, 0.2, 0.1, 0.06, 0.04, 0.02, 0.01))
    widths = {"smoke": (1, 4)}.get(size, (1, 2, 3, 4, 5, 6, 8))
    rows: list[Row] = []
    for replicate in record.seeds:
        model = dense("lenet-300-100", data, recipe, replicate, progress)
        before = evaluate(model, data.test).accuracy

        def note(
            name: str, network: nn.Module, encoding: EncodingConfig, at: object, seed: int, before: float
        ) -> Row:
            left = len(pack(network.state_dict(), encoding=encoding)) / (4 * 266_610)
            lost = before - evaluate(network, data.test).accuracy
            return {"curve": name, "at": at, "size %": 100 * left, "accuracy lost": lost, "replicate": seed}

        whole = {name: weight.detach() != 0 for name, weight in prunable_weights(model).items()}
        for bits in widths:
            network = _shared(model, whole, data, bits, "linear", recipe.finetune, replicate, progress)
            rows.append(
                note("sharing", network, EncodingConfig(codec="bitpack"), f"{bits} bits", replicate, before)
            )
        for density in densities:
            even = recipe.replace(density=dict.fromkeys(prunable_weights(model), density))
            network, masks = pruned(model, data, even, replicate, progress)
            encoding = EncodingConfig(codec="bitpack", use_codebook=False)
            rows.append(note("pruning", network, encoding, density, replicate, before))
            both = _shared(network, masks, data, 5, "linear", recipe.finetune, replicate, progress)
            encoding = EncodingConfig(codec="bitpack")
            rows.append(note("pruning and sharing", both, encoding, density, replicate, before))
        record.say(f"replicate {replicate}: {len(rows)} points")
    table = summarize(rows, ["curve", "at"], ["size %", "accuracy lost"])
    means = [{**row, "size %": round(row["size %"], 3)} for row in table]
    lookup = {(row["curve"], row["at"]): row["size %"] for row in means}
    placed = [{**row, "size %": lookup[row["curve"], row["at"]]} for row in rows]
    names = ("pruning", "sharing", "pruning and sharing")
    record.draw(
        "figure6",
        [
            curve(name, [row for row in placed if row["curve"] == name], "size %", "accuracy lost")
            for name in names
        ],
        title="LeNet-300-100 on MNIST: what is lost at which size",
        x_label="size after compression (% of float32, file as a whole)",
        y_label="test accuracy lost (percentage points)",
        x_log=True,
    )
    return record.finish(table, "Without entropy coding. Both: 5 bits a shared value.")
