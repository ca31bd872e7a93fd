"""What is missing: of the runs somebody wants, those that are not in the store, needs first, each once."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from statistics import median

from prunus.errors import SpecError
from prunus.runs.settings import all_settings, check_settings_match, nondefault_settings
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store


@dataclass(frozen=True)
class Plan:
    """The runs wanted, by what is left to do for them."""

    wanted: tuple[str, ...]
    """The identities of the runs asked for, each once."""
    todo: tuple[RunSpec, ...]
    """The runs that are not there, wanted or needed by wanted ones, so that needs come first."""
    done: tuple[str, ...]
    """The runs that are there, wanted or needed by those to do."""
    users: Mapping[str, tuple[str, ...]]
    """Of each run to do, the other wanted runs that need it, be it through others."""
    waiting_on: Mapping[str, tuple[str, ...]]
    """Of each run to do, the needs that are to do as well."""

    @property
    def shared(self) -> dict[str, int]:
        """The runs to do that more than one wanted run needs, and how many do."""
        return {id: len(users) for id, users in self.users.items() if len(users) > 1}

    def estimate(self, seconds_per_unit: Mapping[str, float], workers: int = 1) -> float | None:
        """The seconds until all is done, at the pace of earlier runs; None where one has no pace yet.

        As `workers` take up the runs in order, each as soon as its needs are done.
        """
        seconds = {}
        for spec in self.todo:
            unit, number = spec.cost()
            if unit not in seconds_per_unit:
                return None
            seconds[run_id(spec)] = number * seconds_per_unit[unit]
        return _makespan(seconds, self.waiting_on, workers)

    def lines(self, seconds_per_unit: Mapping[str, float], workers: int = 1) -> list[str]:
        """The plan in words."""
        found = sum(id in self.done for id in self.wanted)
        counted = f"{_runs(len(self.wanted))} wanted, {found} found, {len(self.todo)} to do{self._sharing()}"
        if not self.todo:
            return [counted]
        on = f"on {workers} worker{'' if workers == 1 else 's'}"
        estimate = self.estimate(seconds_per_unit, workers)
        if estimate is not None:
            return [f"{counted}, {_about(estimate)} {on}"]
        unknown = sorted({spec.cost()[0] for spec in self.todo} - seconds_per_unit.keys())
        return [
            f"{counted}, {on}",
            f"how long it takes is known after the first run of each of: {', '.join(unknown)}",
        ]

    def _sharing(self) -> str:
        kinds: dict[str, list[str]] = {}
        for id in self.shared:
            kinds.setdefault(id.rpartition("-")[0], []).append(id)
        words = []
        for kind, ids in kinds.items():
            users = {user for id in ids for user in self.users[id]}
            words.append(f"{_runs(len(ids), kind)} shared by {len(users)}")
        return f" ({', '.join(words)})" if words else ""


def plan(specs: Iterable[RunSpec], store: Store) -> Plan:
    """What is to do for `specs`. Raises SpecError where runs need each other in a circle."""
    wanted = {run_id(spec): spec for spec in specs}
    found: dict[str, RunSpec] = {}
    needs: dict[str, tuple[str, ...]] = {}
    done: dict[str, None] = {}
    stack = [*reversed(wanted.values())]
    while stack:
        spec = stack.pop()
        id = run_id(spec)
        if id in found or id in done:
            continue
        if store.done(id):
            check_settings_match(store.folder(id).path, store.folder(id).spec(), _asked(spec))
            done[id] = None
            continue
        found[id] = spec
        needs[id] = tuple(dict.fromkeys(run_id(need) for need in spec.needs()))
        stack += reversed(spec.needs())
    order = _order(needs)
    waiting_on = {id: tuple(need for need in needs[id] if need in found) for id in order}
    users: dict[str, list[str]] = {id: [] for id in order}
    for id in wanted:
        for need in _closure(id, waiting_on) - {id}:
            users[need].append(id)
    return Plan(
        wanted=tuple(wanted),
        todo=tuple(found[id] for id in order),
        done=tuple(done),
        users={id: tuple(ids) for id, ids in users.items()},
        waiting_on=waiting_on,
    )


def seconds_per_unit(store: Store) -> dict[str, float]:
    """The median seconds a unit of each cost took in the finished runs."""
    found: dict[str, list[float]] = {}
    for run in store.runs():
        if run.status == "done" and run.seconds is not None and run.cost is not None and run.cost[1] > 0:
            found.setdefault(run.cost[0], []).append(run.seconds / run.cost[1])
    return {unit: median(values) for unit, values in found.items()}


def _asked(spec: RunSpec) -> dict[str, object]:
    return {"settings": nondefault_settings(spec), "complete": all_settings(spec)}


def _order(needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Needs first; otherwise as they were found."""
    try:
        sorter = TopologicalSorter({id: [need for need in own if need in needs] for id, own in needs.items()})
        return list(sorter.static_order())
    except CycleError as error:
        raise SpecError(f"These runs need each other in a circle: {' → '.join(error.args[1])}.") from error


def _closure(id: str, needs: Mapping[str, tuple[str, ...]]) -> set[str]:
    """`id` and what it needs, and what that needs; nothing where it is not to do."""
    found: set[str] = set()
    stack = [id] if id in needs else []
    while stack:
        one = stack.pop()
        if one not in found:
            found.add(one)
            stack += needs[one]
    return found


def _makespan(seconds: Mapping[str, float], needs: Mapping[str, tuple[str, ...]], workers: int) -> float:
    """When the last of `workers` is through, each taking the first run that can start."""
    ends: dict[str, float] = {}
    going: list[tuple[float, str]] = []
    left, now = list(seconds), 0.0
    while left or going:
        free = (id for id in left if all(need in ends for need in needs[id]))
        for id in list(islice(free, workers - len(going))):
            left.remove(id)
            heapq.heappush(going, (now + seconds[id], id))
        now, id = heapq.heappop(going)
        ends[id] = now
    return now


def _runs(number: int, kind: str = "") -> str:
    return f"{number} {kind}{' ' if kind else ''}run{'' if number == 1 else 's'}"


def _about(seconds: float) -> str:
    """A rough time.

    >>> _about(40), _about(200), _about(9000)
    ('about 40 s', 'about 3 min', 'about 2.5 h')
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
