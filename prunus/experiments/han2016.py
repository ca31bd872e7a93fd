"""Han, Mao, Dally 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding"."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from prunus.compression.container import EncodingConfig, inspect, pack
from prunus.compression.deep_compression import compress
from prunus.compression.quantization import CodebookConstraint, quantize_weights
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.compression.result import Compressed
from prunus.compression.save import save
from prunus.experiments.claims import Claim, Published
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.han2015 import with_error_increase
from prunus.experiments.trained_networks import LENETS, CompressedNetwork, evaluate_test, one_run
from prunus.pruning.prunable import prunable_weights
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import train
from prunus.types import Dataset, MaskDict

PAPER = (
    'Han, Mao, Dally 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization '
    'and Huffman Coding"'
)
COLUMNS = ("weights %", "weight bits", "weight bits H", "index bits", "index bits H", "P+Q %", "P+Q+H %")
TABLES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
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
"""Tables 2 and 3: COLUMNS of each layer. P: pruning, Q: quantization, H: Huffman coding."""
CLAIMED = {"lenet-300-100": (1.64, 40), "lenet-5": (0.80, 39)}
"""Table 1: test error of the dense network in percent, and compression ratio."""
RATIOS = {
    "pruning and quantization": ("P+Q %", 27, "32x for LeNet-300-100, 33x for LeNet-5"),
    "pruning, quantization and Huffman coding": ("P+Q+H %", 35, "40x for LeNet-300-100, 39x for LeNet-5"),
}
"""For each stage, the size that it leaves in percent, and the lowest published ratio of the four networks."""
LENET_ONLY = (
    "The paper shows AlexNet on ImageNet; here it is LeNet-300-100 on MNIST.",
    "The paper states neither epochs nor optimizer: those of the recipes are ours.",
)


def sizes_of_layers(settings: CompressedNetwork, replicate: int, dense: RunDirectory) -> list[Row]:
    """Compress the dense network, and measure what each layer takes in the file.

    Args:
        settings: The network and its compression recipe.
        replicate: Number of the replicate, the seed of the compression.
        dense: The finished run of the dense network.

    Returns:
        The rows of `layer_rates`; that of the total also has "dense error" and "error" on the test split in percent,
        and "ratio", the compression ratio of the file.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, model = settings.dense.dataset(), settings.dense.load(dense)
    before = evaluate_test(model, data).error
    compressed = compress(model, data=data, preset=settings.compression, seed=replicate, backend="dense")
    *rows, total = layer_rates(compressed)
    errors = {"dense error": before, "error": evaluate_test(compressed.model, data).error}
    return [*rows, {**total, **errors, "ratio": 100 / total["P+Q+H %"]}]


def layer_rates(compressed: Compressed) -> list[Row]:
    """Measure the size of each layer of weights, in fixed-width and in Huffman codes, and of the whole file.

    Args:
        compressed: A pruned and quantized network with the recipe that it was made by.

    Returns:
        One row per layer of weights, and last the row "total": the name of the "layer", the keys of COLUMNS, and
        "bytes P+Q" and "bytes P+Q+H".
    """
    with tempfile.TemporaryDirectory() as folder:
        inspected = {}
        for codec in ("bitpack", "huffman"):
            path = f"{folder}/{codec}"
            save(compressed, path, encoding=replace(compressed.recipe.encoding, codec=codec))
            inspected[codec] = inspect(path)
    fixed, coded = inspected["bitpack"], inspected["huffman"]
    layers = zip(fixed.layers, coded.layers, strict=True)
    pairs = [(before, after) for before, after in layers if before.name in compressed.masks]
    rows = []
    for before, after in pairs:
        bits = before.weight_bits, after.coded_weight_bits, before.index_bits, after.coded_index_bits
        values = (100 * before.density, *bits, 100 * before.fraction, 100 * after.fraction)
        rows.append(_rates(before.name.removesuffix(".weight"), values, before.bytes, after.bytes))
    entries = sum(after.entries for _, after in pairs)
    averages = [
        float(sum(getattr(after, key) * after.entries for _, after in pairs)) / entries
        for key in ("weight_bits", "coded_weight_bits", "index_bits", "coded_index_bits")
    ]
    total = (100 * compressed.density, *averages, 100 / fixed.ratio, 100 / coded.ratio)
    return [*rows, _rates("total", total, fixed.file_bytes, coded.file_bytes)]


def _rates(layer: str, values: Sequence[float], fixed: int, coded: int) -> Row:
    columns = dict(zip(COLUMNS, values, strict=True))
    return {"layer": layer, **columns, "bytes P+Q": fixed, "bytes P+Q+H": coded}


def _tables_template(model: str, size: str) -> FunctionRun:
    network = CompressedNetwork.of_size(model, size)
    recipe = network.compression.replace(reserve_zero=True)
    return FunctionRun.of(sizes_of_layers, replace(network, compression=recipe))


tables = Experiment(
    name="han2016.tables",
    paper=PAPER,
    place="Tables 1 to 3",
    title="Both LeNets after pruning, quantization and Huffman coding, layer by layer",
    question="How small do pruning, quantization and Huffman coding make the LeNets, without loss of accuracy?",
    template=_tables_template,
    runs=one_run,
    claims=tuple(
        claim
        for model, (error, ratio) in CLAIMED.items()
        for claim in (
            Claim(
                f"The compressed {model} has at most the error of the paper's dense network, {error:g} %", model,
                "lower", error, "error", "Table 1", at={"layer": ("total",)}, published=f"{error:g} %",
            ),
            Claim(
                f"{model} is compressed at least {ratio} times", model, "higher", float(ratio), "ratio", "Table 1",
                at={"layer": ("total",)}, published=f"{ratio}x",
            ),
            *(
                Claim(
                    f"After {stage} at most {100 / lowest:.4g} % remain ({lowest} times smaller)", model, "lower",
                    100 / lowest, metric, "Tables 1 to 5", at={"layer": ("total",)}, published=published,
                )
                for stage, (metric, lowest, published) in RATIOS.items()
            ),
            Claim(
                "The compressed network has the error of the dense one, within 0.25 pp", model, "equal", 0.0,
                "error increase", "Table 1", at={"layer": ("total",)}, margin=0.25,
                published="-0.06 pp for both LeNets",
            ),
        )
    ),
    published=tuple(
        Published({"network": f"{model}, mnist", "layer": layer}, metric, value, "Tables 2 and 3")
        for model, layers in TABLES.items()
        for layer, values in layers.items()
        for metric, value in zip(COLUMNS, values, strict=True)
    ),
    differences=(
        "The paper also compresses AlexNet and VGG-16 on ImageNet; here, only the LeNets are compressed.",
        LENET_ONLY[1],
        "Densities, bits and index widths are the paper's (recipes han2016-*), and one code of each layer is zero, as "
        "in the files that its authors published; sizes are those of whole files, with headers.",
    ),
    networks=LENETS,
    metrics=(*COLUMNS, "bytes P+Q", "bytes P+Q+H", "dense error", "error", "ratio"),
    points=("layer",),
    select=with_error_increase,
    note="P: pruning, Q: quantization, H: Huffman coding. Rates are in percent of the float32 bytes: of a layer's "
    "weights in its row, of the whole file in the row \"total\". Errors are in percent.",
)  # fmt: skip


@dataclass(frozen=True)
class Sweep(CompressedNetwork):
    """The settings of one curve over code widths or densities."""

    kind: ClassVar[str] = "compression-sweep"

    bits: tuple[int, ...] = ()
    densities: tuple[float, ...] = ()
    start: str = "linear"
    """Initialization of k-means."""
    finetune_epochs: int = 1
    curve: str = ""

    def quantized_copy(
        self, model: nn.Module, masks: MaskDict, data: Dataset, *, bits: int, epochs: int, seed: int
    ) -> nn.Module:
        """Return a copy of `model` with weights shared by k-means and fine-tuned centroids.

        Args:
            model: The network; not modified.
            masks: The weights to quantize.
            data: To fine-tune the centroids on.
            bits: Of a code.
            epochs: Of the fine-tuning.
            seed: Seed of k-means and of the fine-tuning.

        Returns:
            The copy; weights that `masks` do not keep are zero.
        """
        model, recipe = copy.deepcopy(model), self.compression.finetune.replace(epochs=epochs)
        codebooks = quantize_weights(prunable_weights(model), masks, bits, self.start, seed)
        constraint = CodebookConstraint(model, codebooks)
        train(model, data, recipe, constraint=constraint, seed=derive_seed(seed, "finetune"), backend="dense")
        return model


def _sweep(function: Callable[..., list[Row]], model: str, size: str, **settings: Any) -> FunctionRun:
    network = CompressedNetwork.of_size(model, size)
    settings = {"finetune_epochs": network.compression.finetune.epochs, **settings}
    return FunctionRun.of(
        function, Sweep(network.compression, network.model, network.data, network.examples, **settings)
    )


def _kmeans_template(model: str, size: str) -> FunctionRun:
    bits = (1, 3, 6) if size == "smoke" else (1, 2, 3, 4, 5, 6, 7, 8)
    return _sweep(accuracy_per_bits, model, size, bits=bits, finetune_epochs=5 if size == "full" else 1)


def one_curve_per_initialization(template: FunctionRun, size: str) -> LabeledRuns:
    """The pruned network, quantized from every initialization of k-means.

    Args:
        template: The run of `accuracy_per_bits` on one network, without its input and initialization.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        One run per name of KMEANS_INITS, all from one pruned network.
    """
    pruned = template.settings.pruned_run()
    return labeled({start: template.changed(pruned, start=start) for start in KMEANS_INITS})


def accuracy_per_bits(settings: Sweep, replicate: int, pruned: RunDirectory) -> list[Row]:
    """Measure the accuracy after k-means, and after fine-tuning the centroids, for every code width.

    Args:
        settings: The network, the code widths, the initialization of k-means and the epochs of fine-tuning.
        replicate: Number of the replicate, the seed of k-means and of fine-tuning.
        pruned: The finished run of the pruned network.

    Returns:
        One row per code width, with "bits", and the test accuracies "k-means" and "fine-tuned" in percent.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, (model, masks) = settings.dense.dataset(), settings.load_pruned(pruned)
    rows: list[Row] = []
    for bits in settings.bits:
        row: Row = {"bits": bits}
        for stage, epochs in (("k-means", 0), ("fine-tuned", settings.finetune_epochs)):
            quantized = settings.quantized_copy(model, masks, data, bits=bits, epochs=epochs, seed=replicate)
            row[stage] = evaluate_test(quantized, data).accuracy
        rows.append(row)
    return rows


kmeans_init = Experiment(
    name="han2016.kmeans_init",
    paper=PAPER,
    title="Accuracy against bits for the initializations of k-means",
    question="Which initialization of k-means keeps the accuracy best at each code width?",
    template=_kmeans_template,
    runs=one_curve_per_initialization,
    figures=tuple(
        FigureSpec(
            stage, stage, "test accuracy (%)", f"Accuracy after {what}", x="bits", x_label="bits per code",
        )
        for stage, what in (("k-means", "k-means"), ("fine-tuned", "fine-tuning"))
    ),
    claims=tuple(
        Claim(
            f"Except at 3 bits, linear initialization is more accurate than {other} initialization", "linear",
            "higher", other, "fine-tuned", "Han et al. 2016", at={"bits": (2, 4, 5, 6, 7, 8)},
        )
        for other in ("density", "random")
    ),
    differences=(*LENET_ONLY, "Two initializations are added to the paper's: density^(1/3) and the optimal codebook."),
    networks=LENETS[:1],
    against="linear",
    metrics=("k-means", "fine-tuned"),
    described=("fine-tuned",),
    points=("bits",),
    replicates=(1, 3, 5),
    note="Test accuracy in percent.",
)  # fmt: skip


PRUNING, SHARING, BOTH = "pruning", "sharing", "pruning and sharing"


def _sizes_template(model: str, size: str) -> FunctionRun:
    smoke = size == "smoke"
    densities = (0.2, 0.05) if smoke else (0.5, 0.3, 0.2, 0.1, 0.06, 0.04, 0.02, 0.01)
    bits = (1, 4) if smoke else (1, 2, 3, 4, 5, 6, 8)
    return _sweep(loss_per_size, model, size, bits=bits, densities=densities)


def three_ways_to_compress(template: FunctionRun, size: str) -> LabeledRuns:
    """Pruning alone, weight sharing alone, and both; every layer has the same density.

    Args:
        template: The run of `loss_per_size` on one network, without its inputs and curve.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        Three runs, of the curves PRUNING, SHARING and BOTH. The first input is the dense network; unless weights are
        only shared, the pruned networks follow in the order of `densities`.
    """
    settings = template.settings
    names, dense = prunable_weights(settings.dense.network()), settings.dense.run()
    recipes = [
        settings.compression.replace(density=dict.fromkeys(names, density)) for density in settings.densities
    ]
    pruned = [replace(settings, compression=recipe).pruned_run() for recipe in recipes]
    inputs = {PRUNING: pruned, SHARING: [], BOTH: pruned}
    return labeled({curve: template.changed(dense, *runs, curve=curve) for curve, runs in inputs.items()})


def loss_per_size(settings: Sweep, replicate: int, dense: RunDirectory, *pruned: RunDirectory) -> list[Row]:
    """Measure the loss of accuracy and the size of the file for every code width or density.

    Args:
        settings: The network, the curve, the code widths and the densities.
        replicate: Number of the replicate, the seed of k-means and of fine-tuning.
        dense: The finished run of the dense network.
        *pruned: The finished runs of the pruned networks, one per density; none where weights are only shared.

    Returns:
        One row per code width (curve SHARING) or density (the other curves), with "at", the density or a text such as
        "4 bits"; "size %", the size of the file relative to the float32 parameters; and "accuracy lost" in percentage
        points.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, model = settings.dense.dataset(), settings.dense.load(dense)
    before, dense_bytes = evaluate_test(model, data).accuracy, 4 * sum(p.numel() for p in model.parameters())

    def row(at: object, network: nn.Module, encoding: EncodingConfig) -> Row:
        size = 100 * len(pack(network.state_dict(), encoding=encoding)) / dense_bytes
        return {"at": at, "size %": size, "accuracy lost": before - evaluate_test(network, data).accuracy}

    def share(network: nn.Module, masks: MaskDict, bits: int) -> nn.Module:
        epochs = settings.finetune_epochs
        return settings.quantized_copy(network, masks, data, bits=bits, epochs=epochs, seed=replicate)

    coded = EncodingConfig(codec="bitpack")
    if settings.curve == SHARING:
        masks = {name: weight.detach() != 0 for name, weight in prunable_weights(model).items()}
        return [row(f"{bits} bits", share(model, masks, bits), coded) for bits in settings.bits]
    rows = []
    for density, directory in zip(settings.densities, pruned, strict=True):
        network, masks = settings.load_pruned(directory)
        if settings.curve == PRUNING:
            rows.append(row(density, network, EncodingConfig(codec="bitpack", use_codebook=False)))
        else:
            rows.append(row(density, share(network, masks, BITS_OF_BOTH), coded))
    return rows


BITS_OF_BOTH = 5

sizes = Experiment(
    name="han2016.sizes",
    paper=PAPER,
    place="Figure 6",
    title="Accuracy against size for pruning alone, weight sharing alone, and both",
    question="Do pruning and weight sharing together reach smaller sizes without loss than either alone?",
    template=_sizes_template,
    runs=three_ways_to_compress,
    figures=(
        FigureSpec(
            "figure6", "accuracy lost", "test accuracy lost (pp)", "Accuracy lost at each size", x="size %",
            x_label="size after compression (% of float32, whole file)", x_log=True, point="at",
        ),
    ),
    claims=(
        Claim(
            "Together, at densities 0.04 and 0.06, they lose no accuracy, within 0.25 pp", BOTH, "not higher", 0.0,
            "accuracy lost", "Figure 6", at={"at": (0.04, 0.06)}, margin=0.25, published="no loss at 3 % of the size",
        ),
        Claim(
            "Sharing pruned weights costs no accuracy, within 0.25 pp", BOTH, "not higher", PRUNING, "accuracy lost",
            "Han et al. 2016", at={"at": (0.04, 0.06, 0.1, 0.2)}, margin=0.25,
        ),
    ),
    differences=LENET_ONLY,
    networks=LENETS[:1],
    metrics=("size %", "accuracy lost"),
    points=("at",),
    replicates=(1, 3, 5),
    note="Sizes are without entropy coding. Pruning and sharing together: codes of 5 bits.",
)  # fmt: skip
