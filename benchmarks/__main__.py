"""Run the benchmarks named on the command line, or all of them."""

import sys
from importlib import import_module

import torch

NAMES = (
    "selection", "masked_step", "training_step", "density_cost", "evaluation", "supermask", "coding", "kmeans",
    "checkpoint", "demo", "lenets", "tickets", "invariant_checks", "layerwise", "structured", "coverage",
    "slim", "slim_speed", "launchers", "image_folder",
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        sys.exit(f"Unknown benchmark {unknown[0]!r}; available: {', '.join(NAMES)}.")
    for name in names:
        module = import_module(f"benchmarks.{name}")
        print(f"## {name}\n\n{(module.__doc__ or '').splitlines()[0]}\n\n{module.run()}\n", flush=True)


if __name__ == "__main__":
    main()
