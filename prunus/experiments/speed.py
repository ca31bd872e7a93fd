"""Time of inference: filters removed, weights pruned with dense kernels, weights pruned with sparse kernels."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from torch import nn

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.trained_networks import LENETS, CompressedNetwork, TrainedNetwork, one_run
from prunus.pruning.prune import prune
from prunus.pruning.structured.slim import slim
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.training import evaluate
from prunus.types import Split

FILTERS, DENSE_KERNELS, SPARSE_KERNELS = "filters", "weights, dense kernels", "weights, sparse kernels"


@dataclass(frozen=True)
class Speed(TrainedNetwork):
    """The settings of the measurement of one network."""

    kind: ClassVar[str] = "speed"

    densities: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05)
    """Fractions of the multiply-accumulates that remain."""
    repeats: int = 5
    """Evaluations of each network, of which the median counts."""


def _template(model: str, size: str) -> FunctionRun:
    dense = CompressedNetwork.of_size(model, size).dense
    return FunctionRun.of(times_faster, Speed(dense.recipe, dense.model, dense.data, dense.examples))


def times_faster(settings: Speed, replicate: int, dense: RunDirectory) -> list[Row]:
    """Measure the CPU time of the evaluation of the test split, for the dense network and for pruned ones in turn.

    Args:
        settings: The network, the densities and the number of repeats.
        replicate: Number of the replicate, the seed of ties.
        dense: The finished run of the dense network.

    Returns:
        One row per curve and density: "curve"; "MACs %", the density in percent; "times faster", the CPU time of the
        dense network divided by that of the pruned one; and "microseconds per image". They differ from run to run.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
        SpecError: The sparse backend cannot compute the network.
    """
    network, test = settings.dense.load(dense), settings.dense.dataset().test
    rows: list[Row] = []
    for density in settings.densities:
        slimmed, pruned = copy.deepcopy(network), copy.deepcopy(network)
        slim(slimmed, test.inputs[:1], macs=density).apply()
        prune(pruned, density, seed=replicate)
        candidates = {
            "dense": (network, "dense"),
            FILTERS: (slimmed, "dense"),
            DENSE_KERNELS: (pruned, "dense"),
            SPARSE_KERNELS: (pruned, "sparse"),
        }
        seconds = _cpu_seconds(candidates, test, settings.repeats)
        before = seconds.pop("dense")
        rows += [
            {
                "curve": curve,
                "MACs %": 100 * density,
                "times faster": before / after,
                "microseconds per image": 1e6 * after / len(test),
            }
            for curve, after in seconds.items()
        ]
    return rows


def _cpu_seconds(
    candidates: Mapping[str, tuple[nn.Module, str]], test: Split, repeats: int
) -> dict[str, float]:
    """The median CPU time of an evaluation of each network, in turn, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, (model, backend) in candidates.items():
            start = time.process_time()
            evaluate(model, test, backend=backend)
            seconds[name].append(time.process_time() - start)
    return {name: median(values[1:]) for name, values in seconds.items()}


_SOURCE = "a common assumption, without a published number"
_AT = {"MACs %": (50.0, 25.0, 10.0)}

filters_and_weights = Experiment(
    name="speed.filters_and_weights",
    paper='Wen et al. 2016, "Learning Structured Sparsity in Deep Neural Networks"',
    title="Time of inference after filter pruning and after weight pruning",
    question="Which pruned networks are faster, without and with kernels for sparse weights?",
    template=_template,
    runs=one_run,
    figures=(
        FigureSpec(
            "speed", "times faster", "times faster than the dense network (CPU time)", "Speed of pruned networks",
            x="MACs %", x_label="remaining multiply-accumulates (%)", x_log=True, invert_x=True,
        ),
    ),
    claims=(
        Claim(
            "A network from which filters are removed is faster, without a sparse library", FILTERS, "higher", 1.0,
            "times faster", _SOURCE, at=_AT,
        ),
        Claim(
            "A network whose weights are pruned is as fast as the dense one with dense kernels, within 10 %",
            DENSE_KERNELS, "equal", 1.0, "times faster", _SOURCE, at=_AT, margin=0.1,
        ),
        Claim(
            "A network whose weights are pruned is faster with kernels for sparse weights", SPARSE_KERNELS, "higher",
            1.0, "times faster", _SOURCE, at=_AT,
        ),
    ),
    differences=(
        "CPU time of one thread for the evaluation of the test split in batches, the networks in turn; the sparse "
        "kernels are those of prunus.training.sparse. Weights are pruned to the same density in every layer.",
    ),
    networks=LENETS,
    metrics=("times faster", "microseconds per image"),
    points=("MACs %",),
    note="Times depend on the machine; the ratios are measured in the same run, and include the start of "
    "each evaluation. Networks are not retrained: the time does not depend on the values.",
)  # fmt: skip
