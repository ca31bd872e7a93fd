"""Engines: who carries out the runs of a plan. One spec gives the same results whoever does.

An engine is (runs to do, store, workers, report) -> None; it claims every run before it works on it, so that several
engines, in several processes or on several machines, can share a store.
"""

from collections.abc import Callable

from prunus.runs.executors.inline import inline
from prunus.runs.executors.processes import processes

Engine = Callable[..., None]
"""(todo, store, *, workers, say, progress) -> None."""

ENGINES: dict[str, Engine] = {"inline": inline, "processes": processes}
