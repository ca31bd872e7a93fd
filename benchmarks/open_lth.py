"""A sweep of lottery tickets compared with open_lth (Frankle's code): LeNet-300-100 on MNIST, Adam, batches of 60.

`python -m benchmarks.open_lth CHECKOUT` needs a checkout of github.com/facebookresearch/open_lth (measured at commit
2ce732f), torchvision and Pillow. Both programs train 917 steps per level, evaluate before and after each level only,
and prune 20 % of the remaining weights per round; prunus uses its sparse backend. Each runs in a process of its own
with one thread, in turn. The times are CPU seconds from the start of the process to the end of a level, so that imports
and data are included.

open_lth is older than current versions of Python, numpy and torch. Four things are changed in a copy of it, none of
which changes what it computes: the bases of its class `Model` change their order, `numpy.product` is `numpy.prod`,
`torch.load` accepts pickled objects, and MNIST is read from the data root of prunus.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.timing import spread, table

STEPS = 917
"""Of a level: one epoch of 55,000 images in batches of 60."""
FOR_LEVELS = (0, 2, 10, 24)

SCRIPT = Path(__file__).with_name("open_lth_script.py")

OURS = """
import sys
from benchmarks.open_lth import sweep
sweep(int(sys.argv[1]), sys.argv[2])
"""


def sweep(levels: int, backend: str) -> None:
    """Train the levels with prunus, and print the CPU seconds of this process at the end of each."""
    import torch

    from prunus.runs.directory import RunDirectory
    from prunus.tickets.baseline import BaselineSpec, run_baseline
    from prunus.tickets.procedure import run_ticket
    from prunus.tickets.ticket import TicketSpec
    from prunus.training import RECIPES

    torch.set_num_threads(1)
    recipe = RECIPES["lenet-300-100"].replace(epochs=1)
    baseline = BaselineSpec("lenet-300-100", "mnist", recipe, eval_every=STEPS, backend=backend)
    ticket = replace(TicketSpec(baseline), rounds=levels)
    with tempfile.TemporaryDirectory() as folder:
        directories = [RunDirectory(Path(folder) / name) for name in ("baseline", "ticket")]
        for directory in directories:
            directory.path.mkdir()
        run_baseline(baseline, directories[0], {})
        print("level", 0, time.process_time(), flush=True)
        run_ticket(
            ticket,
            directories[1],
            {"baseline": directories[0]},
            report_round=lambda finished: print(
                "level", finished.row["level"], time.process_time(), flush=True
            ),
        )


def copy_of(checkout: str, folder: Path) -> Path:
    """A copy of the checkout in which the class `Model` has its bases in the order that current torch needs."""
    copy = Path(shutil.copytree(checkout, folder / "open_lth"))
    base = copy / "models" / "base.py"
    text = base.read_text(encoding="utf-8")
    base.write_text(
        text.replace("(abc.ABC, torch.nn.Module)", "(torch.nn.Module, abc.ABC)"), encoding="utf-8"
    )
    return copy


def seconds_of_levels(command: list[str], home: str | None = None) -> list[float]:
    """CPU seconds of the process at the end of each level, which it prints."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, **({"HOME": home} if home else {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("level ")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", help="a folder with a checkout of open_lth")
    parser.add_argument("--repeats", type=int, default=1, help="how often both programs run, in turn")
    parser.add_argument("--levels", type=int, default=24)
    parser.add_argument("--backend", default="sparse", help="the backend of prunus")
    options = parser.parse_args()
    from prunus.data import data_root

    os.environ["PRUNUS_DATA"] = str(data_root())
    peer, ours = [], []
    our_command = [sys.executable, "-c", OURS]
    seconds_of_levels([*our_command, "1", options.backend])  # compiles the kernels, once on a machine
    for _ in range(options.repeats):
        ours.append(seconds_of_levels([*our_command, str(options.levels), options.backend]))
        with tempfile.TemporaryDirectory() as home:  # where open_lth keeps finished levels
            copy = copy_of(options.checkout, Path(home))
            command = [sys.executable, str(SCRIPT), str(copy), str(options.levels), str(STEPS)]
            peer.append(seconds_of_levels(command, home))
    rows: list[list[object]] = []
    for level in [level for level in FOR_LEVELS if level <= options.levels]:
        ratios = [p[level] / o[level] for p, o in zip(peer, ours, strict=True)]
        values = [" / ".join(f"{s[level]:.1f}" for s in runs) for runs in (peer, ours)]
        rows.append([f"0 to {level}", *values, spread(ratios)])
    title = f"LeNet-300-100, {STEPS} steps per level, n = {options.repeats}"
    print(table([title, "open_lth, CPU s", "prunus, CPU s", "ratio (quartiles)"], rows))


if __name__ == "__main__":
    main()
