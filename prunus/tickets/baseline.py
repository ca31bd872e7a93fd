"""The baseline: the dense training that every ticket of a replicate is made from.

Source: Frankle & Carbin 2019, section 2 and Figure 2 (settings); Zhou et al. 2019.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from torch import nn

from prunus.data import load_data
from prunus.data.image_folder import ImageFiles
from prunus.errors import SpecError
from prunus.masks import Masks
from prunus.models import MODELS
from prunus.models.loading import make_model
from prunus.registry import import_object, lookup
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.tickets.fit_level import train_level_with
from prunus.tickets.monitor import TrainingMonitor
from prunus.training import RECIPES, NoConstraint, Recipe, evaluate, train
from prunus.training.checks import check_model
from prunus.training.constraint import Constraint
from prunus.training.fit import Fit
from prunus.training.losses import Loss, LossFunction, find_loss
from prunus.training.outputs import Forward
from prunus.training.recipe_checks import check_recipe
from prunus.training.sparse.backend import check_backend
from prunus.training.state import TrainingState, clone_tensors, state_from_tensors, state_to_tensors
from prunus.training.trainer import Trainer, steps_per_epoch
from prunus.types import Dataset, Params, Progress

MAX_TIMED_STEPS, MAX_TIMED_SECONDS = 20, 0.2
"""The time of a step is measured until one of the two is reached; a step of a convolutional network takes a second."""

Needed = Mapping[str, RunDirectory]
"""The directories of the finished runs that a run reads, by their role."""
StepReport = Callable[[int], None]
"""Called during the trainings of a run with the number of steps since the last call."""


@dataclass(frozen=True)
class BaselineSpec:
    """One dense training of one replicate."""

    kind: ClassVar[str] = "baseline"
    procedure: ClassVar[str] = "prunus.tickets.baseline:run_baseline"

    model: str | Callable[..., nn.Module] = "lenet-300-100"
    """A key of MODELS, or "package.module:function" of a function that takes `seed` and returns a module; or the
    function itself. A spec with objects instead of names can be run, but has no ID and cannot be stored."""
    data: str | Dataset = "mnist"
    """A key of DATASETS, or "package.module:function" of a function without arguments that returns a `Dataset`; or the
    data set itself."""
    recipe: Recipe = field(default_factory=lambda: RECIPES["lenet-300-100"])
    replicate: int = 0
    examples: int | None = None
    """Number of training examples. A third as many, at least one, are used of the validation and of the test split.
    None: all."""
    eval_every: int = 100
    """Number of steps between evaluations."""
    checkpoint_steps: tuple[int, ...] = ()
    """Steps whose complete training state is kept, to rewind to."""
    test_curve: bool = False
    """Whether the test split is evaluated during training as well, for a figure."""
    device: str = "cpu"
    backend: str = "dense"
    """What trains and evaluates, as for `prunus.train`. It is part of the ID, since results differ by rounding; another
    backend than "dense" is recorded in the rows."""
    fit: Fit | None = None
    """A function (model, masks) that trains the network in place of the recipe. A spec with one cannot be stored."""
    forward: str | Forward | None = None
    """As for `prunus.train`, or "package.module:function"."""
    loss: str | Loss | LossFunction | None = None
    """As for `prunus.train`, or "package.module:function"."""

    def dependencies(self) -> dict[str, Any]:
        """Return the specs of the runs that this run reads: none."""
        return {}

    def code_references(self) -> tuple[str, ...]:
        """Return the references to the user's functions that this run calls."""
        return references(self.model, self.data, self.forward, self.loss)

    @property
    def task(self) -> dict[str, Any]:
        """The arguments forward and loss of `train` and `evaluate`; empty for a classifier of labels."""
        task = {"forward": self.forward, "loss": self.loss}
        return {
            key: import_object(value) if isinstance(value, str) and ":" in value else value
            for key, value in task.items()
            if value is not None
        }

    def cost(self) -> tuple[str, float]:
        """Return the unit, and the number of training steps. Raises SpecError if the settings are out of range."""
        return f"{self.model}/{self.recipe.batch_size}/{self.device}", float(self.total_steps())

    def total_steps(self) -> int:
        """Return the number of steps of the training. Raises SpecError if the settings are out of range."""
        self._check()
        total = self.recipe.epochs * steps_per_epoch(self.recipe, self.load_data().train)
        for step in self.checkpoint_steps:
            if not 0 <= step < total:
                raise SpecError(
                    f"Expected checkpoint_steps in 0 to {total - 1}, got step {step}; training has {total} steps."
                )
        return total

    def check_trained_by_recipe(self) -> None:
        """Raise SpecError if `fit` trains the network, which takes masks alone."""
        if self.fit is not None:
            raise SpecError(
                "Expected a baseline that is trained by a recipe for a learned mask or for instability, got one with "
                "fit; give it a recipe, and leave out fit."
            )

    def check_has_state(self, setting: str, step: int) -> None:
        """Raise SpecError unless the state at a step, to which `setting` is set, is kept.

        Args:
            setting: The name of the setting, for the error.
            step: The step that the setting has as its value; the state at step 0 is always kept.

        Raises:
            SpecError: The step is neither 0 nor among `checkpoint_steps`.
        """
        if step and step not in self.checkpoint_steps:
            raise SpecError(
                f"Expected {setting} to be 0 or among the baseline's checkpoint_steps {self.checkpoint_steps}, got "
                f"{step}; add it there."
            )

    def load_data(self) -> Dataset:
        """Return the data set, reduced to `examples`. Raises SpecError if its images are read from files."""
        source, device = self.data, self.device
        data = load_data_cached(source, device) if isinstance(source, str) else source.to(device)
        if isinstance(data.train, ImageFiles):
            raise SpecError(
                f"Expected a data set in memory for a baseline and its tickets, got {data.name}, a folder of images "
                "that are read while a network is trained; prune with prunus.prune and retrain with prunus.train."
            )
        return data if self.examples is None else data.take(self.examples, max(1, self.examples // 3))

    def checked_data(self, directory: RunDirectory) -> Dataset:
        """Return the data set for a run, after those of a user's function are compared with earlier computations.

        Args:
            directory: The directory of the run, which records the digest of the data.

        Returns:
            The data set, reduced to `examples`.

        Raises:
            StoreError: The function returns other data than the run, or a run that it reads, was computed with.
        """
        data = self.load_data()
        if isinstance(self.data, str) and ":" in self.data:
            directory.check_input(self.data, data_tensors(data))
        return data

    def make_network(self, seed: int | None = None) -> nn.Module:
        """Return the untrained network of this replicate, or of another seed. Raises ModelError if that fails."""
        seed = derive_seed(self.replicate, "model") if seed is None else seed
        return make_model(self.model, seed).to(self.device)

    def train(
        self,
        model: nn.Module,
        directory: RunDirectory,
        level: int,
        *,
        constraint: Constraint | None = None,
        start: TrainingState | None = None,
        recipe: Recipe | None = None,
        checkpoint_steps: tuple[int, ...] = (),
        seed: int | None = None,
        report_steps: StepReport | None = None,
    ) -> TrainingMonitor:
        """Train a network on this data, in the order of examples of this replicate.

        Args:
            model: Trained in place.
            directory: Where the training writes its checkpoint, from which a repeated call continues.
            level: Names the checkpoint.
            constraint: Holds after every step; None: no constraint.
            start: State that training starts from; None: the model as it is, at step 0.
            recipe: None: the recipe of the baseline.
            checkpoint_steps: Steps whose complete state is kept.
            seed: Seed of the order of examples; None: that of this replicate.
            report_steps: Called with the number of steps since the last call.

        Returns:
            The monitor that observed the training.

        Raises:
            SpecError: The network is trained by `fit`, which takes masks alone, and there is another constraint or a
                seed.
        """
        if seed is not None or not isinstance(constraint, Masks | None):
            self.check_trained_by_recipe()
        elif self.fit is not None:
            return train_level_with(self.fit, model, self.load_data(), constraint, start, self.task)
        data, recipe = self.checked_data(directory), recipe or self.recipe
        first_step = start.step if start else 0
        constraint = constraint if constraint is not None else NoConstraint(model)
        monitor = TrainingMonitor(
            data.validation,
            first_step=first_step,
            last_step=recipe.epochs * steps_per_epoch(recipe, data.train),
            eval_every=self.eval_every,
            checkpoint_steps=checkpoint_steps,
            test=data.test if self.test_curve else None,
            count_violations=getattr(constraint, "verify", None),
        )
        epochs = train(
            model,
            data,
            recipe,
            constraint=constraint,
            seed=derive_seed(self.replicate, "train") if seed is None else seed,
            start=start,
            observer=monitor,
            checkpoint=directory.checkpoint_path(checkpoint_name(level)),
            evaluate_every_epoch=False,  # the monitor evaluates
            progress=None if report_steps is None else _report_differences(report_steps, first_step),
            backend=self.backend,
            **self.task,
        )
        monitor.backend = epochs[-1].backend
        return monitor

    def pace(self) -> float:
        """Measure the seconds of one training step on this machine."""
        model = self.make_network()
        return self.time_step(model, self.recipe, NoConstraint(model))

    def time_step(self, model: nn.Module, recipe: Recipe, constraint: Constraint) -> float:
        """Measure the CPU seconds of one training step on this data, as a mean over a few steps.

        Args:
            model: Changed by the steps.
            recipe: How it is trained.
            constraint: Holds after every step.

        Returns:
            The mean CPU time of one step of this process in seconds; a first step is not counted.

        Raises:
            ModelError, DataError: The model cannot be trained on the data.
        """
        data, forward, loss = self.load_data(), self.task.get("forward"), find_loss(self.task.get("loss"))
        check_model(model, data, forward=forward, loss=loss)
        trainer, batch = (
            Trainer(model, recipe, constraint, forward=forward, loss=loss),
            data.train.take(recipe.batch_size),
        )
        trainer.step(batch.inputs, batch.labels)
        started = time.process_time()  # not wall-clock time: other processes may be running
        number, seconds = 0, 0.0
        while number < MAX_TIMED_STEPS and seconds < MAX_TIMED_SECONDS:
            trainer.step(batch.inputs, batch.labels)
            number, seconds = number + 1, time.process_time() - started
        return seconds / number

    def _check(self) -> None:
        why = "tickets train for the full length, and the early-stopping point is found afterwards"
        check_full_training(self.recipe, why, eval_every=self.eval_every, examples=self.examples)
        if isinstance(self.model, str):
            lookup("model", MODELS, self.model) if ":" not in self.model else import_object(self.model)
        find_loss(self.task.get("loss"))
        check_recipe(self.recipe)
        check_backend(self.backend)


def check_full_training(recipe: Recipe, why: str, **counts: int | None) -> None:
    """Check the length of a training that does not stop early, and other counts.

    Args:
        recipe: The recipe of the training.
        why: Why it does not stop early, for the error.
        **counts: Numbers that must be at least 1, by the name of their setting; None is not checked.

    Raises:
        SpecError: A count, or the number of epochs or the batch size, is below 1, or the recipe has a patience.
    """
    counts |= {"recipe.epochs": recipe.epochs, "recipe.batch_size": recipe.batch_size}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise SpecError(f"Expected {name} of at least 1, got {count}.")
    if recipe.patience is not None:
        raise SpecError(f"Expected recipe.patience = None, got {recipe.patience}; {why}.")


def references(*names: object) -> tuple[str, ...]:
    """The references "package.module:name" among names and objects, without those to functions of prunus."""
    texts = (name for name in names if isinstance(name, str))
    return tuple(name for name in texts if ":" in name and not name.startswith("prunus."))


class BaselineRun:
    """What the specs of all runs that start from a baseline have in common."""

    baseline: BaselineSpec

    @property
    def device(self) -> str:
        """The device of the computation."""
        return self.baseline.device

    def dependencies(self) -> dict[str, Any]:
        """Return the specs of the runs that this run reads, by role: the baseline."""
        return {"baseline": self.baseline}

    def code_references(self) -> tuple[str, ...]:
        """Return the references to the user's functions that this run calls besides those of its dependencies."""
        return ()

    def pace(self) -> float:
        """Measure the seconds of one training step on this machine."""
        return self.baseline.pace()


@dataclass(frozen=True)
class Baseline:
    """The results of a finished baseline that tickets use."""

    initial: Params
    """The complete model at step 0: parameters and buffers."""
    rewind: TrainingState
    """The complete training state at the rewind step."""
    final: Params
    """The complete model at the end of the training."""

    @classmethod
    def load(cls, directory: RunDirectory, rewind_step: int = 0) -> "Baseline":
        """Read a baseline, with its state at `rewind_step`, from the directory of a finished run.

        Args:
            directory: The directory of the finished run.
            rewind_step: A step of the `checkpoint_steps` of the baseline, or 0.

        Returns:
            The baseline, with its tensors on the CPU.

        Raises:
            StoreError: The state at that step was not saved, or a file is missing or damaged.
        """
        initial = load_saved_state(directory, 0).model
        return cls(initial, load_saved_state(directory, rewind_step), directory.load_tensors("final"))


def run_baseline(
    spec: BaselineSpec, directory: RunDirectory, needed: Needed, report_steps: StepReport | None = None
) -> Row:
    """Train the network of a replicate; save the initialization, the requested states, and the end.

    Args:
        spec: The settings.
        directory: Where results and checkpoints are written; a repeated call continues from there.
        needed: Directories of the dependencies; none.
        report_steps: Called with the number of training steps since the last call.

    Returns:
        The row of the training, at level 0.

    Raises:
        SpecError: If settings are out of range.
    """
    spec.total_steps()
    if not directory.rows():
        started, model = time.perf_counter(), spec.make_network()
        steps = (0, *spec.checkpoint_steps)
        monitor = spec.train(model, directory, 0, checkpoint_steps=steps, report_steps=report_steps)
        for step, state in monitor.states.items():
            directory.save_tensors(f"state-{step}", state_to_tensors(state), {"step": step})
        directory.save_tensors("final", model.state_dict())
        metrics = final_metrics(model, monitor, spec)
        row = {"level": 0, "density": 1.0, **metrics, "seconds": round(time.perf_counter() - started, 2)}
        directory.append_curve(monitor.curve_rows(0))
        directory.append_row(row)
    directory.remove(checkpoint_name(0))
    return dict(directory.rows()[0])


def _report_differences(report_steps: StepReport, first_step: int) -> Progress:
    """Convert the progress of a training, in steps done so far, to numbers of new steps."""
    last = first_step

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        report_steps(done - last)
        last = done

    return progress


def final_metrics(model: nn.Module, monitor: TrainingMonitor, spec: BaselineSpec) -> Row:
    """Evaluate a finished training at its end and at the early-stopping point.

    Args:
        model: The trained model; evaluated twice on the test split, and unchanged afterwards.
        monitor: What was observed of its training.
        spec: The data that it was trained on, and the backend.

    Returns:
        Losses in nats, accuracies in percent, and steps; test losses, where the spec has a loss or a forward function;
        what trained, unless the spec says "dense". There are no accuracies where labels are not classes.
    """
    stop, end, test = monitor.stop, monitor.curve[-1], spec.load_data().test
    at_end = evaluate(model, test, backend=spec.backend, **spec.task)
    final = clone_tensors(model.state_dict())
    model.load_state_dict(monitor.best)
    at_stop = evaluate(model, test, backend=spec.backend, **spec.task)
    model.load_state_dict(final)
    metrics = {
        "steps": end.step,
        "stop_step": stop.step,
        "stop_validation_loss": stop.validation_loss,
        "stop_validation_accuracy": stop.validation_accuracy,
        "stop_test_accuracy": at_stop.accuracy,
        "final_validation_loss": end.validation_loss,
        "final_validation_accuracy": end.validation_accuracy,
        "final_test_accuracy": at_end.accuracy,
        **({} if spec.backend == "dense" else {"backend": monitor.backend}),
        **({"stop_test_loss": at_stop.loss, "final_test_loss": at_end.loss} if spec.task else {}),
    }
    return {k: v for k, v in metrics.items() if not ("accuracy" in k and math.isnan(v))}


def checkpoint_name(level: int) -> str:
    """Return the name of the checkpoint of a level's training, which is removed when the level is saved."""
    return f"training-{level:02d}"


def masks_name(level: int) -> str:
    """Return the name under which a level's masks are saved."""
    return f"masks-{level:02d}"


def load_saved_state(directory: RunDirectory, step: int) -> TrainingState:
    """Return the training state that a baseline saved at a step.

    Args:
        directory: The directory of the finished baseline.
        step: A step of the `checkpoint_steps` of the baseline, or 0.

    Returns:
        The complete state, with its tensors on the CPU.

    Raises:
        StoreError: The state at that step was not saved, or its file is missing or damaged.
    """
    return state_from_tensors(step, directory.load_tensors(f"state-{step}"))


def data_tensors(data: Dataset) -> Params:
    """Return the tensors of all splits of a data set, by name."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    tensors = {f"{name}/inputs": split.inputs for name, split in splits.items()}
    return tensors | {f"{name}/labels": split.labels for name, split in splits.items()}


@cache
def load_data_cached(name: str, device: str) -> Dataset:
    """Load a data set once per process; its validation split is the same for all replicates.

    Args:
        name: A key of DATASETS, or "package.module:function".
        device: Where the tensors are placed.

    Returns:
        The data set.

    Raises:
        DataError: If the user's function fails.
    """
    return load_data(name, device=device)
