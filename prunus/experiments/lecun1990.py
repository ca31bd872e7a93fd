"""LeCun, Denker, Solla 1990, "Optimal Brain Damage".

    deletion    Figure 1a: error against parameters left, by OBD, magnitude and at random, without retraining
    prediction  Figure 1b: the increase of the error that OBD foretells against the one that comes
    retraining  Figure 2: training and test error against parameters left, retrained after every deletion

Where we depart: the network is a small convolutional one for MNIST with scaled tanh (3,870 weights; theirs had 2,578
parameters for 16 x 16 zip-code digits), trained by Adam on cross-entropy, which is the error that is drawn; theirs
is the mean squared error. Biases are not deleted. The diagonal is that of 2,000 training examples.
"""

import copy
from pathlib import Path

import torch
from torch import nn

from prunus.experiments.lenet_presets import mnist
from prunus.experiments.results import Record, Result, Row, Say, curve, start_record, summarize
from prunus.masks import Masks
from prunus.models.initialization import glorot_normal
from prunus.models.mlp import ScaledTanh
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.obs import Examine, Obd, make_objective
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.pruning.weights import set_weights, with_weights
from prunus.seeds import derive_seed
from prunus.training import Recipe, evaluate, train
from prunus.types import Dataset, Params, Progress, Split

EXAMPLES = 2000
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of the weights deleted."""
METHODS = ("OBD", "OBD, Levenberg-Marquardt", "magnitude", "random")


def network(seed: int) -> nn.Module:
    """Two convolutions of stride two and a linear layer: 150 + 1,800 + 1,920 weights. [B, 1, 28, 28] -> [B, 10].

    >>> sum(weight.numel() for weight in prunable_weights(network(0)).values())
    3870
    """
    first, second = nn.Conv2d(1, 6, 5, stride=2), nn.Conv2d(6, 12, 5, stride=2)
    layers = first, ScaledTanh(), second, ScaledTanh(), nn.Flatten(), nn.Linear(192, 10)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        glorot_normal(model, seed)
    return model


def deletion(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Figure 1a: deleted by OBD, by magnitude and at random, without retraining."""
    record = start_record("lecun1990.deletion", size, out, replicates, seed, report, progress)
    rows = _one_shot(record, METHODS)
    record.draw(
        "figure1a",
        [
            curve(m, [row for row in rows if row["method"] == m], "weights left", "training error")
            for m in METHODS
        ],
        title="MNIST, 3,870 weights: deletion without retraining",
        x_label="weights left",
        y_label="training error (cross-entropy, nats)",
        invert_x=True,
    )
    return record.finish(
        summarize(rows, ["method", "weights left"], ["training error", "test error %"]),
        f"Training error in nats over {EXAMPLES} examples; each point is one deletion from the trained network.",
    )


def prediction(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Figure 1b: predicted against true increase of the error."""
    record = start_record("lecun1990.prediction", size, out, replicates, seed, report, progress)
    rows = _one_shot(record, METHODS[:2])
    kinds = {f"{method}: {kind}": (method, kind) for method in METHODS[:2] for kind in ("true", "predicted")}
    record.draw(
        "figure1b",
        [
            curve(name, [row for row in rows if row["method"] == method], "deleted %", kind)
            for name, (method, kind) in kinds.items()
        ],
        title="MNIST, 3,870 weights: what OBD foretells",
        x_label="weights deleted (sparsity, %)",
        y_label="increase of the training error (nats)",
    )
    table = summarize(rows, ["method", "deleted %"], ["predicted", "true"])
    return record.finish(table, "The paper: predicted and true agree until about 30 % are deleted.")


def retraining(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Figure 2: deleted a little at a time, with and without retraining after each."""
    record = start_record("lecun1990.retraining", size, out, replicates, seed, report, progress)
    rows: list[Row] = []
    for replicate in record.seeds:
        model, data = _trained(size, replicate, progress)
        for again in (False, True):
            for method in ("OBD", "magnitude"):
                name = f"{method}, {'retrained' if again else 'not retrained'}"
                rows += _iterated(copy.deepcopy(model), data, record, replicate, method, again, name)
        record.say(f"replicate {replicate}: {len(rows)} points")
    names = list(dict.fromkeys(row["curve"] for row in rows))
    for kind in ("training error", "test error"):
        record.draw(
            f"figure2.{kind.split()[0]}",
            [curve(name, [row for row in rows if row["curve"] == name], "deleted %", kind) for name in names],
            title=f"MNIST, 3,870 weights: {kind} as weights go",
            x_label="weights deleted (sparsity, %)",
            y_label=f"{kind} (cross-entropy, nats)",
        )
    table = summarize(rows, ["curve", "deleted %"], ["training error", "test error", "test error %"])
    return record.finish(table, "The paper: with retraining, both errors stay until about 60 % are deleted.")


def _trained(size: str, replicate: int, progress: Progress | None) -> tuple[nn.Module, Dataset]:
    data = mnist(size)
    model = network(derive_seed(replicate, "model"))
    train(model, data, _recipe(size), seed=derive_seed(replicate, "dense"), progress=progress)
    return model, data


def _recipe(size: str) -> Recipe:
    return Recipe({"smoke": 3, "default": 10, "full": 20}[size], 2e-3, 60, lr_schedule="cosine")


def _examine(method: str, model: nn.Module, split: Split, weights: Params, seed: int) -> Examine:
    if method in ("magnitude", "random"):
        return CriterionMethod(CRITERIA[method]).examiner(seed=seed)
    asked = make_objective(model, weights, split.inputs, split.labels)
    return Obd(diagonal="recursion" if method == "OBD" else "levenberg_marquardt").examiner(asked)


def _one_shot(record: Record, methods: tuple[str, ...]) -> list[Row]:
    """Every method, every share, each from the trained network."""
    rows: list[Row] = []
    for replicate in record.seeds:
        model, data = _trained(record.size, replicate, record.progress)
        few, weights = data.train.take(EXAMPLES), prunable_weights(model)
        start = evaluate(model, few).loss
        total = sum(weight.numel() for weight in weights.values())
        for method in methods:
            examine = _examine(method, model, few, weights, derive_seed(replicate, method))
            for number, share in enumerate(SHARES):
                record.report(f"replicate {replicate}, {method}", number, len(SHARES))
                done = prune_in_steps(examine, weights, 1 - share, SCOPES["global"], seed=replicate)
                trial = with_weights(model, done.weights)
                left = sum(int(mask.sum()) for mask in done.masks.values())
                error = evaluate(trial, few).loss
                rows.append(
                    {
                        "method": method,
                        "replicate": replicate,
                        "weights left": left,
                        "deleted %": round(100 * (1 - left / total), 1),
                        "training error": error,
                        "test error %": evaluate(trial, data.test).error,
                        "predicted": done.predicted_increase,
                        "true": error - start,
                    }
                )
        record.say(f"replicate {replicate}: {len(rows)} points")
    return rows


def _iterated(
    model: nn.Module, data: Dataset, record: Record, replicate: int, method: str, again: bool, name: str
) -> list[Row]:
    """Through all shares, the diagonal looked at anew before each; `model` in place."""
    few, masks, rows, size = data.train.take(EXAMPLES), None, [], record.size
    recipe = _recipe(size).replace(epochs={"smoke": 1, "default": 2, "full": 4}[size], learning_rate=5e-4)
    for number, share in enumerate(SHARES):
        record.report(f"replicate {replicate}, {name}", number, len(SHARES))
        weights = prunable_weights(model)
        examine = _examine(method, model, few, weights, replicate)
        done = prune_in_steps(examine, weights, 1 - share, SCOPES["global"], within=masks, seed=replicate)
        masks = done.masks
        set_weights(model, done.weights)
        if again:
            constraint = Masks(model, masks)
            train(model, data, recipe, constraint=constraint, seed=derive_seed(replicate, "again", number))
        seen, unseen = evaluate(model, few), evaluate(model, data.test)
        rows.append(
            {
                "curve": name,
                "replicate": replicate,
                "deleted %": round(100 * share, 1),
                "training error": seen.loss,
                "test error": unseen.loss,
                "test error %": unseen.error,
            }
        )
    return rows
