"""Pruning compared with other ways to make a network small: error against bytes of the file.

Low rank keeps the largest singular values of each linear layer. Distillation trains a smaller network on the outputs of
the dense one (Hinton, Vinyals & Dean 2015). Every network is retrained, and its file is that of `prunus.save`.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from prunus.compression.quantize import quantize
from prunus.compression.save import saved_size
from prunus.errors import NoEffectWarning
from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec
from prunus.experiments.families_low_rank import low_rank
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.han2015 import LENET_ONLY
from prunus.experiments.han2016 import PAPER
from prunus.experiments.rows import group_rows
from prunus.experiments.trained_networks import (
    LENETS,
    CompressedNetwork,
    TrainedNetwork,
    evaluate_test,
    one_run_per_value,
)
from prunus.models.mlp import mlp
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.scopes import SCOPES
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import Recipe, train
from prunus.training.distillation import distillation_loss
from prunus.types import Dataset, MaskDict

PRUNING, QUANTIZATION, LOW_RANK = "pruning", "quantization", "low rank"
SMALLER, DISTILLATION = "smaller network", "distillation"
QUANTIZED, PRUNED_QUANTIZED = " with quantization", " with pruning and quantization"
MEASURED = ("bytes", "size %", "test error %", "error added")
LOSS_ALLOWED = 0.25
"""Percentage points of test error by which the smallest file without loss may be worse than the dense network."""


@dataclass(frozen=True, kw_only=True)
class Family(TrainedNetwork):
    """The settings of one family and its combinations; retraining has a tenth of the learning rate."""

    kind: ClassVar[str] = "compression-family"

    retrain_epochs: int
    finetune: Recipe
    """Of centroids."""
    densities: tuple[float, ...] = (0.3, 0.1, 0.05, 0.03, 0.02)
    bits: tuple[int, ...] = (5, 4, 3, 2)
    ranks: tuple[int, ...] = (64, 32, 16, 8)
    widths: tuple[float, ...] = (0.5, 0.25, 0.12, 0.06)
    """Of the smaller networks: hidden layers of 300 and 100 units times the width."""
    combined_density: float = 0.3
    combined_bits: int = 4
    """Of the combinations."""
    curve: str = ""


def _template(model: str, size: str) -> FunctionRun:
    network = CompressedNetwork.of_size(model, size)
    retrain, finetune = {"smoke": (1, 1), "default": (3, 1), "full": (15, 5)}[size]
    settings = Family(
        network.dense.recipe, network.model, network.data, network.examples, retrain_epochs=retrain,
        finetune=network.compression.finetune.replace(epochs=finetune),
    )  # fmt: skip
    return FunctionRun.of(size_and_error, settings)


def size_and_error(settings: Family, replicate: int, dense: RunDirectory) -> list[Row]:
    """Measure the bytes of the file and the test error of every network of a family, and of its combinations.

    Args:
        settings: The network, the family and the sizes of its networks, and the recipes of training.
        replicate: Number of the replicate, from which all seeds are derived.
        dense: The finished run of the dense network, which is also the teacher of distillation.

    Returns:
        One row per network: "curve"; "at", which network of the curve; "bytes", and "size %", relative to the file of
        the dense network; "test error %", and "error added" in percentage points.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, network = settings.dense.dataset(), settings.dense.load(dense)
    before, dense_bytes = evaluate_test(network, data).error, saved_size(network)
    rows: list[Row] = []
    for at, base, masks, bits in _networks(settings, replicate, network, data):
        for curve, model in _combinations(settings, replicate, base, masks, bits, data):
            size, error = saved_size(model), evaluate_test(model, data).error
            row: Row = {"curve": curve, "at": at, "bytes": size, "size %": 100 * size / dense_bytes}
            rows.append({**row, "test error %": error, "error added": error - before})
    return rows


def _networks(
    settings: Family, replicate: int, dense: nn.Module, data: Dataset
) -> Iterator[tuple[str, nn.Module, MaskDict | None, int]]:
    """The networks of a family, retrained but not quantized; with name, masks, and bits of the codes."""
    seed, masks, bits = derive_seed(replicate, settings.curve), None, settings.combined_bits
    if settings.curve == QUANTIZATION:
        yield from ((f"{number} bits", dense, None, number) for number in settings.bits)
    elif settings.curve == PRUNING:
        model = copy.deepcopy(dense)
        for density in settings.densities:
            masks = _prune(settings, model, data, density, masks, seed)
            yield f"density {density:g}", model, masks, bits
    elif settings.curve == LOW_RANK:
        for rank in settings.ranks:
            model = low_rank(dense, rank)
            train(model, data, settings.retraining(settings.retrain_epochs), seed=seed, backend="dense")
            yield f"rank {rank}", model, None, bits
    else:
        loss = distillation_loss(dense) if settings.curve == DISTILLATION else None
        pixels, classes = data.train.inputs[0].numel(), len(data.class_names)
        for width in settings.widths:
            hidden = (max(1, round(units * width)) for units in (300, 100))
            layers = mlp(pixels, *hidden, classes, hidden="relu", seed=derive_seed(replicate, "model"))
            model, seed = nn.Sequential(nn.Flatten(), *layers), derive_seed(replicate, "dense")
            train(model, data, settings.recipe, loss=loss, seed=seed, backend="dense")
            yield f"width {width:g}", model, None, bits


def _combinations(
    settings: Family, replicate: int, base: nn.Module, masks: MaskDict | None, bits: int, data: Dataset
) -> Iterator[tuple[str, nn.Module]]:
    """The curves on which a network is a point: alone, with quantization, and with pruning and quantization."""
    seed, curve = derive_seed(replicate, "combination"), settings.curve
    if curve != QUANTIZATION:
        yield curve, base
    name = curve if curve == QUANTIZATION else f"{curve}{QUANTIZED}"
    yield name, _quantized(settings, base, masks, bits, data, seed)
    if curve not in (PRUNING, QUANTIZATION):
        pruned = copy.deepcopy(base)
        masks = _prune(settings, pruned, data, settings.combined_density, None, seed)
        yield f"{curve}{PRUNED_QUANTIZED}", _quantized(settings, pruned, masks, bits, data, seed)


def _prune(
    settings: Family, model: nn.Module, data: Dataset, density: float, within: MaskDict | None, seed: int
) -> MaskDict:
    """Prune a model in place by magnitude, all layers ranked together, and retrain it."""
    rounds = prune_and_retrain(
        model, data, [density], [settings.retraining(settings.retrain_epochs)],
        criterion=CRITERIA["magnitude"], scope=SCOPES["global"], within=within, seed=seed, backend="dense",
    )  # fmt: skip
    return rounds[-1].masks


def _quantized(
    settings: Family, model: nn.Module, masks: MaskDict | None, bits: int, data: Dataset, seed: int
) -> nn.Module:
    """A copy with weights shared by k-means and trained centroids."""
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # a layer of a narrow network has few weights
        constraint = quantize(model, masks, bits, seed=seed)
    train(model, data, settings.finetune, constraint=constraint, seed=seed, backend="dense")
    return model


def smallest_files(rows: Sequence[Row]) -> list[Row]:
    """Add to each curve the size of its smallest file whose error is at most LOSS_ALLOWED above the dense network's.

    Args:
        rows: The rows of `size_and_error`.

    Returns:
        The rows, and one row per curve and replicate with "at": "smallest" and "smallest file %"; it is 100, the dense
        network, where no network of the curve has so low an error.
    """
    smallest = []
    for members in group_rows(rows, ("network", "replicate", "curve")).values():
        sizes = [row["size %"] for row in members if row["error added"] <= LOSS_ALLOWED]
        about = {key: value for key, value in members[0].items() if key not in MEASURED}
        smallest.append({**about, "at": "smallest", "smallest file %": min([*sizes, 100.0])})
    return [*rows, *smallest]


def _smaller(curve: str, *others: str, published: str = "", effect: float | None = None) -> list[Claim]:
    return [
        Claim(
            f"Without loss, {curve} gives a smaller file than {'a ' * other.startswith(SMALLER)}{other}", curve,
            "lower", other, "smallest file %", "Han et al. 2016", at={"at": ("smallest",)}, published=published,
            effect=effect,
        )
        for other in others
    ]  # fmt: skip


_BOTH = f"{PRUNING}{QUANTIZED}"

compression = Experiment(
    name="families.compression",
    paper=PAPER,
    place="Figure 6 and Table 7",
    title="Error against bytes of the file: pruning, quantization, low rank, smaller networks, distillation",
    question="Which way to make a network small, and which combination, has the lowest error for its bytes?",
    template=_template,
    runs=one_run_per_value("curve", (PRUNING, QUANTIZATION, LOW_RANK, SMALLER, DISTILLATION)),
    figures=(
        FigureSpec(
            "error", "test error %", "test error (%)", "Test error at each size of the file", x="size %",
            x_label="size of the file (% of that of the dense network)", x_log=True, y_log=True, point="at",
        ),
    ),
    claims=(
        *_smaller(
            PRUNING, LOW_RANK, published="9 times smaller, and 5 times by SVD with 1.2 pp more error (AlexNet)",
            effect=8.9,
        ),
        *_smaller(PRUNING, QUANTIZATION, SMALLER, DISTILLATION),
        *_smaller(_BOTH, PRUNING, published="27 times smaller, and 9 times by pruning (AlexNet)", effect=7.4),
        *_smaller(_BOTH, QUANTIZATION),
        *_smaller(_BOTH, *(f"{curve}{PRUNED_QUANTIZED}" for curve in (LOW_RANK, SMALLER, DISTILLATION))),
        Claim(
            "A distilled network has a lower error than one of the same size that is trained alone", DISTILLATION,
            "lower", SMALLER, "test error %", "Hinton, Vinyals & Dean 2015",
            at={"at": tuple(f"width {width:g}" for width in Family.widths)},
        ),
    ),
    differences=(
        *LENET_ONLY[1:],
        "Han et al. compare pruning, quantization and SVD of AlexNet; smaller networks and distillation are added. "
        "Every network is retrained, and sizes are those of whole files, with headers.",
        "The smallest file without loss is chosen by the test error, which favors families with more points.",
    ),
    networks=LENETS[:1],
    metrics=("size %", "test error %", "error added", "smallest file %"),
    points=("at",),
    select=smallest_files,
    replicates=(1, 3, 5),
    note=f"\"smallest\" is the smallest file of a curve whose test error is at most {LOSS_ALLOWED} percentage points "
    "above that of the dense network; 100 % is the dense network. In combinations, 30 % of the weights of a low-rank "
    "or smaller network remain, and codes have 4 bits.",
)  # fmt: skip
