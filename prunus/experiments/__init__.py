"""Experiments: one function a figure or table of a paper, by name.

Each is `(size, out, *, replicates=None, seed=0, report=None) -> Result` with size "smoke", "default" or "full";
it writes its numbers as JSON and markdown, and its picture as PNG, SVG and CSV, into the folder `out`.
"""

from collections.abc import Callable

from prunus.experiments import han2015, han2016
from prunus.experiments.result import Result

EXPERIMENTS: dict[str, Callable[..., Result]] = {
    "han2015.tradeoff": han2015.tradeoff,
    "han2015.tables": han2015.tables,
    "han2016.tables": han2016.tables,
    "han2016.starts": han2016.starts,
    "han2016.sizes": han2016.sizes,
}
