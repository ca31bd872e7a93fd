"""Experiments: one function a figure or table of a paper, by name.

Each is `(size, out, *, replicates=None, seed=0, report=None, progress=None) -> Result` with size "smoke", "default"
or "full"; it writes its numbers as JSON and markdown, and its picture as PNG, SVG and CSV, into the folder `out`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunus.experiments import (
    frankle2019,
    frankle2020,
    han2015,
    han2016,
    hassibi1993,
    lecun1990,
    one_shot,
    renda2020,
    zhou2019,
)
from prunus.experiments.results import Result
from prunus.experiments.stored_experiment import StoredExperiment

Experiment = Callable[..., Result]


TICKETS = (frankle2019, zhou2019, frankle2020, renda2020)

STORED_EXPERIMENTS: dict[str, StoredExperiment] = {
    part.name: part for paper in TICKETS for part in paper.PARTS
}
"""The experiments whose runs live in a store."""

PARTS: dict[str, Experiment] = {
    "lecun1990.deletion": lecun1990.deletion,
    "lecun1990.prediction": lecun1990.prediction,
    "lecun1990.retraining": lecun1990.retraining,
    "hassibi1993.xor": hassibi1993.xor,
    "hassibi1993.monks": hassibi1993.monks,
    "one_shot": one_shot.one_shot,
    "han2015.tradeoff": han2015.tradeoff,
    "han2015.tables": han2015.tables,
    "han2016.tables": han2016.tables,
    "han2016.starts": han2016.starts,
    "han2016.sizes": han2016.sizes,
    **STORED_EXPERIMENTS,
}


def parts_of(paper: str) -> list[str]:
    """The names of the experiments of a paper, in the paper's order; of an experiment, itself."""
    return [name for name in PARTS if name == paper or name.partition(".")[0] == paper]


def _together(paper: str) -> Experiment:
    """All figures and tables of a paper, one after the other."""
    names = parts_of(paper)

    def experiment(size: str, out: Path, **settings: Any) -> Result:
        return merge_results(paper, [PARTS[name](size, out, **settings) for name in names])

    experiment.__doc__ = f"All of {paper}: {', '.join(name.partition('.')[2] for name in names)}."
    return experiment


def merge_results(name: str, results: Sequence[Result]) -> Result:
    """Several results as one."""
    tables = [f"## {result.name}\n\n{result.table}" for result in results]
    rows = [{"part": result.name, **row} for result in results for row in result.rows]
    return Result(name, rows, [file for result in results for file in result.files], "\n\n".join(tables))


EXPERIMENTS: dict[str, Experiment] = {
    **{paper: _together(paper) for paper in dict.fromkeys(name.partition(".")[0] for name in PARTS)},
    **PARTS,
}
