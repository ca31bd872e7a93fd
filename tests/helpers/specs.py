"""Specs of small runs that compute nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from prunus.runs.spec import run_id
from prunus.training.recipes import Recipe

SHORT = Recipe(epochs=2, learning_rate=0.1, batch_size=60)


@dataclass(frozen=True)
class Baseline:
    kind: ClassVar[str] = "dense"
    procedure: ClassVar[str] = "specs:no_procedure"
    recipe: Recipe = SHORT
    seed: int = 0

    def dependencies(self):
        return {}

    def code_references(self):
        return ()

    def cost(self):
        return "small/60", 100.0


@dataclass(frozen=True)
class Ticket:
    kind: ClassVar[str] = "ticket"
    procedure: ClassVar[str] = "specs:no_procedure"
    dense: Baseline = Baseline()
    rounds: int = 3
    density: float | Mapping[str, float] = 0.1
    nested: bool = True
    layers: tuple[int, ...] = ()
    rewind: int | None = None
    amount: Literal["one", "many"] = "one"
    extra: Mapping[str, float] | None = None
    masks_from: "Ticket | None" = None
    criterion: str = "magnitude"
    note: str = field(default="", metadata={"identity": False})

    def dependencies(self):
        return {"baseline": self.dense} if self.masks_from is None else {"masks": self.masks_from}

    def code_references(self):
        return (self.criterion,) if ":" in self.criterion else ()

    def cost(self):
        return "small/60", 100.0 * self.rounds


def finish(store, spec, rows=(), seconds=None, **summary):
    """Record a run as done with these rows; return its ID."""
    directory = store.open(spec, "test")
    for row in rows:
        directory.append_row(row)
    store.finish(directory, summary, seconds)
    return run_id(spec)
