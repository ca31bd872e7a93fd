"""The plan of a command: of the requested runs and their dependencies, those that are not in the store, each once."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from statistics import median

from prunus.errors import SpecError
from prunus.runs.record import RunRecord, check_settings_match, describe_run
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.text_tables import pluralize


@dataclass(frozen=True)
class Plan:
    """The requested runs, and what is still to do for them."""

    requested: tuple[str, ...]
    """The IDs of the requested runs, each once."""
    todo: tuple[RunSpec, ...]
    """The runs that are not done, requested or dependencies of requested ones, dependencies first."""
    waiting_on: Mapping[str, tuple[str, ...]]
    """For each run to do, those of its dependencies that are to do as well."""

    def estimate(self, seconds_per_unit: Mapping[str, float], workers: int = 1) -> float | None:
        """Estimate the seconds until all is done.

        Args:
            seconds_per_unit: The seconds that a unit of each cost takes.
            workers: How many take the runs in order, each as soon as its dependencies are done.

        Returns:
            The seconds; None if the seconds of a unit are not known.
        """
        costs = {run_id(spec): spec.cost() for spec in self.todo}
        if not {unit for unit, _ in costs.values()} <= seconds_per_unit.keys():
            return None
        seconds = {id: number * seconds_per_unit[unit] for id, (unit, number) in costs.items()}
        return _makespan(seconds, self.waiting_on, workers)

    def lines(self, seconds_per_unit: Mapping[str, float], workers: int | None = 1) -> list[str]:
        """Describe the plan in one or two lines.

        Args:
            seconds_per_unit: The seconds that a unit of each cost takes; units that are not known may be missing.
            workers: How many workers take the runs in order, each as soon as its dependencies are done. None: it is not
                known, and the time is that of all runs together.

        Returns:
            One line with the numbers of runs and, if it is known, the time; a second line if the time is not known.
        """
        num_done = len(set(self.requested) - self.waiting_on.keys())
        counts = (
            f"{pluralize(len(self.requested), 'run')} requested, {num_done} found, {len(self.todo)} to do"
        )
        if not self.todo:
            return [counts]
        on = "" if workers is None else f"on {pluralize(workers, 'worker')}"
        estimate = self.estimate(seconds_per_unit, workers or 1)
        if estimate is not None:
            return [f"{counts}, {_approximate(estimate)} {on or 'of computation in all'}"]
        unknown = sorted({spec.cost()[0] for spec in self.todo} - seconds_per_unit.keys())
        return [
            f"{counts}, {on}" if on else counts,
            f"how long it takes is known after the first run of each of: {', '.join(unknown)}",
        ]


def plan(specs: Iterable[RunSpec], store: Store) -> Plan:
    """Plan the runs of `specs`.

    Args:
        specs: The requested runs; equal ones count once.
        store: The store; nothing is written to it.

    Returns:
        The plan, in which dependencies come before the runs that need them.

    Raises:
        SpecError: Runs depend on each other in a circle.
        StoreError: A finished run was made when a setting had another default.
    """
    requested = {run_id(spec): spec for spec in specs}
    todo: dict[str, RunSpec] = {}
    done: set[str] = set()
    stack = [*reversed(requested.values())]
    while stack:
        spec = stack.pop()
        id = run_id(spec)
        if id in todo or id in done:
            continue
        if store.is_done(id):
            directory = store.directory(id)
            check_settings_match(directory.path, directory.record(), describe_run(spec))
            done.add(id)
            continue
        todo[id] = spec
        stack += reversed([*spec.dependencies().values()])
    waiting_on = {}
    for id, spec in todo.items():
        needed = dict.fromkeys(run_id(dependency) for dependency in spec.dependencies().values())
        waiting_on[id] = tuple(other for other in needed if other in todo)
    try:
        order = list(TopologicalSorter(waiting_on).static_order())
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise SpecError(f"These runs depend on each other in a circle: {circle}.") from error
    return Plan(tuple(requested), tuple(todo[id] for id in order), waiting_on)


def with_dependents(ids: Iterable[str], dependencies: Mapping[str, Iterable[str]]) -> set[str]:
    """Return some runs, and all that depend on one of them, directly or through others.

    Args:
        ids: The IDs of the runs.
        dependencies: The IDs that each run depends on.

    Returns:
        The IDs of both.

    >>> sorted(with_dependents(["a"], {"b": ["a"], "c": ["b"], "d": ["e"]}))
    ['a', 'b', 'c']
    """
    affected = set(ids)
    while more := {id for id, needed in dependencies.items() if affected.intersection(needed)} - affected:
        affected |= more
    return affected


def seconds_per_unit(runs: Iterable[RunRecord]) -> dict[str, float]:
    """Return the median of the seconds that a unit of each cost took in the runs that were computed here."""
    measured: dict[str, list[float]] = {}
    for run in runs:
        unit, number = run.cost
        if run.state == "done" and not run.imported and number > 0:
            measured.setdefault(unit, []).append(run.seconds / number)
    return {unit: median(values) for unit, values in measured.items()}


def _makespan(
    seconds: Mapping[str, float], dependencies: Mapping[str, tuple[str, ...]], workers: int
) -> float:
    """Return when the last of `workers` ends, if each takes the first run that can start."""
    ends: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    waiting, now = list(seconds), 0.0
    while waiting or running:
        free = (id for id in waiting if all(dependency in ends for dependency in dependencies[id]))
        for id in list(islice(free, workers - len(running))):
            waiting.remove(id)
            heapq.heappush(running, (now + seconds[id], id))
        now, id = heapq.heappop(running)
        ends[id] = now
    return now


def _approximate(seconds: float) -> str:
    """Describe a time roughly.

    >>> _approximate(40), _approximate(200), _approximate(9000)
    ('about 40 s', 'about 3 min', 'about 2.5 h')
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
