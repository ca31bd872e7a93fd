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


def run(names: tuple[str, ...] = ("lenet-300-100", "lenet-5")) -> str:
    jobs = [(name, seed) for name in names for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(compress_once, jobs, chunksize=1)
    parts = []
    for name in names:
        measured = [result for job, result in zip(jobs, results, strict=True) if job[0] == name]
        rows = [
            [key, f"{mean(r[key] for r in measured):.4g} ± {stdev(r[key] for r in measured):.2g}",
             f"{min(r[key] for r in measured):.4g} to {max(r[key] for r in measured):.4g}"]
            for key in measured[0]
        ]  # fmt: skip
        parts.append(table([f"{name}, n = {len(measured)}", "mean ± std", "min to max"], rows))
    return "\n\n".join(parts)
