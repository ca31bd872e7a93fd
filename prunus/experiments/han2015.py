"""Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks"."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from prunus.experiments.claims import Claim, Published
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.rows import group_rows
from prunus.experiments.trained_networks import (
    LENETS,
    SMOKE_EXAMPLES,
    CompressedNetwork,
    TrainedNetwork,
    evaluate_test,
)
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.scopes import SCOPES
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.training import Recipe
from prunus.types import MaskDict

PAPER = 'Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks"'
CURVES = ("L2, no retraining", "L1, no retraining", "L1, retraining", "L2, retraining", "L2, iterative")
PENALTY_STRENGTHS = {"l1": 1e-5, "l2": 1e-4}

TABLES = {
    "lenet-300-100": {"fc1": (38, 8, 8), "fc2": (65, 9, 4), "fc3": (100, 26, 17), "total": (46, 8, 8)},
    "lenet-5": {
        "conv1": (82, 66, 66),
        "conv2": (72, 12, 10),
        "fc1": (55, 8, 6),
        "fc2": (100, 19, 10),
        "total": (77, 8, 16),
    },
}
"""Tables 2 and 3: nonzero activations, weights kept, FLOP kept, in percent."""


@dataclass(frozen=True, kw_only=True)
class Tradeoff(TrainedNetwork):
    """The settings of one curve of Figure 5; retraining has a tenth of the learning rate."""

    kind: ClassVar[str] = "tradeoff"

    retrain_epochs: int
    sparsities: tuple[float, ...]
    curve: str = ""


def _tradeoff(network: str, size: str) -> FunctionRun:
    epochs, retrain = {"smoke": (1, 1), "default": (10, 5), "full": (55, 15)}[size]
    sparsities = {
        "smoke": (0.5, 0.9, 0.95),
        "default": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98),
        "full": (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99),
    }[size]
    examples = SMOKE_EXAMPLES if size == "smoke" else None
    recipe = Recipe(epochs, 1.2e-3, 60)
    settings = Tradeoff(recipe, network, examples=examples, retrain_epochs=retrain, sparsities=sparsities)
    return FunctionRun.of(accuracy_lost, settings)


def five_curves(template: FunctionRun, size: str) -> LabeledRuns:
    """L1 and L2, with and without retraining, and L2 pruned iteratively.

    Args:
        template: The run of `accuracy_lost` on one network, without a curve and its penalty.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        One run per curve of CURVES; each has the dense network of its penalty as input.
    """
    runs = {}
    for curve in CURVES:
        penalty = curve[:2].lower()
        strength = PENALTY_STRENGTHS[penalty]
        recipe = template.settings.recipe.replace(penalty=penalty, penalty_strength=strength)
        dense = replace(template.settings, recipe=recipe).dense.run()
        runs[curve] = template.changed(dense, recipe=recipe, curve=curve)
    return labeled(runs)


def accuracy_lost(settings: Tradeoff, replicate: int, dense: RunDirectory) -> list[Row]:
    """Prune to every sparsity, from the dense network or (iteratively) from the sparsity before.

    Args:
        settings: The network, the curve, the sparsities and the recipe of training; retraining has a tenth of its
            learning rate.
        replicate: Number of the replicate, the seed of pruning and retraining.
        dense: The finished run of the dense network.

    Returns:
        One row per sparsity, with "pruned %", the sparsity in percent, and "accuracy lost", the test accuracy of the
        dense network minus that of the pruned one in percentage points. The iterative curve starts at the sparsity
        closest to 0.8.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, network = settings.dense.dataset(), settings.dense.load(dense)
    retraining = settings.retraining(0 if "no retraining" in settings.curve else settings.retrain_epochs)
    before = evaluate_test(network, data).accuracy
    iterative, sparsities, masks = "iterative" in settings.curve, settings.sparsities, None
    if iterative:  # from the 80 % point on, as in the paper
        first = min(sparsities, key=lambda sparsity: abs(sparsity - 0.8))
        sparsities = tuple(sparsity for sparsity in sparsities if sparsity >= first)
    rows: list[Row] = []
    for sparsity in sparsities:
        pruned = network if iterative else copy.deepcopy(network)
        # One quality parameter for all layers, times the standard deviation of the layer's weights.
        rounds = prune_and_retrain(
            pruned, data, [1 - sparsity], [retraining],
            criterion=CRITERIA["scaled_magnitude"], scope=SCOPES["global"], seed=replicate,
            within=masks if iterative else None, backend="dense",
        )  # fmt: skip
        masks = rounds[-1].masks
        lost = before - evaluate_test(pruned, data).accuracy
        rows.append({"pruned %": round(100 * sparsity, 1), "accuracy lost": lost})
    return rows


LENET_ONLY = (
    "Figure 5 shows AlexNet on ImageNet with top-5 accuracy; here it is LeNet-300-100 on MNIST with top-1 accuracy.",
    "The paper states neither epochs nor optimizer for the LeNets: Adam with the settings of Frankle & Carbin 2019.",
)

_claim = partial(Claim, metric="accuracy lost", source="Figure 5")
WITHOUT_LOSS, MAX_LOSS = "sparsity without loss %", 0.25
"""The metric of `with_sparsity_without_loss`, and the loss of test accuracy that it allows, in percentage points."""


def with_sparsity_without_loss(rows: Sequence[Row]) -> list[Row]:
    """Add to each curve of a replicate the highest sparsity up to which no network loses more than MAX_LOSS.

    Args:
        rows: One row per curve, replicate and sparsity, as `accuracy_lost` returns them.

    Returns:
        The rows, and after them one row per curve and replicate with WITHOUT_LOSS, in percent; 0 where the network of
        the lowest sparsity loses more.
    """
    added: list[Row] = []
    for members in group_rows(rows, ("curve", "replicate")).values():
        highest = 0.0
        for row in sorted(members, key=lambda row: row["pruned %"]):
            if row["accuracy lost"] > MAX_LOSS:
                break
            highest = row["pruned %"]
        left_out = ("pruned %", "accuracy lost")
        same = {key: value for key, value in members[0].items() if key not in left_out}
        added.append({**same, WITHOUT_LOSS: highest})
    return [*rows, *added]


tradeoff = Experiment(
    name="han2015.tradeoff",
    paper=PAPER,
    place="Figure 5",
    title="Accuracy lost against parameters pruned away",
    question="How many weights can be pruned without loss of accuracy, with and without retraining?",
    template=_tradeoff,
    runs=five_curves,
    figures=(
        FigureSpec(
            "figure5", "accuracy lost", "test accuracy lost (pp)", "Accuracy lost by pruning", x="pruned %",
            x_label="parameters pruned away (sparsity, %)",
        ),
    ),
    claims=(
        _claim(
            "Half of the weights can be pruned without retraining and without loss of accuracy, within 0.25 pp",
            "L2, no retraining", "not higher", 0.0, at={"pruned %": (50.0,)}, margin=0.25, published="no loss",
        ),
        _claim(
            "With retraining, 80 % of the weights can be pruned without loss of accuracy, within 0.25 pp",
            "L2, retraining", "not higher", 0.0, at={"pruned %": (80.0,)}, margin=0.25,
            published="about no loss at 5x (80 %)",
        ),
        _claim(
            "At 80 and 90 % pruned, retraining loses less accuracy than no retraining", "L2, retraining", "lower",
            "L2, no retraining", at={"pruned %": (80.0, 90.0)},
        ),
        _claim(
            "Without retraining, L1 loses less accuracy than L2", "L1, no retraining", "lower", "L2, no retraining",
            at={"pruned %": (80.0, 90.0)},
        ),
        _claim(
            "With retraining, L2 loses less accuracy than L1", "L2, retraining", "lower", "L1, retraining",
            at={"pruned %": (90.0, 95.0)},
        ),
        _claim(
            "Iterative pruning loses less accuracy than pruning once", "L2, iterative", "lower", "L2, retraining",
            at={"pruned %": (95.0, 97.0)},
        ),
        _claim(
            "Iterative pruning reaches a higher sparsity than pruning once without a loss above 0.25 pp",
            "L2, iterative", "higher", "L2, retraining", metric=WITHOUT_LOSS, effect=8.9,
            published="88.9 % (9 times fewer weights) and 80 % (5 times)",
        ),
        _claim(
            "At 90 % pruned, slightly more than in the paper, iterative pruning loses no accuracy, within 0.25 pp",
            "L2, iterative", "not higher", 0.0, at={"pruned %": (90.0,)}, margin=0.25,
            published="no loss at 9x (88.9 % pruned)",
        ),
    ),
    differences=(
        *LENET_ONLY,
        "The dense network that a loss is relative to is not trained further; retrained networks have more epochs than "
        "it has: 5 per retraining in the default size, in addition to 10. A network of which only 40 % is pruned and "
        "that is retrained once is 0.96 pp (0.59 to 1.32, n = 5) more accurate than the dense one. Compared with it, "
        "pruning 80 % once loses 0.11 pp (-0.01 to 0.24), and pruning 90 % iteratively loses 0.35 pp (0.30 to 0.40), "
        "more than the margin of 0.25 pp. With that reference, the claim on 90 % would not hold, the claim on 80 % "
        "would not be shown, and pruning once and iterative pruning would reach the same sparsity without loss (80 %, "
        "in one replicate 70 %), so that iterative pruning would not be shown to reach a higher one.",
        "The highest sparsity without loss is chosen by the test error.",
    ),
    networks=LENETS[:1],
    against="L2, iterative",
    metrics=("accuracy lost", WITHOUT_LOSS),
    described=("accuracy lost",),
    points=("pruned %",),
    select=with_sparsity_without_loss,
    replicates=(1, 3, 5),
    note="Accuracy lost is in percentage points, relative to the dense network of the same replicate. The sparsity "
    f"without loss is the highest one up to which no network of the curve loses more than {MAX_LOSS:g} points.",
)  # fmt: skip


def _in_percent(rows: Sequence[Row]) -> list[Row]:
    """Rename the "test error" of `costs_of_pruned_network`: elsewhere, that name is a loss in nats."""
    names = {"test error": "test error %"}
    return [{names.get(key, key): value for key, value in row.items()} for row in with_error_increase(rows)]


def with_error_increase(rows: Sequence[Row]) -> list[Row]:
    """Add to the rows of whole networks by how much the test error has increased, in percentage points.

    Args:
        rows: Rows of layers, and those of whole networks, which have the "test error" or "error" and the "dense error",
            in percent.

    Returns:
        The rows; those of whole networks have the "error increase" too.
    """
    return [
        {**row, "error increase": row["test error" if "test error" in row else "error"] - row["dense error"]}
        if "dense error" in row
        else row
        for row in rows
    ]


def costs_of_pruned_network(
    settings: CompressedNetwork, replicate: int, pruned: RunDirectory, dense: RunDirectory
) -> list[Row]:
    """Measure the costs of every layer, and the test errors of the pruned network and of the dense one.

    Args:
        settings: The network and its compression recipe.
        replicate: Number of the replicate; not used, because the pruned network is that of the replicate.
        pruned: The finished run of the pruned network.
        dense: That of the network before pruning.

    Returns:
        The rows of `layer_costs` on the first 1000 validation examples; that of the total also has the "test error" of
        the pruned network and the "dense error", in percent.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, (model, masks) = settings.dense.dataset(), settings.load_pruned(pruned)
    rows = layer_costs(model, masks, data.validation.inputs[:1000])
    errors = {
        "test error": evaluate_test(model, data).error,
        "dense error": evaluate_test(settings.dense.load(dense), data).error,
    }
    return [*rows[:-1], {**rows[-1], **errors}]


@torch.no_grad()
def layer_costs(model: nn.Module, masks: MaskDict, inputs: Tensor) -> list[Row]:
    """Count weights, FLOP (two per multiply-accumulate) and their remaining fractions: one row per layer, and a total.

    "act %" is the fraction of nonzero outputs of a layer where the next layer reads them.

    Args:
        model: The pruned network.
        masks: Of its prunable weights, in the order of the layers.
        inputs: A batch of inputs, [B, ...].

    Returns:
        One row per layer, and the row "total". The keys are "layer", "weights" and "FLOP", which count the dense layer
        for one example, and in percent "act %", "weights kept %" and "FLOP kept %".
    """
    names = [name.removesuffix(".weight") for name in masks]
    with _record_inputs(model, names) as recorded:
        model.eval()(inputs)
    rows: list[Row] = []
    for i, name in enumerate(names):
        mask, (active_inputs, positions) = masks[f"{name}.weight"], recorded[name]
        density, flop = float(mask.float().mean()), 2 * mask.numel() * positions
        active_outputs = 100 * recorded[names[i + 1]][0] if i + 1 < len(names) else 100.0
        # The image itself counts as dense, as in the paper.
        flop_density = density * (active_inputs if i else 1.0)
        rows.append(_layer(name, mask.numel(), flop, active_outputs, 100 * density, 100 * flop_density))
    total, flops = sum(row["weights"] for row in rows), sum(row["FLOP"] for row in rows)
    fractions = [
        sum(row[key] * row[of] for row in rows) / count
        for key, of, count in (("weights kept %", "weights", total), ("FLOP kept %", "FLOP", flops))
    ]
    outputs = [row["FLOP"] / 2 / masks[f"{row['layer']}.weight"][0].numel() for row in rows]
    active = sum(row["act %"] * n for row, n in zip(rows, outputs, strict=True)) / sum(outputs)
    return [*rows, _layer("total", total, flops, active, *fractions)]


@contextmanager
def _record_inputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, tuple[float, int]]]:
    """Record the fraction of nonzero inputs and the number of output positions of each layer."""
    recorded: dict[str, tuple[float, int]] = {}

    def record(name: str, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        positions = output[0].numel() // output.shape[1]
        recorded[name] = float((arguments[0] != 0).float().mean()), positions

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(record, name)))
        yield recorded


def _layer(name: str, *values: float) -> Row:
    columns = ("weights", "FLOP", "act %", "weights kept %", "FLOP kept %")
    return {"layer": name, **dict(zip(columns, values, strict=True))}


tables = Experiment(
    name="han2015.tables",
    paper=PAPER,
    place="Tables 2 and 3",
    title="LeNet-300-100 and LeNet-5, layer by layer",
    question="Which fraction of the weights and of the operations of each layer remains after pruning?",
    template=lambda model, size: FunctionRun.of(
        costs_of_pruned_network, CompressedNetwork.of_size(model, size)
    ),
    runs=lambda template, size: labeled(
        {
            template.settings.model: template.changed(
                template.settings.pruned_run(), template.settings.dense.run()
            )
        }
    ),
    claims=tuple(
        claim
        for model, dense, error in (("lenet-300-100", 1.64, 1.59), ("lenet-5", 0.80, 0.77))
        for claim in (
            Claim(
                f"With 12 times fewer weights, {model} has the error of its dense network, within 0.25 pp", model,
                "equal", 0.0, "error increase", "Table 1", at={"layer": ("total",)}, margin=0.25,
                published=f"{error - dense:.2f} pp",
            ),
            Claim(
                f"The pruned {model} has an error of at most {error:g} %", model, "lower", error, "test error %",
                "Table 1", at={"layer": ("total",)}, published=f"{error:g} % with 12 times fewer weights",
            ),
        )
    ),
    published=tuple(
        Published({"network": f"{model}, mnist", "layer": layer}, metric, value, "Tables 2 and 3")
        for model, layers in TABLES.items()
        for layer, values in layers.items()
        for metric, value in zip(("act %", "weights kept %", "FLOP kept %"), values, strict=True)
    ),
    differences=(LENET_ONLY[1], "The densities of the layers are the paper's, not found by a sensitivity analysis."),
    networks=LENETS,
    metrics=("weights", "FLOP", "act %", "weights kept %", "FLOP kept %", "dense error", "test error %"),
    points=("layer",),
    select=_in_percent,
    note="act %: nonzero activations of the layer. FLOP kept % = weights kept % x fraction of nonzero inputs. The test "
    "error is that of the pruned network.",
)  # fmt: skip
