"""The cost of training against density: steps of the sparse backend beside masked dense ones, and a sweep of tickets.

Masks keep random weights. Steps of both backends are timed in turn, on noise, whole epochs at a time; `auto` is what
the fixed rule chooses. The sweep is `prunus.lottery` on MNIST; the CPU time of its levels includes evaluation every 100
steps, the choice of the backend, masks and invariants, and that of the first sparse level the start-up.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.timing import interleaved, table
from prunus import lottery
from prunus.masks import Masks
from prunus.models import MODELS
from prunus.training import RECIPES, Recipe
from prunus.training.trainer import Trainer
from prunus.types import Split

STEPS = {"lenet-300-100": 50, "lenet-5": 5, "conv-2": 1, "conv-6": 1, "resnet-20": 1}
"""The networks, and how many steps of each are timed at once."""
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.035, 0.01)
ROUNDS, LEVELS = 10, 24


def make_trainer(name: str, density: float, backend: str, split: Split) -> Trainer:
    """A training whose weights are masked at random; the output layer keeps at least a tenth."""
    model, generator = MODELS[name](seed=0), torch.Generator().manual_seed(1)
    masks = {}
    for weight_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            kept = max(density, density / 2 + 0.1) if len(parameter) == 10 and density < 1 else density
            masks[weight_name] = torch.rand(parameter.shape, generator=generator) < kept
    recipe = RECIPES.get(name, Recipe(1, 1e-3, 60)).replace(epochs=10**6)
    trainer = Trainer(model.train(), recipe, Masks(model, masks))
    trainer.constraint.apply()
    trainer.choose_backend(backend, split)
    return trainer


def time_steps(name: str, density: float) -> tuple[list[float], list[float], str]:
    """CPU seconds per masked dense step, seconds per sparse step (empty if there is none), and the choice of auto."""
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    n = 60 * STEPS[name]
    split = Split(torch.randn(n, *shape), torch.randint(0, 10, (n,)))
    auto = make_trainer(name, density, "auto", split).backend
    names = ("dense", "sparse") if auto.name == "sparse" or "cost expected" in auto.reason else ("dense",)
    loops = {b: partial(make_trainer(name, density, b, split).epoch, split, 0) for b in names}
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


def draw(path: Path, costs: dict[float, float], levels: list[float]) -> None:
    """Draw the cost of a round of LeNet-300-100 against its density, dense and sparse, with the ideal line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    densities = [0.8**level for level in range(1, LEVELS + 1)]
    axes.axhline(1, color="gray", label="dense")
    axes.plot(densities, densities, "--", color="gray", label="ideal: cost = density")
    axes.plot(list(costs), list(costs.values()), "o-", label="a step, sparse backend")
    axes.plot(densities, [s / levels[0] for s in levels[1:]], ".-", label="a round of a ticket, backend auto")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="density",
        ylabel="CPU time, dense = 1",
        title="LeNet-300-100, batch 60",
    )
    axes.invert_xaxis()
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def run(figure: Path | None = None) -> str:
    """Print the ratios, and draw the figure if a path is given."""
    rows: list[list[object]] = []
    costs = {}
    for name in STEPS:
        for density in DENSITIES:
            dense, sparse, auto = time_steps(name, density)
            ratios = sorted(s / d for s, d in zip(sparse, dense, strict=False))
            text = "not computed"
            if ratios:
                text = f"{median(ratios):.3f} ({ratios[len(ratios) // 4]:.3f} to {ratios[-len(ratios) // 4]:.3f})"
            if name == "lenet-300-100":
                costs[density] = median(ratios)
            rows.append([name, density, f"{median(dense) * 1000:.2f}", text, auto])
    title = f"{_cpu()}, batch 60, one thread, n = {ROUNDS}"
    steps = table([title, "density", "dense CPU ms", "sparse / dense (quartiles)", "auto"], rows)
    levels = sweep()
    if figure is not None:
        draw(figure, costs, levels)
    total = sum(levels[1:]) / levels[0]
    each = ", ".join(f"{s / levels[0]:.2f}" for s in levels[1:])
    return f"{steps}\n\n{LEVELS} rounds cost {total:.1f} dense trainings: {each}."


def _cpu() -> str:
    """The name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path)
    torch.set_num_threads(1)
    print(run(parser.parse_args().figure))
