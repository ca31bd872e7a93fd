"""Pruned at one go, without retraining: a trained ResNet-20 on CIFAR-10, from magnitude to OBS made to scale.

    magnitude, OBD (with the diagonal of the Fisher), the blockwise Fisher looked at once and several times,
    SparseGPT, ExactOBS: each at several sparsities, with and without recalibrating BatchNorm, over calibration draws

All rank each layer alone, so that every layer has the same density; magnitude and the Fisher of several looks, which
is of the whole network, also rank all weights together, and ExactOBS also divides one budget by what each layer loses.

Source: the protocol is that of Frantar & Alistarh 2022, section 6 (one-shot, 1024 calibration examples, BatchNorm
recalibrated). The network is `resnet20-cifar10-jpeg.safetensors` in the data root, 88.30 % on those pictures; where
there is none, a ResNet-20 is trained first, shorter than published, and the table says so.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from prunus.data import data_root, load_data
from prunus.experiments.results import Record, Result, Row, Say, curve, start_record, summarize
from prunus.masks import all_kept, apply_masks
from prunus.models import MODELS
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod, pruning_method, sample_examples, with_options
from prunus.pruning.obs import (
    ExactObs,
    Fisher,
    SparseGpt,
    allocate_densities,
    error_curves,
    make_objective,
    relative_error_curves,
)
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import SCOPES
from prunus.pruning.weights import with_weights
from prunus.report.statistics import compare_paired
from prunus.training import Recipe, evaluate, train
from prunus.types import Dataset, Density, Params, Progress, Split, numel_by_name

TRAINED = "resnet20-cifar10-jpeg.safetensors"
SPARSITIES = {"smoke": (60,), "default": (60, 80), "full": tuple(range(50, 100, 5))}
EXAMPLES = {"smoke": 64, "default": 1024, "full": 1024}
PICTURES = {"smoke": 200, "default": 1000, "full": 10_000}
"""Of the test split."""
LOOKS = {"smoke": 2, "default": 4, "full": 16}
"""Of the Fisher that is looked at anew while the weights go."""
RECIPE = Recipe(
    epochs=12,
    learning_rate=0.1,
    batch_size=128,
    optimizer="nesterov",
    momentum=0.9,
    weight_decay=1e-4,
    lr_schedule="cosine",
    augmentation="flip_crop",
    source="He et al. 2016, section 4.2, for 12 epochs with a cosine instead of 164 with steps",
)

Fit = Callable[[float], Params]
"""A density -> the pruned weights."""


def one_shot(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """ResNet-20 pruned at one go, by magnitude to SparseGPT, with and without BatchNorm recalibration."""
    n = replicates or {"smoke": 1}.get(size, 5)
    record = start_record("one_shot", size, out, n, seed, report, progress)
    data = load_data("cifar-10")
    model, how = _network(size, data, record)
    test = data.test.take(PICTURES[size])
    dense = evaluate(model, test).accuracy
    rows: list[Row] = []
    for draw in record.seeds:
        few = sample_examples(data.train, EXAMPLES[size], draw)
        for method, fit in _fits(model, few, draw, LOOKS[size], progress).items():
            record.report(f"draw {draw}, {method}", 0, 0)
            rows += list(_points(model, method, fit, few, test, size, draw))
            record.say(
                f"draw {draw}, {method}: {rows[-1]['recalibrated']:.1f} % at {rows[-1]['sparsity %']} %"
            )
    for kind in ("as pruned", "recalibrated"):
        names = dict.fromkeys(row["method"] for row in rows)
        record.draw(
            kind.replace(" ", "_"),
            [curve(m, [row for row in rows if row["method"] == m], "sparsity %", kind) for m in names],
            title=f"ResNet-20, CIFAR-10, pruned at one go: {kind}",
            x_label="weights deleted (sparsity, %)",
            y_label="test accuracy (%)",
        )
    record.save_rows("points", rows)
    table = summarize(rows, ["method", "sparsity %"], ["as pruned", "recalibrated"])
    note = (
        f"Test accuracy in percent, {PICTURES[size]} pictures, {data.provenance}; the dense network, {how}, has "
        f"{dense:.2f}. The spread is that of {EXAMPLES[size]} calibration examples drawn anew.\n\n"
        + "\n".join(_compared(rows))
    )
    return record.finish(table, note, dense=dense, network=how)


def _network(size: str, data: Dataset, record: Record) -> tuple[nn.Module, str]:
    """The trained network, and where it came from."""
    model, path = MODELS["resnet-20"](seed=0), data_root() / TRAINED
    if path.exists():
        model.load_state_dict({**model.state_dict(), **load_file(path)})
        return model.eval(), f"from {TRAINED}"
    recipe = RECIPE.replace(epochs=1) if size == "smoke" else RECIPE
    record.say(f"no {path}: a ResNet-20 is trained first, {recipe.epochs} epochs")
    few = data.take(1000, 100) if size == "smoke" else data
    train(model, few, recipe, seed=0, progress=record.progress)
    return model.eval(), f"trained here for {recipe.epochs} epochs"


def _fits(model: nn.Module, few: Split, draw: int, looks: int, progress: Progress | None) -> dict[str, Fit]:
    """Each method, having looked at the calibration examples as often as it can before a density is asked."""
    weights = {name: weight.detach() for name, weight in prunable_weights(model).items()}

    def magnitude(scope: str) -> Fit:
        method = CriterionMethod(CRITERIA["magnitude"])
        return lambda density: method.prune(model, weights, density, scope, seeds=(draw, draw)).weights

    def pruner(name: str, scope: str, cuts: int = 1) -> Fit:
        method = with_options(pruning_method(name), num_steps=cuts)
        examples = sample_examples(few, len(few), draw)
        return lambda density: (
            method.prune(
                model, weights, density, scope, examples, seeds=(draw, draw), progress=progress
            ).weights
        )

    return {
        "magnitude": magnitude("layer"),
        "magnitude, global": magnitude("global"),
        "OBD": _obd(model, weights, few, draw),
        "Fisher": pruner("fisher", "layer"),
        f"Fisher, global, {looks} looks": pruner("fisher", "global", looks),
        **_by_layers(model, weights, few, draw, progress),
    }


def _obd(model: nn.Module, weights: Params, few: Split, draw: int) -> Fit:
    """Saliencies with the diagonal of the Fisher, which at a minimum is that of the Hessian and never negative."""
    objective = make_objective(model, weights, few.inputs, few.labels)
    scores = Fisher(block_size=1).examiner(objective)(weights, all_kept(weights)).scores()
    return lambda density: apply_masks(weights, SCOPES["layer"].select(scores, density, seed=draw))


def _by_layers(
    model: nn.Module, weights: Params, few: Split, draw: int, progress: Progress | None
) -> dict[str, Fit]:
    """SparseGPT and ExactOBS look once for all densities."""
    state = ExactObs().examiner(model, few.inputs, progress=progress)(weights, all_kept(weights))
    scores = state.scores()
    curves = relative_error_curves(error_curves(scores, state.masks), state.hessians, weights)
    prune_layers = SparseGpt().prune_layers

    def even(density: Density) -> Params:
        return state.prune_to(SCOPES["layer"].select(scores, density, seed=draw)).weights

    return {
        "SparseGPT": lambda density: (
            prune_layers(state.hessians, weights, density, SCOPES["layer"], seed=draw).weights
        ),
        "ExactOBS": even,
        "ExactOBS, one budget": lambda density: even(
            allocate_densities(curves, numel_by_name(weights), density)
        ),
    }


def _points(
    model: nn.Module, method: str, fit: Fit, few: Split, test: Split, size: str, draw: int
) -> Iterator[Row]:
    for sparsity in SPARSITIES[size]:
        pruned = with_weights(model, fit(1 - sparsity / 100))
        bare = evaluate(pruned, test).accuracy
        recalibrate_batchnorm(pruned, few.inputs)
        accuracy = evaluate(pruned, test).accuracy
        yield {
            "method": method,
            "sparsity %": sparsity,
            "draw": draw,
            "as pruned": bare,
            "recalibrated": accuracy,
        }


def _compared(rows: list[Row]) -> Iterator[str]:
    """ExactOBS and SparseGPT against magnitude, recalibrated, paired over the draws."""

    def of(method: str, sparsity: int) -> dict[int, float]:
        chosen = (row for row in rows if (row["method"], row["sparsity %"]) == (method, sparsity))
        return {row["draw"]: row["recalibrated"] for row in chosen}

    for sparsity in sorted({row["sparsity %"] for row in rows} & {60, 80}):
        for method in ("ExactOBS", "ExactOBS, one budget", "SparseGPT"):
            for rival in ("magnitude", "magnitude, global"):
                found = compare_paired(of(rival, sparsity), of(method, sparsity))
                yield f"- {sparsity} %, recalibrated: {found.sentence(rival, method, 'pp')}"
