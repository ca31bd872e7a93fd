"""Layer-by-layer methods: SparseGPT and H compared with the arithmetic they need, ExactOBS with its targets."""

import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from benchmarks.timing import Timed, interleaved, spread, table
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.sparse_gpt import ColumnPruner, SparseGpt, select_columns
from prunus.pruning.scopes import Layer
from prunus.types import Params

THREADS = 2
BLOCK = SparseGpt().mask_block_size or 1
WIDTH, ROW_BY_ROW = 4096, 512
INPUTS = 16_384
DENSITIES = [step / 20 for step in range(1, 21)]


def run(rounds: int = 7, size: int = WIDTH, small: int = ROW_BY_ROW) -> str:
    with _threads(THREADS):
        tables = [_schedule(rounds, size), _streaming(rounds, size), _database(3, small)]
    return "\n\n".join(tables)


@contextmanager
def _threads(expected: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(expected)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layer(inputs: int, outputs: int, examples: int) -> tuple[nn.Module, Params, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(inputs, outputs, bias=False)
    weight = torch.randn(outputs, inputs, generator=generator)
    model.load_state_dict({"weight": weight})
    return model, {"weight": weight}, torch.randn(examples, inputs, generator=generator)


def _schedule(rounds: int, size: int) -> str:
    """SparseGPT on a layer whose H is known, compared with one inversion and the updates as plain products."""
    model, weights, inputs = _layer(size, size, 2 * size)
    hessian = layer_hessians(model, weights, inputs, batch_size=256)["weight"]
    all_kept = torch.ones(size, size, dtype=torch.bool)
    damped = hessian.damped()[0]
    upper, w, lost = (torch.rand(size, size) for _ in range(3))
    del model, inputs

    def prune() -> None:
        pruner = ColumnPruner("weight", weights["weight"], hessian)
        Layer().select({"weight": pruner.scores()}, 0.5)
        counts = Layer().column_counts(all_kept, 0.5, BLOCK)
        pruner.run(BLOCK, select_columns("weight", Layer(), counts, BLOCK, None, 0))
        assert int(pruner.mask.sum()) == size * size // 2
        assert pruner.w.isfinite().all()

    def inverted() -> None:
        torch.cholesky_inverse(torch.linalg.cholesky(damped))

    def updated() -> None:
        for first in range(0, size, BLOCK):
            end = first + BLOCK
            w[end:].addmm_(upper[first:end, end:].T, lost[first:end], alpha=-1)

    parts = {"Cholesky inverse, float64": inverted, "updates, float32, one product per block": updated}
    timed = interleaved({**parts, "SparseGPT": prune}, rounds, clock=time.perf_counter)
    both = [
        inverse + products for inverse, products in zip(*(timed.seconds[part] for part in parts), strict=True)
    ]
    timed = Timed({"both": both, **timed.seconds})
    rows: list[list[object]] = [
        [name, f"{timed.median(name):.3f}", timed.ratio(name, "both")]
        for name in (*parts, "both", "SparseGPT")
    ]
    header = [f"{size} x {size}, density 0.5, {THREADS} threads, n = {rounds}", "s", "ratio (quartiles)"]
    return table(header, rows)


def _streaming(rounds: int, size: int) -> str:
    """H while inputs pass, compared with one product of all of them; both counted as that product's multiply-adds."""
    model, weights, inputs = _layer(size, 64, INPUTS)
    product, streamed = "one float32 product", "layer_hessians, batches of 256"
    timed = interleaved(
        {
            product: lambda: inputs.T @ inputs,
            streamed: lambda: layer_hessians(model, weights, inputs, batch_size=256),
        },
        rounds,
        clock=time.perf_counter,
    )
    rows: list[list[object]] = []
    for name in timed.seconds:
        seconds = timed.median(name)
        pace = f"{size**2 * INPUTS / seconds / 1e9:.0f}"
        rows.append([name, f"{seconds:.3f}", pace, timed.ratio(product, name)])
    header = [
        f"H of {INPUTS:,} inputs {size} wide, {THREADS} threads, n = {rounds}",
        "s",
        "G multiply-adds/s",
        "pace (quartiles)",
    ]
    return table(header, rows)


def _database(rounds: int, size: int) -> str:
    """In a process of its own, forked from a small one: the peak memory is then its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        seconds, peak = pool.submit(_all_densities, rounds, size).result()
    steps = ["H and scores of all deletions", f"weights at {len(DENSITIES)} densities", "both"]
    rows: list[list[object]] = [
        [step, spread(times), f"{peak / 2**30:.2f}" if step == "both" else ""]
        for step, times in zip(steps, seconds, strict=True)
    ]
    header = [f"ExactOBS, {size} x {size}, {THREADS} threads, n = {rounds}", "s (quartiles)", "GiB at most"]
    return table(header, rows)


def _all_densities(rounds: int, size: int) -> tuple[list[list[float]], int]:
    """Seconds of the scores, of the weights and of both, one per round; and the peak memory in bytes."""
    torch.set_num_threads(THREADS)
    states: list[list[float]] = [[], [], []]
    for turn, width in enumerate([8, *[size] * rounds]):  # the first compiles
        model, weights, inputs = _layer(width, width, 4 * width)
        start = time.perf_counter()
        state = ExactObs().examiner(model, inputs)(
            weights, {"weight": torch.ones(width, width, dtype=torch.bool)}
        )
        scores = state.scores()
        scored = time.perf_counter()
        stored = [state.prune_to(Layer().select(scores, density)).weights["weight"] for density in DENSITIES]
        ended = time.perf_counter()
        assert len(stored) == len(DENSITIES)
        if turn:
            for times, seconds in zip(states, (scored - start, ended - scored, ended - start), strict=True):
                times.append(seconds)
    return states, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
