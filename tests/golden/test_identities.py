"""The names of runs: a change here makes every store forget what it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import pytest

from prunus.runs.settings import canonical_json
from prunus.runs.spec import nondefault_settings, run_id
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training.recipes import LENET_300_100, Recipe


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
def test_a_spec_has_this_name(name):
    spec, text = GOLDEN[name]
    assert canonical_json(nondefault_settings(spec)) == text
    assert run_id(spec) == name


SHORTER = BaselineSpec(recipe=LENET_300_100.replace(epochs=2), replicate=3, states=(100,))
WINNING = TicketSpec(SHORTER, rounds=5)

TICKETS = {
    "dense-b573c6922e38b110": BaselineSpec(),
    "dense-a43e1eb885113e48": SHORTER,
    "ticket-3f35cf01c4c28c33": TicketSpec(),
    "ticket-6409eb88d79429ee": TicketSpec(
        SHORTER, mask0="freeze_init", rewind_step=100, rates=PruningRates(linear=0.3)
    ),
    "ticket-a76457894e3e6b3a": TicketSpec(
        SHORTER, mask1="reinitialize", masks_from=WINNING, levels=(2, 5), draw=1
    ),
    "instability-f4ef72ef900b5b8a": InstabilitySpec(),
    "instability-59be6c6a7a1b224e": InstabilitySpec(SHORTER, 100, WINNING, 5),
}


@pytest.mark.parametrize("name", TICKETS)
def test_a_run_of_the_laboratory_has_this_name(name):
    assert run_id(TICKETS[name]) == name


@dataclass(frozen=True)
class LongerRates(PruningRates):
    embedding: float = 0.5


@dataclass(frozen=True)
class LongerDense(BaselineSpec):
    warm_up: int = 0
    noise: tuple[float, ...] = ()


@dataclass(frozen=True)
class LongerTicket(TicketSpec):
    dense: LongerDense = field(default_factory=LongerDense)
    rates: LongerRates = field(default_factory=LongerRates)
    of_sign: bool = False


def longer(spec: BaselineSpec | TicketSpec) -> LongerDense | LongerTicket:
    """The same spec, as classes that have got more fields would make it."""
    mine = {f.name: getattr(spec, f.name) for f in fields(spec)}
    if isinstance(spec, BaselineSpec):
        return LongerDense(**mine)
    more = {"dense": longer(spec.dense), "rates": LongerRates(**vars(spec.rates))}
    return LongerTicket(**{**mine, **more, "masks_from": spec.masks_from and longer(spec.masks_from)})


@pytest.mark.parametrize("name", [name for name in TICKETS if not name.startswith("instability")])
def test_fields_that_are_added_with_a_default_rename_no_run(name):
    spec = longer(TICKETS[name])
    assert nondefault_settings(spec) == nondefault_settings(TICKETS[name])
    assert run_id(spec) == name
    added = {"of_sign": True} if isinstance(spec, LongerTicket) else {"warm_up": 5}
    assert run_id(replace(spec, **added)) != name


def test_a_field_added_deep_inside_that_is_set_does_rename():
    ticket = longer(TICKETS["ticket-a76457894e3e6b3a"])
    dense, source = replace(ticket.dense, noise=(0.1,)), longer(WINNING)
    names = {
        run_id(replace(ticket, dense=dense)),
        run_id(replace(ticket, rates=replace(ticket.rates, embedding=0.1))),
        run_id(replace(ticket, masks_from=replace(source, dense=dense))),
        run_id(ticket),
    }
    assert len(names) == 4
