"""The names of runs: a change here makes every store forget what it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from prunus.runs.settings import canonical
from prunus.runs.spec import identity, settings
from prunus.training.recipes import LENET_300_100, Recipe


@dataclass(frozen=True)
class Base:
    kind: ClassVar[str] = "base"
    recipe: Recipe = LENET_300_100
    seed: int = 0

    def needs(self):
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
        Base(LENET_300_100.but(learning_rate=0.1)),
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
    assert canonical(settings(spec)) == text
    assert identity(spec) == name
