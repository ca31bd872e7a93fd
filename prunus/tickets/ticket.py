"""A ticket as a spec: which dense training, which mask, what weights start from, how often.

Source: Frankle & Carbin 2019, section 2 (iterative and one-shot); Zhou et al. 2019, section 2 (the three choices);
Frankle et al. 2020, Algorithm 1 (rewinding to step k); Renda et al. 2020, section 2 (what is rewound).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from prunus.errors import SpecError
from prunus.tickets.artifacts import RunArtifacts
from prunus.tickets.baseline import BaselineSpec, StepReport
from prunus.tickets.procedure import check_feasible, resolve_components, run_ticket
from prunus.tickets.supermask.learned_supermask import LearnedSupermaskSpec

REWINDING = ("rewind", "finetune", "rewind_learning_rate")
"""The mask-1 actions whose values may be those of another step than 0."""


@dataclass(frozen=True)
class PruningRates:
    """The share of what is left that a round prunes, a kind of layer; global scope: `linear` of everything."""

    linear: float = 0.2
    conv: float = 0.1
    output: float = 0.1
    """Of the last layer: half the rate of the others (Frankle & Carbin 2019, Figure 2)."""


@dataclass(frozen=True)
class TicketSpec:
    """A dense training pruned and trained again: one replicate, every level of it."""

    kind: ClassVar[str] = "ticket"
    procedure: ClassVar[str] = "prunus.tickets.procedure:run_ticket"

    dense: BaselineSpec = field(default_factory=BaselineSpec)
    criterion: str = "large_final"
    scope: str = "layer"
    rates: PruningRates = field(default_factory=PruningRates)
    rounds: int = 24
    """Level r prunes r times; its density is (1 - rate)^r."""
    schedule: str = "iterative"
    """"iterative": level after level; "one_shot": every level straight from the dense network."""
    levels: tuple[int, ...] = ()
    """One-shot, or under the masks of another ticket: the levels to train; empty: all. Kept in order, once each."""
    mask1: str = "rewind"
    mask0: str = "zero"
    rewind_step: int = 0
    masks_from: "TicketSpec | LearnedSupermaskSpec | None" = None
    """Take the masks of this other ticket instead of a criterion's (the control of Frankle & Carbin), or a
    learned one."""
    densities_from: LearnedSupermaskSpec | None = None
    """Keep as many weights of each layer as this learned mask does, at one level, in place of what `rates` say."""
    num_scoring_examples: int = 100
    """Training examples that gradient criteria look at."""
    draw: int = 0
    """Which draw, where an action draws at random: the same ticket reinitialized again."""

    def __post_init__(self) -> None:
        levels = tuple(sorted(set(self.levels)))
        everything = tuple(range(1, self.rounds + 1))
        object.__setattr__(self, "levels", () if levels == everything else levels)

    def dependencies(self) -> dict[str, "BaselineSpec | TicketSpec | LearnedSupermaskSpec"]:
        """The dense training, and the ticket or the learned mask that is looked at."""
        others = {"masks": self.masks_from, "densities": self.densities_from}
        return {"baseline": self.dense, **{role: one for role, one in others.items() if one is not None}}

    def code_references(self) -> tuple[str, ...]:
        """The user's functions among the names."""
        return tuple(name for name in (self.criterion, self.mask1, self.mask0) if ":" in name)

    @property
    def learned(self) -> LearnedSupermaskSpec | None:
        """The supermask whose masks are taken."""
        return self.masks_from if isinstance(self.masks_from, LearnedSupermaskSpec) else None

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.dense.device

    @property
    def source(self) -> "TicketSpec | None":
        """The ticket whose criterion, rates and scope made the masks; None: they were learned."""
        return self if self.masks_from is None else self.masks_from.source

    @property
    def chained(self) -> bool:
        """Whether a level starts from what the level before it ended at."""
        return self.schedule == "iterative" and self.masks_from is None

    def cost(self) -> tuple[str, float]:
        """Training steps over all levels."""
        unit, steps = self.dense.cost()
        return unit, (steps - self.rewind_step) * len(self.trained_levels())

    def pace(self) -> float:
        """Seconds a training step takes here."""
        return self.dense.pace()

    def trained_levels(self) -> tuple[int, ...]:
        """The levels this run trains, in order. Raises SpecError where the settings contradict each other.

        Raises UnknownNameError where they name what there is not, DensityError where the scope cannot give a level's.
        """
        resolve_components(self)
        for name, rate in vars(self.rates).items():
            if not 0 <= rate < 1:
                raise SpecError(f"rates.{name} is {rate}; a round prunes a share of at least 0 and below 1.")
        everything = tuple(range(1, self.rounds + 1))
        if self.schedule not in ("iterative", "one_shot"):
            raise SpecError(
                f"No schedule of tickets is called {self.schedule!r}; there are: iterative, one_shot."
            )
        if self.levels and self.chained:
            raise SpecError(
                "An iterative ticket passes through every level; `levels` is for one_shot or masks_from."
            )
        wrong = [level for level in self.levels if level not in everything]
        if wrong or self.rounds < 1:
            raise SpecError(
                f"Levels {wrong} were asked of {self.rounds} rounds; levels go from 1 to the rounds."
            )
        yours = ":" in self.mask1
        if self.rewind_step and not yours and self.mask1.removesuffix("_rescaled") not in REWINDING:
            raise SpecError(
                f"{self.mask1} makes new values, which belong to step 0, not to step {self.rewind_step}."
            )
        if self.rewind_step and self.rewind_step not in self.dense.states:
            raise SpecError(
                f"To rewind to step {self.rewind_step} the dense training must keep that state; "
                f"its `states` are {self.dense.states}."
            )
        self._check_learned()
        mine = self.levels or everything
        if self.masks_from is not None and not set(mine) <= set(self.masks_from.trained_levels()):
            raise SpecError(
                f"Levels {mine} were asked, but the ticket whose masks are taken has other levels."
            )
        check_feasible(self, mine)
        return mine

    def _check_learned(self) -> None:
        if self.mask1 == "supermask" and self.learned is None:
            raise SpecError(
                "Kept weights were to start from a supermask's; `masks_from` must name the supermask."
            )
        looks_back = self.mask1.removesuffix("_rescaled") in REWINDING or self.mask1.startswith("signed")
        if self.learned is not None and looks_back and self.learned.foreign:
            raise SpecError(
                f"{self.mask1} starts from the initialization of the dense network, but the {self.learned.mask.kind} "
                f"mask was learned over weights of other signs, {self.learned.weights}; mask1='supermask' starts from "
                "those."
            )
        if self.densities_from is not None and (
            self.rounds != 1 or self.masks_from or self.scope == "global"
        ):
            raise SpecError(
                "A ticket as dense as a learned mask has one round, a criterion of its own, and a density a layer: "
                f"rounds is {self.rounds}, masks_from {'a mask' if self.masks_from else 'none'}, scope {self.scope!r}."
            )

    def run(
        self, shelf: RunArtifacts, needed: Mapping[str, RunArtifacts], report_steps: StepReport | None = None
    ) -> dict[str, Any]:
        """Train level after level; a level that is written down is not trained again."""
        return run_ticket(self, shelf, needed, report_steps)
