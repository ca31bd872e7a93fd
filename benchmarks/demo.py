"""`prunus demo` over five seeds: ratio of the file, test error before and after, CPU seconds.

Every seed has its own initialization, validation split, order and ties. The test split is used once per network. To
measure a CPU without AVX-512 on one that has it, set ATEN_CPU_CAPABILITY=avx2, MKL_ENABLE_INSTRUCTIONS=AVX2 and
ONEDNN_MAX_CPU_ISA=AVX2.
"""

import json
import resource
import subprocess
import sys
import tempfile
from statistics import mean, stdev

import torch

from benchmarks.timing import table

SEEDS = range(5)


def run() -> str:
    results = [_run_demo(seed) for seed in SEEDS]
    rows: list[list[object]] = []
    for name, digits in (("ratio", 2), ("dense error %", 3), ("error %", 3), ("increase %", 3), ("CPU s", 0)):
        values = [result[name] for result in results]
        rows.append(
            [
                name,
                f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}",
                f"{min(values):.{digits}f} to {max(values):.{digits}f}",
            ]
        )
    capability = torch.backends.cpu.get_cpu_capability()
    return table([f"demo, {capability}, n = {len(results)}", "mean ± std", "min to max"], rows)


def _run_demo(seed: int) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "prunus", "demo", "--out", folder, "--seed", str(seed), "--json"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(output)
    result = {
        "ratio": report["ratio"],
        "dense error %": report["dense_test_error"],
        "error %": report["test_error"],
        "increase %": report["test_error"] - report["dense_test_error"],
        "CPU s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    print(f"seed {seed}: {result}", file=sys.stderr, flush=True)
    return result
