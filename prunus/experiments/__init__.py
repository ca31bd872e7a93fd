"""Experiments: one function a figure or table of a paper, by name.

Each is `(size, out, *, replicates=None, seed=0, report=None) -> Result` with size "smoke", "default" or "full";
it writes its numbers as JSON and markdown, and its picture as PNG, SVG and CSV, into the folder `out`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunus.experiments import frankle2019, han2015, han2016, zhou2019
from prunus.experiments.laboratory import Laboratory
from prunus.experiments.result import Result

Experiment = Callable[..., Result]


def _together(paper: str, *parts: Experiment) -> Experiment:
    """All figures and tables of a paper, one after the other."""

    def experiment(size: str, out: Path, **settings: Any) -> Result:
        results = [part(size, out, **settings) for part in parts]
        tables = [f"## {result.name}\n\n{result.table}" for result in results]
        rows = [{"part": result.name, **row} for result in results for row in result.rows]
        return Result(paper, rows, [file for result in results for file in result.files], "\n\n".join(tables))

    experiment.__doc__ = f"All of {paper}: {', '.join(part.__name__ for part in parts)}."
    return experiment


LABORATORY: dict[str, Laboratory] = {
    part.name: part for paper in (frankle2019, zhou2019) for part in paper.PARTS
}
"""The experiments whose runs live in a store."""

EXPERIMENTS: dict[str, Experiment] = {
    "han2015": _together("han2015", han2015.tradeoff, han2015.tables),
    "han2016": _together("han2016", han2016.tables, han2016.starts, han2016.sizes),
    "han2015.tradeoff": han2015.tradeoff,
    "han2015.tables": han2015.tables,
    "han2016.tables": han2016.tables,
    "han2016.starts": han2016.starts,
    "han2016.sizes": han2016.sizes,
    **LABORATORY,
}
