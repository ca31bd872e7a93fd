"""A run whose procedure is a function that returns rows: one run per replicate and arm of an experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from prunus.errors import SpecError
from prunus.experiments.rows import Row
from prunus.registry import import_object
from prunus.runs.directory import RunFolder
from prunus.training import Recipe
from prunus.training.loop import check_recipe
from prunus.types import MaskDict, Params

ESTIMATED_SECONDS = 60.0
"""Assumed duration of a function, until a run of it has been timed in the store."""


@dataclass(frozen=True)
class Output:
    """What a function returns that leaves tensors or masks for other runs."""

    rows: Sequence[Row] = ()
    tensors: Params | None = None
    masks: MaskDict | None = None


@dataclass(frozen=True)
class FunctionRun:
    """One call of a function, as a run in a store.

    The function is called as `function(settings, replicate, *inputs, progress=...)`, where each input is the finished
    `RunFolder` of a run in `inputs`. It returns rows, or an `Output`.
    """

    kind: ClassVar[str] = "function"

    function: str = ""
    """Where the function is, "package.module:function"."""
    settings: Any = None
    """A frozen dataclass with a class variable `kind`."""
    replicate: int = 0
    inputs: tuple[Any, ...] = ()
    """The runs whose finished directories the function reads."""
    version: int = 1
    """To be increased when the function computes something else than before."""

    @classmethod
    def of(cls, function: Callable[..., Any], settings: Any, **options: Any) -> "FunctionRun":
        """Make a run of a function, named by its module and its name."""
        return cls(f"{function.__module__}:{function.__qualname__}", settings, **options)

    @property
    def device(self) -> str:
        """The device that the function computes on."""
        return "cpu"

    def needs(self) -> tuple[Any, ...]:
        """Return the runs whose directories are read."""
        return self.inputs

    def cost(self) -> tuple[str, float]:
        """Return the unit, one call of this function, and 1. Raises SpecError where the settings are impossible."""
        check_settings(self.settings)
        return self.function, 1.0

    def pace(self) -> float:
        """Return the assumed seconds of a call: a function cannot be timed without being run."""
        return ESTIMATED_SECONDS

    def run(self, directory: RunFolder, needed: Sequence[RunFolder], report_steps: Any = None) -> Row:
        """Call the function and store what it returns."""
        output = import_object(self.function)(
            self.settings, self.replicate, *needed, progress=lambda *_: directory.beat()
        )
        if not isinstance(output, Output):
            output = Output(output)
        if output.tensors is not None:
            directory.put("tensors", output.tensors)
        if output.masks is not None:
            directory.put_masks("masks", output.masks)
        for index, row in enumerate(output.rows):
            directory.append({"index": index, **row}, "index")
        return {"rows": len(output.rows)}


def check_settings(settings: Any) -> None:
    """Check the recipe and the counts of the settings of a function.

    Raises:
        SpecError: A count is below 1, or the recipe is impossible.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Recipe):
            check_recipe(value)
            for name in ("epochs", "batch_size"):
                _check_positive(f"{field.name}.{name}", getattr(value, name))
        elif isinstance(value, int):
            _check_positive(field.name, value)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise SpecError(f"Expected {name} to be at least 1, got {value}.")
