"""Validation error after every epoch, through pruning and sharing."""

from dataclasses import dataclass
from itertools import pairwise

from prunus.compression.result import Compressed
from prunus.report import formatting
from prunus.report.svg_charts import Mark, Plot, hover_column, line, linear
from prunus.training.evaluate import EpochMetrics

NAMES = {"pruned": "pruning and retraining", "quantized": "training the centroids"}


@dataclass(frozen=True)
class Curve:
    """The plot and what its legend must explain."""

    plot: Plot
    stages: tuple[tuple[str, str], ...]
    """(look, words) of each line."""
    rounds: int
    dense: str
    n: str


def curve(compressed: Compressed) -> Curve | None:
    """The way from the dense network to the shared one; None where nothing was trained."""
    epochs, dense = list(compressed.epochs), compressed.stages[0].validation
    if not epochs:
        return None
    errors = [dense.error, *(100 - epoch.validation_accuracy for _, epoch in epochs)]
    x = linear("epochs after the dense network was trained", [0, len(epochs)], 6, tight=True, whole=True)
    room = (max(errors) - min(errors)) / 10
    y = linear("validation error (%)", [max(0.0, min(errors) - room), max(errors)], 4)
    stages = list(dict.fromkeys(stage for stage, _ in epochs))
    starts = [at for at, (_, epoch) in enumerate(epochs) if epoch.epoch == 1]
    changes = [at for at in range(1, len(epochs)) if epochs[at][0] != epochs[at - 1][0]]
    upright = {at: line(x, y, [(at, y.low), (at, y.high)]) for at in (*starts, *changes)}
    marks = [Mark(path, "change" if at in changes else "round") for at, path in upright.items()]
    marks.append(Mark(line(x, y, [(0, dense.error), (len(epochs), dense.error)]), "reference"))
    for start, end in pairwise([0, *changes, len(epochs)]):
        path = line(x, y, [(at, errors[at]) for at in range(start, end + 1)])
        marks.append(Mark(path, _look(stages, epochs[start][0])))
    marks += [
        Mark(hover_column(x, at, 1), "hit", _says(at, entry)) for at, entry in enumerate(epochs, start=1)
    ]
    return Curve(
        Plot(x, y, tuple(marks), f"Validation error from {errors[0]:.2f} % to {errors[-1]:.2f} %."),
        tuple((_look(stages, stage), NAMES.get(stage, stage)) for stage in stages),
        sum(epochs[at][0] == "pruned" for at in starts),
        formatting.format_error(dense),
        formatting.format_int(dense.n),
    )


def _look(stages: list[str], stage: str) -> str:
    return f"line-{stages.index(stage) % 4}"


def _says(at: int, entry: tuple[str, EpochMetrics]) -> str:
    stage, epoch = entry
    return (
        f"epoch {at}, {NAMES.get(stage, stage)}: error {100 - epoch.validation_accuracy:.2f} %, "
        f"loss {epoch.validation_loss:.4f} (validation)"
    )
