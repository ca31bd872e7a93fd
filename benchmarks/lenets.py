"""Deep Compression of both LeNets on MNIST: file on disk, error, stages; five seeds, two processes.

Every seed has its own initialization, order, split and ties. The test split is evaluated once a network.
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from benchmarks.timing import table

SEEDS = range(5)


def compress_once(job: tuple[str, int]) -> dict[str, float]:
    import torch

    import prunus
    from prunus.seeds import derive_seed

    name, seed = job
    torch.set_num_threads(1)
    recipe = prunus.COMPRESSION_RECIPES[name]
    data = prunus.load_data("mnist", seed=seed)
    model = prunus.models.MODELS[name](seed=derive_seed(seed, "model"))
    prunus.train(model, data, recipe.dense, seed=derive_seed(seed, "dense"))
    compressed = prunus.compress(model, data=data, preset=recipe, seed=seed, backend="dense")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prunus"
        size = prunus.save(compressed, path)
        loaded = prunus.load(path)
    sizes = {stage.name: stage.bytes for stage in compressed.stages}
    result = {
        "bytes": size,
        "ratio": sizes["dense"] / size,
        "density": compressed.density,
        "dense error": prunus.evaluate(model, data.test).error,
        "error": prunus.evaluate(loaded, data.test).error,
        "pruning": 1 / compressed.density,
        "P+Q": sizes["dense"] / sizes["quantized"],
        "P+Q+H": sizes["dense"] / sizes["huffman"],
        "Huffman saves %": 100 * (1 - sizes["huffman"] / sizes["quantized"]),
        "range saves over Huffman %": 100 * (1 - sizes["range"] / sizes["huffman"]),
    }
    print(name, seed, {key: round(value, 4) for key, value in result.items()}, file=sys.stderr, flush=True)
    return result


ROWS = {
    "bytes": ("file, bytes", ",.0f"),
    "ratio": ("dense bytes / file, ×", ".2f"),
    "density": ("weights kept, %", ".2f"),
    "dense error": ("test error, dense, %", ".3f"),
    "error": ("test error, compressed, %", ".3f"),
    "pruning": ("weights / kept weights, ×", ".2f"),
    "P+Q": ("P+Q, without metadata, ×", ".2f"),
    "P+Q+H": ("P+Q+H, without metadata, ×", ".2f"),
    "Huffman saves %": ("Huffman codes save, % of P+Q", ".2f"),
    "range saves over Huffman %": ("the range coder saves, % of P+Q+H", ".2f"),
}
"""Names with units, and formats."""


def _row(key: str, values: list[float]) -> list[object]:
    name, form = ROWS[key]
    if key == "density":
        values = [100 * value for value in values]
    return [
        name, f"{mean(values):{form}} ± {stdev(values):{form}}", f"{min(values):{form}} to {max(values):{form}}"
    ]  # fmt: skip


def run(names: tuple[str, ...] = ("lenet-300-100", "lenet-5")) -> str:
    jobs = [(name, seed) for name in names for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(compress_once, jobs, chunksize=1)
    parts = []
    for name in names:
        measured = [result for job, result in zip(jobs, results, strict=True) if job[0] == name]
        rows = [_row(key, [result[key] for result in measured]) for key in measured[0]]
        parts.append(table([f"{name}, n = {len(measured)}", "mean ± std", "min to max"], rows))
    return "\n\n".join(parts)
