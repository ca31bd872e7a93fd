"""The dense training that every ticket of a replicate comes from.

Source: Frankle & Carbin 2019, section 2 and Figure 2 (settings); Zhou et al. 2019.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from prunus.data import load
from prunus.errors import DataError, ModelError, PrunusError, SpecError
from prunus.models import MODELS
from prunus.registry import import_object, lookup
from prunus.seeds import derive_seed
from prunus.tickets.artifacts import RunArtifacts
from prunus.tickets.monitor import TrainingMonitor
from prunus.training import RECIPES, NoConstraint, Recipe, evaluate, train
from prunus.training.constraints import Constraint
from prunus.training.loop import Trainer, check_recipe, steps_per_epoch
from prunus.training.state import TrainingState, state_from_tensors, state_to_tensors
from prunus.types import Dataset, Progress

PACE_STEPS = 20

StepReport = Callable[[int], None]
"""Called during the trainings of a run with the number of steps since the last call."""


@dataclass(frozen=True)
class BaselineSpec:
    """One dense training of one replicate."""

    kind: ClassVar[str] = "dense"
    procedure: ClassVar[str] = "prunus.tickets.baseline:run_baseline"

    model: str = "lenet-300-100"
    """A key of MODELS, or "package.module:function" of yours that takes `seed` and gives a module."""
    data: str = "mnist"
    recipe: Recipe = field(default_factory=lambda: RECIPES["lenet-300-100"])
    replicate: int = 0
    examples: int | None = None
    """Train on the first so many, evaluate on the first third as many; None: on all there are."""
    every: int = 100
    """Steps between evaluations."""
    states: tuple[int, ...] = ()
    """Steps whose whole state is kept, to rewind to."""
    test_curve: bool = False
    """Evaluate the test split along the way as well, for a figure."""
    device: str = "cpu"

    def dependencies(self) -> dict[str, "BaselineSpec"]:
        """Nothing."""
        return {}

    def code_references(self) -> tuple[str, ...]:
        """The user's functions among the names."""
        return tuple(name for name in (self.model, self.data) if ":" in name)

    def cost(self) -> tuple[str, float]:
        """Training steps of this network."""
        return f"{self.model}/{self.recipe.batch_size}/{self.device}", float(self.total_steps())

    def total_steps(self) -> int:
        """Steps of the whole training. Raises SpecError where the settings make none."""
        self._check()
        total = self.recipe.epochs * steps_per_epoch(self.recipe, self.dataset().train)
        for step in self.states:
            if not 0 <= step < total:
                raise SpecError(
                    f"The state of step {step} was asked, but training has the steps 0 to {total}."
                )
        return total

    def dataset(self) -> Dataset:
        """The data, cut to `examples`."""
        whole = load_cached(self.data, self.device)
        return whole if self.examples is None else whole.take(self.examples, max(1, self.examples // 3))

    def network(self, seed: int | None = None) -> nn.Module:
        """The network of this replicate, or of another draw of the initialization."""
        seed = derive_seed(self.replicate, "model") if seed is None else seed
        try:
            made = self._maker()(seed=seed)
        except (Exception, SystemExit) as error:  # a user's function may fail in any way
            if isinstance(error, PrunusError) or ":" not in self.model:
                raise
            raise ModelError(
                f"{self.model} was called with seed={seed} and failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(made, nn.Module):
            raise ModelError(f"{self.model} was to return a module and returned a {type(made).__name__}.")
        return made.to(self.device)

    def _maker(self) -> Callable[..., Any]:
        return import_object(self.model) if ":" in self.model else lookup("model", MODELS, self.model)

    def train(
        self,
        model: nn.Module,
        shelf: RunArtifacts,
        level: int,
        *,
        constraint: Constraint | None = None,
        start: TrainingState | None = None,
        recipe: Recipe | None = None,
        states: tuple[int, ...] = (),
        seed: int | None = None,
        report_steps: StepReport | None = None,
    ) -> TrainingMonitor:
        """Train a network on this data, in the order of this replicate or of `seed`; returns what was observed.

        Args:
            model: trained in place.
            shelf: where the training writes its checkpoint, and goes on from it.
            level: names the checkpoint.
            constraint, start: as in `prunus.train`.
            recipe: None for the recipe of the dense training.
            states: the steps whose whole state is kept.
            report_steps: called with the number of steps since the last call.
        """
        data, constraint = self.dataset(), constraint or NoConstraint(model)
        recipe = recipe or self.recipe
        if ":" in self.data:
            shelf.check_input(self.data, _tensors_of(data))
        first = start.step if start else 0
        watch = TrainingMonitor(
            data.validation,
            first=first,
            last=recipe.epochs * steps_per_epoch(recipe, data.train),
            every=self.every,
            states=states,
            test=data.test if self.test_curve else None,
            count_violations=getattr(constraint, "verify", None),
        )
        train(
            model,
            data,
            recipe,
            constraint=constraint,
            seed=derive_seed(self.replicate, "train") if seed is None else seed,
            start=start,
            observer=watch,
            checkpoint=shelf.checkpoint_path(checkpoint_name(level)),
            progress=None if report_steps is None else _differences(report_steps, first),
        )
        return watch

    def pace(self) -> float:
        """Seconds a training step takes here, measured over a few of them."""
        model = self.network()
        return pace(Trainer(model, self.recipe, NoConstraint(model)), self.dataset())

    def run(
        self, shelf: RunArtifacts, needed: Mapping[str, RunArtifacts], report_steps: StepReport | None = None
    ) -> dict[str, Any]:
        """Train; keep the initialization, the wanted states, and the end. Returns the row of the training."""
        self.total_steps()
        if not shelf.rows():
            began, model = time.perf_counter(), self.network()
            watch = self.train(model, shelf, 0, states=(0, *self.states), report_steps=report_steps)
            for step, state in watch.states.items():
                shelf.save_tensors(f"state-{step}", state_to_tensors(state), {"step": step})
            shelf.save_tensors("final", model.state_dict())
            seconds = round(time.perf_counter() - began, 2)
            row = {
                "level": 0,
                "density": 1.0,
                **final_metrics(model, watch, self.dataset()),
                "seconds": seconds,
            }
            shelf.append_curve(curve_rows(0, watch))
            shelf.append_row(row)
        shelf.remove(checkpoint_name(0))
        return dict(shelf.rows()[0])

    def _check(self) -> None:
        counts = {
            "every": self.every,
            "examples": self.examples,
            "recipe.epochs": self.recipe.epochs,
            "recipe.batch_size": self.recipe.batch_size,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise SpecError(f"{name} is {value}; it must be at least 1.")
        for name in ("learning_rate", "momentum", "weight_decay", "penalty_strength"):
            value = getattr(self.recipe, name)
            if not 0 <= value < math.inf:
                raise SpecError(f"recipe.{name} is {value}; it must be finite and at least 0.")
        if self.recipe.patience is not None:
            raise SpecError(
                "Where tickets stop is found afterwards, in trainings of full length: leave `patience` at none."
            )
        self._maker()
        check_recipe(self.recipe)


def _tensors_of(data: Dataset) -> dict[str, Tensor]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        f"{name}/{part}": getattr(split, part)
        for name, split in splits.items()
        for part in ("inputs", "labels")
    }


def run_baseline(
    spec: BaselineSpec,
    shelf: RunArtifacts,
    needed: Mapping[str, RunArtifacts],
    report_steps: StepReport | None = None,
) -> dict[str, Any]:
    """As `BaselineSpec.run`."""
    return spec.run(shelf, needed, report_steps)


def pace(run: Trainer, data: Dataset) -> float:
    """Seconds that a step of `run` takes here."""
    batch = data.train.take(run.recipe.batch_size)
    run.step(batch.inputs, batch.labels)
    began = time.process_time()  # not the clock on the wall: others may be at work now
    for _ in range(PACE_STEPS):
        run.step(batch.inputs, batch.labels)
    return (time.process_time() - began) / PACE_STEPS


def _differences(report_steps: StepReport, first: int) -> Progress:
    """The progress of a training from step `first` on, as differences for `report_steps`."""
    last = first

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        report_steps(done - last)
        last = done

    return progress


def final_metrics(model: nn.Module, watch: TrainingMonitor, data: Dataset) -> dict[str, Any]:
    """A finished training's numbers: at its end, and at the early-stopping point. The test split is seen twice."""
    stop, end = watch.stop, watch.curve[-1]
    at_end = evaluate(model, data.test)
    final = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(watch.best)
    at_stop = evaluate(model, data.test)
    model.load_state_dict(final)
    return {
        "steps": end.step,
        "stop_step": stop.step,
        "stop_validation_loss": stop.validation_loss,
        "stop_validation_accuracy": stop.validation_accuracy,
        "stop_test_accuracy": at_stop.accuracy,
        "final_validation_loss": end.validation_loss,
        "final_validation_accuracy": end.validation_accuracy,
        "final_test_accuracy": at_end.accuracy,
    }


def curve_rows(level: int, watch: TrainingMonitor) -> list[dict[str, Any]]:
    """What was seen of a level's training, a row a step."""
    rows = [{"level": level, **asdict(point)} for point in watch.curve]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def checkpoint_name(level: int) -> str:
    """What a level's training is called on a shelf while it runs."""
    return f"training-{level:02d}"


def load_saved_state(shelf: RunArtifacts, name: str) -> TrainingState:
    """A state that the dense training laid down."""
    return state_from_tensors(shelf.load_metadata(name)["step"], shelf.load_tensors(name))


_LOADED: dict[tuple[str, str], Dataset] = {}


def load_cached(name: str, device: str) -> Dataset:
    """The data set, in memory once a process; its validation split is the same for all replicates."""
    if (name, device) not in _LOADED:
        try:
            _LOADED[name, device] = load(name, device=device)
        except (Exception, SystemExit) as error:  # a user's function may fail in any way
            if isinstance(error, PrunusError) or ":" not in name:
                raise
            raise DataError(
                f"{name} was called without arguments and gave no data set: {type(error).__name__}: {error}"
            ) from error
    return _LOADED[name, device]
