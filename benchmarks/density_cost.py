"""The cost of training against density: sparse steps compared with masked dense ones, and a sweep of tickets.

Masks keep random weights. Steps of both backends are timed in turn, on noise, whole epochs at a time; `auto` is what
the fixed rule chooses. The sweep is `prunus.lottery` on MNIST; the CPU time of its levels includes evaluation every 100
steps, the choice of the backend, masks and invariants, and that of the first sparse level the start-up.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.timing import interleaved, table
from prunus import lottery
from prunus.masks import Masks
from prunus.models import MODELS
from prunus.runs.environment import cpu_name
from prunus.training import RECIPES, Recipe
from prunus.training.sparse.epoch import train_sparse_epoch
from prunus.training.trainer import Trainer
from prunus.types import Split

STEPS = {"lenet-300-100": 50, "lenet-5": 5, "conv-2": 1, "conv-6": 1, "resnet-20": 1}
"""The networks, and how many steps of each are timed at once."""
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.035, 0.01)
ROUNDS, LEVELS = 10, 24
VALUES = Path(__file__).with_suffix(".json")
"""The values of the figure in docs/sparse-training.md, which is drawn from them."""


def make_trainer(name: str, density: float, backend: str, split: Split) -> Trainer:
    """A training whose weights are masked at random; the output layer keeps at least a tenth."""
    model, generator = MODELS[name](seed=0), torch.Generator().manual_seed(1)
    masks = {}
    for weight_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            of_layer = max(density, density / 2 + 0.1) if len(parameter) == 10 and density < 1 else density
            masks[weight_name] = torch.rand(parameter.shape, generator=generator) < of_layer
    recipe = RECIPES.get(name, Recipe(1, 1e-3, 60)).replace(epochs=10**6)
    trainer = Trainer(model.train(), recipe, Masks(model, masks))
    trainer.constraint.apply()
    trainer.choose_backend(backend, split)
    return trainer


def epoch_of(trainer: Trainer) -> Callable[..., float]:
    """What trains one epoch with the backend of a training."""
    return trainer.epoch if trainer.network is None else partial(train_sparse_epoch, trainer, trainer.network)


def time_steps(name: str, density: float) -> tuple[list[float], list[float], str]:
    """CPU seconds per masked dense step, seconds per sparse step (empty if there is none), and the choice of auto."""
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    n = 60 * STEPS[name]
    split = Split(torch.randn(n, *shape), torch.randint(0, 10, (n,)))
    auto = make_trainer(name, density, "auto", split).backend
    names = ("dense", "sparse") if auto.name == "sparse" or "cost expected" in auto.reason else ("dense",)
    loops = {b: partial(epoch_of(make_trainer(name, density, b, split)), split, 0) for b in names}
    seconds = interleaved(loops, rounds=ROUNDS).seconds
    per_step = {b: [s / STEPS[name] for s in values] for b, values in seconds.items()}
    return per_step["dense"], per_step.get("sparse", []), auto.name


def sweep(epochs: int = 3) -> list[float]:
    """CPU seconds of the dense training and of each of the rounds after it."""
    seconds, started = [], time.process_time()

    def record(level: object) -> None:
        nonlocal started
        seconds.append(time.process_time() - started)
        started = time.process_time()

    recipe = RECIPES["lenet-300-100"].replace(epochs=epochs)
    lottery("lenet-300-100", "mnist", rounds=LEVELS, recipe=recipe, report=record)
    return seconds


def measure(path: Path, sweeps: int = 3) -> None:
    """Measure LeNet-300-100 and write the values of the figure: ratios of steps and of rounds to dense ones."""
    steps = {}
    for density in DENSITIES:
        dense, sparse, _ = time_steps("lenet-300-100", density)
        steps[str(density)] = [round(s / d, 4) for s, d in zip(sparse, dense, strict=True)]
    rounds = [[round(s / levels[0], 4) for s in levels[1:]] for levels in (sweep() for _ in range(sweeps))]
    values = {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__, "steps": steps, "rounds": rounds}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def draw(path: Path, values: dict[str, Any]) -> None:
    """Draw the cost of a step and of a round of LeNet-300-100 against its density, with the ideal line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    steps = {float(density): ratios for density, ratios in values["steps"].items()}
    rounds = {0.8**level: ratios for level, ratios in enumerate(zip(*values["rounds"], strict=True), start=1)}
    axes.axhline(1, color="gray", label="dense")
    axes.plot(list(rounds), list(rounds), "--", color="gray", label="ideal: cost = density")
    for costs, what in ((steps, "a step, sparse backend"), (rounds, "a round of a ticket, backend auto")):
        n = len(next(iter(costs.values())))
        centers = [median(ratios) for ratios in costs.values()]
        (line,) = axes.plot(list(costs), centers, ".-", label=f"{what} (median, n = {n}; band: min to max)")
        lowest, highest = ([end(ratios) for ratios in costs.values()] for end in (min, max))
        axes.fill_between(list(costs), lowest, highest, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="density",
        ylabel="CPU time, dense = 1",
        title=f"LeNet-300-100, batch 60, one thread, {values['cpu']}",
    )
    axes.invert_xaxis()
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def run() -> str:
    """Print the ratios of the steps of all networks, and those of the rounds of one sweep."""
    rows: list[list[object]] = []
    for name in STEPS:
        for density in DENSITIES:
            dense, sparse, auto = time_steps(name, density)
            ratios = sorted(s / d for s, d in zip(sparse, dense, strict=False))
            text = "not computed"
            if ratios:
                text = f"{median(ratios):.3f} ({ratios[len(ratios) // 4]:.3f} to {ratios[-len(ratios) // 4]:.3f})"
            rows.append([name, density, f"{median(dense) * 1000:.2f}", text, auto])
    title = f"{cpu_name()}, batch 60, one thread, n = {ROUNDS}"
    steps = table([title, "density", "dense CPU ms", "sparse / dense (quartiles)", "auto"], rows)
    levels = sweep()
    total = sum(levels[1:]) / levels[0]
    each = ", ".join(f"{s / levels[0]:.2f}" for s in levels[1:])
    return f"{steps}\n\n{LEVELS} rounds cost {total:.1f} dense trainings: {each}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the values of the figure again")
    parser.add_argument("--figure", type=Path, help="draw the figure from the values, without the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        measure(VALUES)
    if options.figure:
        draw(options.figure, json.loads(VALUES.read_text(encoding="utf-8")))
    if not (options.measure or options.figure):
        print(run())
