"""The IDs of runs: a change here means that no store finds its runs any more."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import pytest

from prunus.experiments import EXPERIMENTS
from prunus.experiments.claim_list import EVIDENCE
from prunus.runs.content import read_rows
from prunus.runs.settings import canonical_json, nondefault_settings
from prunus.runs.spec import run_id
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training.recipe import LENET_300_100, Recipe


@dataclass(frozen=True)
class Base:
    kind: ClassVar[str] = "base"
    recipe: Recipe = LENET_300_100
    seed: int = 0

    def dependencies(self):
        return {}

    def code_references(self):
        return ()

    def cost(self):
        return "steps", 10


@dataclass(frozen=True)
class Branch(Base):
    kind: ClassVar[str] = "branch"
    density: float | Mapping[str, float] = 0.2
    sizes: tuple[int, ...] = ()
    root: Base | None = None
    why: str = field(default="", metadata={"identity": False})


GOLDEN = {
    "base-8ee43b39755abdd6": (Base(), "{}"),
    "base-f671d7f10afb8163": (Base(seed=7), '{"seed":7}'),
    "base-0ad486dbe0328697": (
        Base(LENET_300_100.replace(learning_rate=0.1)),
        '{"recipe":{"batch_size":60,"epochs":55,"learning_rate":0.1}}',
    ),
    "branch-e6b213bc420d8657": (
        Branch(density={"b": 1.0, "a": 1e-05}, sizes=(3, 4), root=Base(seed=1), why="é"),
        '{"density":{"a":1e-05,"b":1},"root":{"kind":"base","seed":1},"sizes":[3,4]}',
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_spec_has_this_canonical_form_and_id(name):
    spec, text = GOLDEN[name]
    assert canonical_json(nondefault_settings(spec)) == text
    assert run_id(spec) == name


SHORT_BASELINE = BaselineSpec(recipe=LENET_300_100.replace(epochs=2), replicate=3, checkpoint_steps=(100,))
WINNING_TICKET = TicketSpec(SHORT_BASELINE, rounds=5)

TICKETS = {
    "baseline-3dd4a6f98045d4cd": BaselineSpec(),
    "baseline-ff18a55266f8170a": SHORT_BASELINE,
    "ticket-3f35cf01c4c28c33": TicketSpec(),
    "ticket-00783eba263b6d83": TicketSpec(
        SHORT_BASELINE, mask0="freeze_init", rewind_step=100, pruning_rates=PruningRates(linear=0.3)
    ),
    "ticket-a20a783058e2394c": TicketSpec(
        SHORT_BASELINE, mask1="reinitialize", masks_from=WINNING_TICKET, levels=(2, 5), redraw=1
    ),
    "instability-f4ef72ef900b5b8a": InstabilitySpec(),
    "instability-0a7d404c8726e5d3": InstabilitySpec(SHORT_BASELINE, 100, WINNING_TICKET, 5),
}


@pytest.mark.parametrize("name", TICKETS)
def test_spec_of_tickets_has_this_id(name):
    assert run_id(TICKETS[name]) == name


@pytest.mark.parametrize("file", sorted(EVIDENCE.glob("*.jsonl")), ids=lambda file: file.stem)
def test_published_rows_are_those_of_the_runs_that_their_commands_ask_for(file):
    lines = read_rows(file)[1:]
    published = {line["run"]["id"] for line in lines if "run" in line}
    for request in (line["request"] for line in lines if "request" in line):
        replicates = sorted({entry["label"]["replicate"] for entry in request["entries"]})
        experiment, settings = EXPERIMENTS[request["experiment"]], request["settings"]
        asked = [run_id(spec) for _, spec in experiment.labeled_runs(request["size"], replicates, settings)]
        assert asked == [entry["id"] for entry in request["entries"]], (request["experiment"], settings)
        assert published.issuperset(asked), (request["experiment"], settings)


@dataclass(frozen=True)
class LongerRates(PruningRates):
    embedding: float = 0.5


@dataclass(frozen=True)
class LongerBaseline(BaselineSpec):
    warm_up: int = 0
    noise: tuple[float, ...] = ()


@dataclass(frozen=True)
class LongerTicket(TicketSpec):
    baseline: LongerBaseline = field(default_factory=LongerBaseline)
    pruning_rates: LongerRates = field(default_factory=LongerRates)
    of_sign: bool = False


def longer(spec: BaselineSpec | TicketSpec) -> LongerBaseline | LongerTicket:
    """The same spec, as an instance of a class with more fields."""
    mine = {f.name: getattr(spec, f.name) for f in fields(spec)}
    if isinstance(spec, BaselineSpec):
        return LongerBaseline(**mine)
    more = {"baseline": longer(spec.baseline), "pruning_rates": LongerRates(**vars(spec.pruning_rates))}
    return LongerTicket(**{**mine, **more, "masks_from": spec.masks_from and longer(spec.masks_from)})


@pytest.mark.parametrize("name", [name for name in TICKETS if not name.startswith("instability")])
def test_added_field_with_a_default_does_not_change_the_id(name):
    spec = longer(TICKETS[name])
    assert nondefault_settings(spec) == nondefault_settings(TICKETS[name])
    assert run_id(spec) == name
    added = {"of_sign": True} if isinstance(spec, LongerTicket) else {"warm_up": 5}
    assert run_id(replace(spec, **added)) != name


def test_added_nested_field_that_is_set_changes_the_id():
    ticket = longer(TICKETS["ticket-a20a783058e2394c"])
    baseline, source = replace(ticket.baseline, noise=(0.1,)), longer(WINNING_TICKET)
    names = {
        run_id(replace(ticket, baseline=baseline)),
        run_id(replace(ticket, pruning_rates=replace(ticket.pruning_rates, embedding=0.1))),
        run_id(replace(ticket, masks_from=replace(source, baseline=baseline))),
        run_id(ticket),
    }
    assert len(names) == 4
