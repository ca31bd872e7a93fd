"""Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks".

    tradeoff   Figure 5: accuracy lost against parameters pruned away, five curves
    tables     Tables 2 and 3: LeNet-300-100 and LeNet-5, layer by layer

Where we depart: Figure 5 is of AlexNet on ImageNet with top-5 accuracy; here it is LeNet-300-100 on MNIST with
top-1. The paper states neither epochs nor optimizer for the LeNets: Adam, as in `prunus.training.recipe`.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.compression.presets import COMPRESSION_RECIPES
from prunus.experiments.lenet_presets import dense, mnist, pruned, scale_recipe
from prunus.experiments.results import Result, Row, Say, curve, start_record, summarize
from prunus.models import MODELS
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.scopes import SCOPES
from prunus.seeds import derive_seed
from prunus.training import Recipe, evaluate, train
from prunus.types import Dataset, MaskDict, Progress

CURVES = ("L2, no retraining", "L1, no retraining", "L1, retraining", "L2, retraining", "L2, iterative")
PENALTY = {"l1": 1e-5, "l2": 1e-4}

PUBLISHED = {
    "lenet-300-100": {"fc1": (38, 8, 8), "fc2": (65, 9, 4), "fc3": (100, 26, 17), "total": (46, 8, 8)},
    "lenet-5": {
        "conv1": (82, 66, 66),
        "conv2": (72, 12, 10),
        "fc1": (55, 8, 6),
        "fc2": (100, 19, 10),
        "total": (77, 8, 16),
    },
}
"""Tables 2 and 3: activations that are not zero, weights kept, FLOP kept, in percent."""


def tradeoff(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Figure 5: L1 and L2, with and without retraining, and L2 pruned iteratively from its 80 % point on."""
    record = start_record("han2015.tradeoff", size, out, replicates, seed, report, progress)
    epochs, retrain = {"smoke": (1, 1), "default": (10, 5), "full": (55, 15)}[size]
    shares = {"smoke": [0.5, 0.9, 0.95], "default": [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98]}.get(
        size, [0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99]
    )
    data = mnist(size)
    rows: list[Row] = []
    for replicate in record.seeds:
        for penalty in ("l1", "l2"):
            model = MODELS["lenet-300-100"](seed=derive_seed(replicate, "model"))
            recipe = Recipe(epochs, 1.2e-3, 60, penalty=penalty, penalty_strength=PENALTY[penalty])
            train(model, data, recipe, seed=derive_seed(replicate, "dense"), progress=progress)
            before = evaluate(model, data.test).accuracy
            again = recipe.replace(epochs=retrain, learning_rate=recipe.learning_rate / 10)
            rows += _one_shot(model, data, penalty.upper(), shares, again, before, replicate, progress)
            if penalty == "l2":
                rows += _iterative(model, data, shares, again, before, replicate, progress)
        record.say(f"replicate {replicate}: {sum(row['replicate'] == replicate for row in rows)} points")
    curves = [curve(c, [r for r in rows if r["curve"] == c], "pruned %", "accuracy lost") for c in CURVES]
    record.draw(
        "figure5",
        curves,
        title="LeNet-300-100 on MNIST: what pruning costs",
        x_label="parameters pruned away (sparsity, %)",
        y_label="test accuracy lost (percentage points)",
    )
    table = summarize(rows, ["curve", "pruned %"], ["accuracy lost"])
    return record.finish(
        table, "Accuracy lost in percentage points against the same replicate's dense network."
    )


def _one_shot(
    model: nn.Module,
    data: Dataset,
    name: str,
    shares: list[float],
    again: Recipe,
    before: float,
    seed: int,
    progress: Progress | None,
) -> list[Row]:
    rows = []
    for share in shares:
        for label, recipe in (("no retraining", again.replace(epochs=0)), ("retraining", again)):
            trial = copy.deepcopy(model)
            _prune(trial, data, [1 - share], recipe, seed, progress)
            lost = before - evaluate(trial, data.test).accuracy
            rows.append(_row(f"{name}, {label}", share, lost, seed))
    return rows


def _iterative(
    model: nn.Module,
    data: Dataset,
    shares: list[float],
    again: Recipe,
    before: float,
    seed: int,
    progress: Progress | None,
) -> list[Row]:
    """Pruned from the 80 % point on, through every further share, retrained at each."""
    first = min(shares, key=lambda share: abs(share - 0.8))
    trial, rows = copy.deepcopy(model), []
    masks = _prune(trial, data, [1 - first], again, seed, progress)
    rows.append(_row(CURVES[-1], first, before - evaluate(trial, data.test).accuracy, seed))
    for share in [share for share in shares if share > first]:
        masks = _prune(trial, data, [1 - share], again, seed, progress, masks)
        rows.append(_row(CURVES[-1], share, before - evaluate(trial, data.test).accuracy, seed))
    return rows


def _prune(
    model: nn.Module,
    data: Dataset,
    densities: list[float],
    recipe: Recipe,
    seed: int,
    progress: Progress | None,
    within: MaskDict | None = None,
) -> MaskDict:
    """Han's thresholds: one quality for all layers, times the layer's standard deviation."""
    rounds = prune_and_retrain(
        model,
        prunable_weights(model),
        data,
        densities,
        [recipe] * len(densities),
        criterion=CRITERIA["scaled_magnitude"],
        scope=SCOPES["global"],
        seed=seed,
        within=within,
        progress=progress,
    )
    return rounds[-1].masks


def _row(name: str, share: float, lost: float, seed: int) -> Row:
    return {"curve": name, "pruned %": round(100 * share, 2), "accuracy lost": lost, "replicate": seed}


def tables(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Tables 2 and 3: weights, FLOP, activations and what pruning leaves, for both LeNets, beside the paper's."""
    record = start_record("han2015.tables", size, out, replicates, seed, report, progress)
    data = mnist(size)
    rows: list[Row] = []
    for replicate in record.seeds:
        for name in PUBLISHED:
            rows += _table(name, data, size, replicate, progress)
            record.say(f"replicate {replicate}: {name}")
    values = ["weights", "FLOP", "act %", "weights kept %", "FLOP kept %", "test error"]
    table = summarize(rows, ["network", "layer"], values)
    for row in table:
        published = PUBLISHED[row["network"]].get(row["layer"], ("", "", ""))
        row.update(zip(("paper act %", "paper w %", "paper FLOP %"), published, strict=True))
    note = "FLOP kept % = weights kept % x share of non-zero inputs; test error is the pruned network's."
    return record.finish(table, note)


def _table(name: str, data: Dataset, size: str, replicate: int, progress: Progress | None) -> list[Row]:
    recipe = scale_recipe(COMPRESSION_RECIPES[f"han2016-{name}"], size)
    model, masks = pruned(dense(name, data, recipe, replicate, progress), data, recipe, replicate, progress)
    error = evaluate(model, data.test).error
    return [
        {"network": name, "replicate": replicate, "test error": error, **row}
        for row in layer_costs(model, masks, data.validation.inputs[:1000])
    ]


@torch.no_grad()
def layer_costs(model: nn.Module, masks: MaskDict, inputs: Tensor) -> list[Row]:
    """Weights, FLOP (two a multiply-accumulate) and what is left of them, a row a layer and one in total.

    "act %" is the share of a layer's outputs that are not zero where the next layer reads them.
    """
    seen: dict[str, tuple[float, int]] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            positions = output[0].numel() // output.shape[1]
            seen[name] = float((arguments[0] != 0).float().mean()), positions

        return model.get_submodule(name).register_forward_hook(hook)

    names = [name.removesuffix(".weight") for name in masks]
    hooks = [watch(name) for name in names]
    model.eval()(inputs)
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    rows: list[Row] = []
    for place, name in enumerate(names):
        mask, (active_inputs, positions) = masks[f"{name}.weight"], seen[name]
        kept = float(mask.float().mean())
        flop = 2 * mask.numel() * positions
        after = 100 * seen[names[place + 1]][0] if place + 1 < len(names) else 100.0
        # The picture itself counts as dense, as in the paper.
        left = kept * (active_inputs if place else 1.0)
        rows.append(_layer(name, mask.numel(), flop, after, 100 * kept, 100 * left))
    total, flops = sum(r["weights"] for r in rows), sum(r["FLOP"] for r in rows)
    shares = [
        sum(r[key] * r[of] for r in rows) / whole
        for key, of, whole in (("weights kept %", "weights", total), ("FLOP kept %", "FLOP", flops))
    ]
    outputs = [r["FLOP"] / 2 / masks[f"{r['layer']}.weight"][0].numel() for r in rows]
    active = sum(r["act %"] * n for r, n in zip(rows, outputs, strict=True)) / sum(outputs)
    return [*rows, _layer("total", total, flops, active, *shares)]


def _layer(name: str, weights: int, flop: int, active: float, kept: float, left: float) -> Row:
    return {
        "layer": name,
        "weights": weights,
        "FLOP": flop,
        "act %": active,
        "weights kept %": kept,
        "FLOP kept %": left,
    }
