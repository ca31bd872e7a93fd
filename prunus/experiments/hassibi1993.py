"""Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon".

    xor     which of the nine weights of a 2-2-1 network is deleted first, and what becomes of XOR
    monks   the table of section 5: weights left, training and test accuracy on the three MONK's problems

Where we depart: the training examples of MONK's problems are drawn from the rules, not the original list
(`prunus.data.monks`), so that the third column of numbers is not the paper's. Networks are trained to a minimum by
Levenberg-Marquardt from several starts, with weight decay, where the paper starts from Thrun et al.'s networks.
Deleting goes on while the training accuracy is not below the published one; the test examples have no say.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from prunus.data import load_data
from prunus.experiments.levenberg_marquardt import minimize, minimize_batch, outputs
from prunus.experiments.results import Result, Row, Say, curve, start_record, summarize
from prunus.masks import all_kept
from prunus.models.mlp import mlp
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.obs import (
    Examine,
    FullObs,
    Obd,
    Objective,
    flatten_weights,
    make_objective,
    unflatten_weights,
)
from prunus.seeds import derive_seed, make_generator
from prunus.types import Dataset, Params, Progress, Split

HIGH = 0.9
"""Targets stand inside the range of an output unit, so that a minimum is at finite weights."""

SURGEONS: dict[str, Callable[[Objective, float], Examine]] = {
    "OBS": lambda asked, damping: FullObs(damping=damping).examiner(asked),
    "OBD": lambda asked, damping: Obd(diagonal="recursion").examiner(asked),
    "magnitude": lambda asked, damping: CriterionMethod(CRITERIA["magnitude"]).examiner(),
}

XOR_DECAY, XOR_DAMPING = 1e-8, 1e-4

PUBLISHED = {1: (58, 14, 100.0, 100.0), 2: (39, 15, 100.0, 100.0), 3: (39, 4, 93.4, 97.2)}
"""Weights before and after, training and test accuracy."""
HIDDEN = {1: 3, 2: 2, 3: 2}
DECAY = {1: 1e-4, 2: 1e-4, 3: 1e-2}
"""Of the weights, and OBS's damping: what is inverted is the Hessian of what was trained. The third, so that the dense
network learns the noise as little as the published one did."""


def xor(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """The first weight to go from a trained XOR network: 100 networks, OBS, OBD and magnitude."""
    record = start_record("hassibi1993.xor", size, out, replicates or 1, seed, report, progress)
    networks = {"smoke": 10}.get(size, 100)
    rows: list[Row] = []
    for replicate in record.seeds:
        rows += _first_deletions(networks, replicate)
        record.say(f"replicate {replicate}: {networks} trained networks")
    record.save_rows("networks", rows)
    values = ["cheapest %", "solves at once %", "solves retrained %", "E at once", "E retrained"]
    table = summarize(rows, ["method"], values)
    note = (
        "Of networks that solve XOR. Cheapest: without the weight, and with all others at a new minimum, the error "
        "is within 1 % of the lowest that any one deletion allows. At once: OBS with its update, the others with "
        "the weight at zero. Retrained: from there to a minimum. Solved: all four patterns on the right side of 0.5."
    )
    return record.finish(table, note)


def _first_deletions(networks: int, replicate: int) -> list[Row]:
    asked = _xor()
    starts = torch.randn(4 * networks, 9, generator=make_generator(replicate, "xor"), dtype=torch.float64)
    trained, _ = minimize_batch(asked, starts, decay=XOR_DECAY)
    trained = trained[_solves(asked, trained)][:networks]
    costs, rows = _costs(asked, trained), []
    for method, surgeon in SURGEONS.items():
        here = [
            surgeon(asked, XOR_DAMPING)(unflatten_weights(w, asked.weights), all_kept(asked.weights))
            for w in trained
        ]
        chosen = torch.tensor([int(flatten_weights(one.scores()).argmin()) for one in here])
        left = torch.arange(9) != chosen[:, None]
        after = [
            one.prune_to(unflatten_weights(row, asked.weights)) for one, row in zip(here, left, strict=True)
        ]
        at_once = torch.stack([flatten_weights(one.weights) for one in after])
        again, errors = minimize_batch(asked, at_once, left, decay=XOR_DECAY)
        solves = _solves(asked, at_once), _solves(asked, again)
        for number, place in enumerate(chosen):
            cheapest = costs[number, place] <= 1.01 * costs[number].min() + 1e-6
            rows.append(
                {
                    "replicate": replicate,
                    "network": number,
                    "method": method,
                    "weight": int(place),
                    "cheapest %": 100.0 * bool(cheapest),
                    "solves at once %": 100.0 * bool(solves[0][number]),
                    "solves retrained %": 100.0 * bool(solves[1][number]),
                    "E at once": float(asked.error(unflatten_weights(at_once[number], asked.weights))),
                    "E retrained": float(errors[number]),
                }
            )
    return rows


def _xor() -> Objective:
    """2-2-1 with biases and logistic units, as a function of all nine weights."""
    model = mlp(2, 2, 1, hidden="sigmoid", output="sigmoid").double()
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    targets = torch.tensor([[1 - HIGH], [HIGH], [HIGH], [1 - HIGH]], dtype=torch.float64)
    return make_objective(model, dict(model.named_parameters()), inputs, targets, loss="squared_error")


def _solves(asked: Objective, w: Tensor) -> Tensor:
    """Which rows of `w` have all four patterns on the right side, [R]."""
    return ((outputs(asked, w) > 0.5) == (asked.targets > 0.5)).flatten(1).all(1)


def _costs(asked: Objective, trained: Tensor) -> Tensor:
    """The error at a minimum without each weight, [networks, 9]: the lower from zeroing it and from OBS's update."""
    left = ~torch.eye(9, dtype=torch.bool)
    found = []
    for w in trained:
        surgeon = FullObs(damping=XOR_DAMPING).examiner(asked)(
            unflatten_weights(w, asked.weights), all_kept(asked.weights)
        )
        moved = torch.stack(
            [flatten_weights(surgeon.prune_to(unflatten_weights(row, asked.weights)).weights) for row in left]
        )
        found.append(torch.cat([w * left, moved]))
    repeated = left.repeat(2 * len(trained), 1)
    errors = minimize_batch(asked, torch.cat(found), repeated, decay=XOR_DECAY)[1]
    return errors.reshape(-1, 2, 9).amin(1)


def monks(
    size: str,
    out: Path,
    *,
    replicates: int | None = None,
    seed: int = 0,
    report: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """The MONK's problems: how few weights are left, and what they still know, beside the published numbers."""
    record = start_record("hassibi1993.monks", size, out, replicates, seed, report, progress)
    rows: list[Row] = []
    points: list[Row] = []
    for replicate in record.seeds:
        for problem in (1,) if size == "smoke" else PUBLISHED:
            asked, test, weights = _network(problem, replicate, {"smoke": 3}.get(size, 10))
            for method, retrains in (("OBS", True), ("OBS", False), ("OBD", True), ("magnitude", True)):
                name = method if retrains else f"{method}, no retraining"
                record.report(f"replicate {replicate}, MONK {problem}, {name}", 0, 0)
                path = _deleted(asked, test, weights, SURGEONS[method], retrains, problem)
                points += [{"problem": problem, "method": name, "replicate": replicate, **p} for p in path]
                rows.append(_row(problem, name, replicate, path))
            record.say(f"replicate {replicate}: MONK {problem}, {rows[-4]['weights']:.0f} weights by OBS")
    record.save_rows("paths", points)
    for problem in sorted({point["problem"] for point in points}):
        mine = [point for point in points if point["problem"] == problem]
        names = list(dict.fromkeys(point["method"] for point in mine))
        record.draw(
            f"monks{problem}",
            [curve(n, [p for p in mine if p["method"] == n], "weights", "training accuracy") for n in names],
            title=f"MONK's problem {problem}: weights deleted one at a time",
            x_label="weights left",
            y_label="training accuracy (%)",
            invert_x=True,
        )
    table = summarize(
        rows, ["problem", "method"], ["dense", "dense test", "weights", "training accuracy", "test accuracy"]
    )
    for row in table:
        named = ("paper dense", "paper OBS", "paper training", "paper test")
        row.update(zip(named, PUBLISHED[row["problem"]], strict=True))
    note = (
        "Weights and biases left in the smallest network whose training accuracy is not below the paper's. Training "
        "examples are drawn from the rules, not the original list; the test examples are all 432."
    )
    return record.finish(table, note)


def _network(problem: int, replicate: int, starts: int) -> tuple[Objective, Split, Params]:
    """The objective on the training examples, the test split, and weights at the best of some minima."""
    data: Dataset = load_data(f"monks-{problem}", seed=derive_seed(replicate, "monks"))
    hidden = HIDDEN[problem]
    model = mlp(17, hidden, 1, output="tanh").double()
    targets = HIGH * (2.0 * data.train.labels.unsqueeze(1) - 1)
    parameters: Params = dict(model.named_parameters())
    asked = make_objective(model, parameters, data.train.inputs, targets.double(), loss="squared_error")
    draw = make_generator(replicate, "monks starts", problem)
    drawn = 0.7 * torch.randn(starts, PUBLISHED[problem][0], generator=draw, dtype=torch.float64)
    found, errors = minimize_batch(asked, drawn, decay=DECAY[problem])
    best = (errors + DECAY[problem] / 2 * found.square().sum(1)).argmin()
    return asked, data.test, unflatten_weights(found[best], asked.weights)


def _deleted(
    asked: Objective,
    test: Split,
    weights: Params,
    surgeon: Callable[[Objective, float], Examine],
    retrains: bool,
    problem: int,
) -> list[Row]:
    """One weight at a time, the curvature looked at anew before each, until five in a row know too little."""
    masks, decay = all_kept(asked.weights), DECAY[problem]
    total = len(flatten_weights(masks))
    path = [_point(asked, test, weights, total)]
    for left in range(total - 1, 0, -1):
        here = surgeon(asked, decay)(weights, masks)
        # No scope, which would warn of a layer of biases without one: a bias blocks no signal.
        scores = flatten_weights(here.scores()).masked_fill(~flatten_weights(masks), torch.inf)
        masks = unflatten_weights(flatten_weights(masks) & (torch.arange(total) != scores.argmin()), weights)
        weights = here.prune_to(masks).weights
        if retrains:
            weights = minimize(asked, weights, masks, decay=decay, steps=30)
        path.append(_point(asked, test, weights, left))
        if max(point["training accuracy"] for point in path[-5:]) < PUBLISHED[problem][2]:
            break
    return path


@torch.no_grad()
def _point(asked: Objective, test: Split, weights: Params, left: int) -> Row:
    def accuracy(inputs: Tensor, positive: Tensor) -> float:
        right = (asked.outputs(weights, inputs).squeeze(1) > 0) == positive
        return 100 * float(right.double().mean())

    return {
        "weights": left,
        "training accuracy": accuracy(asked.inputs, asked.targets.squeeze(1) > 0),
        "test accuracy": accuracy(test.inputs.double(), test.labels == 1),
        "E": float(asked.error(weights)),
    }


def _row(problem: int, method: str, replicate: int, path: list[Row]) -> Row:
    """The smallest network whose training accuracy is the published one, or the dense one where none is."""
    good = [point for point in path if round(point["training accuracy"], 1) >= PUBLISHED[problem][2]] or path[
        :1
    ]
    smallest = min(good, key=lambda point: point["weights"])
    kept = {"dense": path[0]["weights"], "dense test": path[0]["test accuracy"]}
    return {"problem": problem, "method": method, "replicate": replicate, **kept, **smallest}
