"""Plans: every run once, dependencies first, no run that is done; and how long it takes."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

from prunus.errors import SpecError, StoreError
from prunus.runs.plan import plan, seconds_per_unit
from prunus.runs.record import write_record
from prunus.runs.spec import run_id
from prunus.runs.store import Store

CIRCLE = {}


@dataclass(frozen=True)
class Job:
    kind: ClassVar[str] = "job"
    procedure: ClassVar[str] = "specs:no_procedure"
    number: int
    after: tuple["Job", ...] = ()
    work: float = 1.0

    def dependencies(self):
        return {str(place): other for place, other in enumerate(CIRCLE.get(self.number, self.after))}

    def code_references(self):
        return ()

    def cost(self):
        return "unit", self.work


@st.composite
def families(draw):
    """Jobs that depend on earlier ones, and which of them are requested."""
    jobs = []
    for number in range(draw(st.integers(1, 8))):
        after = draw(st.lists(st.sampled_from(jobs), max_size=3)) if jobs else []
        jobs.append(Job(number, tuple(after), draw(st.integers(1, 5))))
    return jobs, draw(st.lists(st.sampled_from(jobs), min_size=1, max_size=8))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("empty"))


def do(store, spec, seconds=None):
    store.finish(store.open(spec, "test"), {}, seconds)


def closure(specs):
    """Every job that `specs` depend on, and themselves, by ID."""
    return {
        run_id(other): other
        for spec in specs
        for other in (spec, *closure(spec.dependencies().values()).values())
    }


@given(families())
@runs(max_examples=60, deadline=None)
def test_plan_has_every_run_once_and_dependencies_first(empty, family):
    _, requested = family
    planned = plan(requested, empty)
    order = [run_id(spec) for spec in planned.todo]
    assert len(order) == len(set(order))
    assert set(order) == closure(requested).keys()
    assert set(planned.requested) == {run_id(spec) for spec in requested}
    for place, spec in enumerate(planned.todo):
        assert all(run_id(other) in order[:place] for other in spec.dependencies().values())
        assert set(planned.waiting_on[run_id(spec)]) == {
            run_id(other) for other in spec.dependencies().values()
        }


@given(families(), st.integers(1, 4))
@runs(max_examples=60, deadline=None)
def test_estimate_is_within_grahams_bounds(empty, family, workers):
    planned = plan(family[1], empty)
    total = 2.0 * sum(spec.work for spec in planned.todo)

    def longest(spec):
        return 2.0 * spec.work + max(map(longest, spec.dependencies().values()), default=0.0)

    chain = max(map(longest, planned.todo))
    estimate = planned.estimate({"unit": 2.0}, workers)
    assert max(chain, total / workers) <= estimate <= chain + (total - chain) / workers
    assert planned.estimate({"unit": 2.0}, 1) == total
    assert planned.estimate({"unit": 2.0}, 100) == chain


def test_plan_leaves_out_runs_that_are_done(store):
    root, middle = Job(0), Job(1, (Job(0),))
    leaf = Job(2, (middle,))
    do(store, root)
    planned = plan([leaf, root], store)
    assert planned.todo == (middle, leaf)
    assert planned.waiting_on == {run_id(middle): (), run_id(leaf): (run_id(middle),)}
    do(store, middle)
    store.remove(run_id(root), force=True)
    assert plan([leaf], store).todo == (leaf,)  # what a finished run was made from is not missed
    do(store, leaf)
    assert plan([leaf, middle], store).todo == ()


def test_lines_describe_the_plan(store):
    roots = [Job(0), Job(1)]
    leaves = [Job(2 + place, (roots[place % 2],), 4.0) for place in range(12)]
    assert plan(leaves, store).lines({"unit": 10.0}, 2) == [
        "12 runs requested, 0 found, 14 to do, about 4 min on 2 workers"
    ]
    for spec in [*roots, *leaves[:5]]:
        do(store, spec, seconds=10.0 * spec.work)
    assert plan(leaves, store).lines(seconds_per_unit(store.runs()), 2) == [
        "12 runs requested, 5 found, 7 to do, about 3 min on 2 workers"
    ]
    assert plan(leaves[:1], store).lines({}) == ["1 run requested, 1 found, 0 to do"]
    assert plan(leaves[5:6], store).lines({}) == [
        "1 run requested, 0 found, 1 to do, on 1 worker",
        "how long it takes is known after the first run of each of: unit",
    ]
    assert plan(leaves[5:6], store).lines({}, None)[0] == "1 run requested, 0 found, 1 to do"
    assert plan(leaves[5:], store).lines({"unit": 10.0}, None) == [
        "7 runs requested, 0 found, 7 to do, about 5 min of computation in all"
    ]


def test_seconds_per_unit_is_the_median_of_finished_runs(store):
    assert seconds_per_unit(store.runs()) == {}
    for number, seconds in enumerate((2.0, 3.0, 400.0)):
        do(store, Job(number, work=2.0), seconds)
    store.fail(store.open(Job(9), "test"), "stop")
    assert seconds_per_unit(store.runs()) == {"unit": 1.5}
    assert plan([Job(10, work=8.0)], store).estimate(seconds_per_unit(store.runs())) == 12.0
    assert plan([Job(10)], store).estimate({}) is None


def test_plan_refuses_circular_dependencies(store, monkeypatch):
    monkeypatch.setitem(CIRCLE, 1, (Job(2),))
    monkeypatch.setitem(CIRCLE, 2, (Job(1),))
    with pytest.raises(SpecError, match="depend on each other in a circle: job-"):
        plan([Job(3, (Job(1),))], store)


def test_plan_refuses_a_run_made_under_another_default(store):
    do(store, Job(0))
    directory = store.directory(run_id(Job(0)))
    stored = directory.record()
    write_record(directory.path, replace(stored, all_settings={**stored.all_settings, "work": 3.0}))
    with pytest.raises(StoreError, match=r"when the default of work was 3\.0, but it is 1\.0 now"):
        plan([Job(0)], store)
