"""The plan of a command: of the requested runs and their dependencies, those that are not in the store, each once."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from statistics import median

from prunus.errors import SpecError
from prunus.runs.record import check_settings_match, describe_run
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store


@dataclass(frozen=True)
class Plan:
    """The requested runs, and what is still to do for them."""

    requested: tuple[str, ...]
    """The IDs of the requested runs, each once."""
    todo: tuple[RunSpec, ...]
    """The runs that are not done, requested or dependencies of requested ones, dependencies first."""
    done: tuple[str, ...]
    """The runs that are done, requested or dependencies of those to do."""
    users: Mapping[str, tuple[str, ...]]
    """For each run to do, the other requested runs that depend on it, directly or through others."""
    waiting_on: Mapping[str, tuple[str, ...]]
    """For each run to do, those of its dependencies that are to do as well."""

    @property
    def shared(self) -> dict[str, int]:
        """The runs to do that more than one requested run depends on, and how many do."""
        return {id: len(users) for id, users in self.users.items() if len(users) > 1}

    def estimate(self, seconds_per_unit: Mapping[str, float], workers: int = 1) -> float | None:
        """Estimate the seconds until all is done.

        Args:
            seconds_per_unit: The seconds that a unit of each cost takes.
            workers: How many take the runs in order, each as soon as its dependencies are done.

        Returns:
            The seconds; None if the seconds of a unit are not known.
        """
        seconds = {}
        for spec in self.todo:
            unit, number = spec.cost()
            if unit not in seconds_per_unit:
                return None
            seconds[run_id(spec)] = number * seconds_per_unit[unit]
        return _makespan(seconds, self.waiting_on, workers)

    def lines(self, seconds_per_unit: Mapping[str, float], workers: int = 1) -> list[str]:
        """Describe the plan in one or two lines.

        Args:
            seconds_per_unit: The seconds that a unit of each cost takes; units that are not known may be missing.
            workers: How many workers take the runs in order, each as soon as its dependencies are done.

        Returns:
            One line with the numbers of runs and, if it is known, the time; a second line if the time is not known.
        """
        num_done = sum(id in self.done for id in self.requested)
        counts = f"{_count_runs(len(self.requested))} requested, {num_done} found, {len(self.todo)} to do"
        counts += self._describe_sharing()
        if not self.todo:
            return [counts]
        on = f"on {workers} worker{'' if workers == 1 else 's'}"
        estimate = self.estimate(seconds_per_unit, workers)
        if estimate is not None:
            return [f"{counts}, {_approximate(estimate)} {on}"]
        unknown = sorted({spec.cost()[0] for spec in self.todo} - seconds_per_unit.keys())
        return [
            f"{counts}, {on}",
            f"how long it takes is known after the first run of each of: {', '.join(unknown)}",
        ]

    def _describe_sharing(self) -> str:
        by_kind: dict[str, list[str]] = {}
        for id in self.shared:
            by_kind.setdefault(id.rpartition("-")[0], []).append(id)
        phrases = []
        for kind, ids in by_kind.items():
            users = {user for id in ids for user in self.users[id]}
            phrases.append(f"{_count_runs(len(ids), kind)} shared by {len(users)}")
        return f" ({', '.join(phrases)})" if phrases else ""


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
    dependencies: dict[str, tuple[str, ...]] = {}
    done: dict[str, None] = {}
    stack = [*reversed(requested.values())]
    while stack:
        spec = stack.pop()
        id = run_id(spec)
        if id in todo or id in done:
            continue
        if store.is_done(id):
            directory = store.directory(id)
            check_settings_match(directory.path, directory.record(), describe_run(spec))
            done[id] = None
            continue
        todo[id] = spec
        dependencies[id] = tuple(
            dict.fromkeys(run_id(dependency) for dependency in spec.dependencies().values())
        )
        stack += reversed([*spec.dependencies().values()])
    order = _sort(dependencies)
    waiting_on = {
        id: tuple(dependency for dependency in dependencies[id] if dependency in todo) for id in order
    }
    users: dict[str, list[str]] = {id: [] for id in order}
    for id in requested:
        for dependency in _closure(id, waiting_on) - {id}:
            users[dependency].append(id)
    return Plan(
        requested=tuple(requested),
        todo=tuple(todo[id] for id in order),
        done=tuple(done),
        users={id: tuple(ids) for id, ids in users.items()},
        waiting_on=waiting_on,
    )


def seconds_per_unit(store: Store) -> dict[str, float]:
    """Return the median of the seconds that a unit of each cost took in the runs that were computed here."""
    measured: dict[str, list[float]] = {}
    for run in store.runs():
        unit, number = run.cost
        if run.state == "done" and not run.imported and number > 0:
            measured.setdefault(unit, []).append(run.seconds / number)
    return {unit: median(values) for unit, values in measured.items()}


def _sort(dependencies: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the IDs with dependencies first, otherwise in the given order."""
    try:
        sorter = TopologicalSorter(
            {
                id: [dependency for dependency in its_dependencies if dependency in dependencies]
                for id, its_dependencies in dependencies.items()
            }
        )
        return list(sorter.static_order())
    except CycleError as error:
        raise SpecError(
            f"These runs depend on each other in a circle: {' → '.join(error.args[1])}."
        ) from error


def _closure(id: str, dependencies: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Return `id` and all that it depends on, directly or through others; nothing if it is not to do."""
    closure: set[str] = set()
    stack = [id] if id in dependencies else []
    while stack:
        dependency = stack.pop()
        if dependency not in closure:
            closure.add(dependency)
            stack += dependencies[dependency]
    return closure


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


def _count_runs(number: int, kind: str = "") -> str:
    return f"{number} {kind}{' ' if kind else ''}run{'' if number == 1 else 's'}"


def _approximate(seconds: float) -> str:
    """Describe a time roughly.

    >>> _approximate(40), _approximate(200), _approximate(9000)
    ('about 40 s', 'about 3 min', 'about 2.5 h')
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
