"""`prunus demo` from the command to the page, wall-clock, as a user runs it."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import table


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "prunus", "demo", "--out", folder], check=True, capture_output=True
        )
        seconds = time.perf_counter() - start
        path = str(Path(folder) / "lenet-300-100.prunus")
        inspect = [sys.executable, "-m", "prunus", "inspect", path, "--json"]
        ratio = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)["ratio"]
    return table(
        ["prunus demo", "wall-clock s", "ratio of its file"], [["n = 1", f"{seconds:.0f}", f"{ratio:.1f}"]]
    )
