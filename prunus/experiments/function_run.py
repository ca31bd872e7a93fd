"""A run whose procedure is a function that returns rows: one run per replicate and arm of an experiment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from prunus.errors import SpecError
from prunus.registry import import_object
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.runs.spec import RunSpec
from prunus.tickets.baseline import references
from prunus.training import Recipe
from prunus.training.recipe_checks import check_recipe
from prunus.types import MaskDict, Params


@dataclass(frozen=True)
class Output:
    """What a function returns that leaves tensors or masks for other runs."""

    rows: Sequence[Row] = ()
    tensors: Params | None = None
    masks: MaskDict | None = None


@dataclass(frozen=True)
class FunctionRun:
    """One call of a function, as a run in a store.

    The function is called as `function(settings, replicate, *inputs)`, where each input is the finished
    `RunDirectory` of a run in `inputs`. It returns rows, or an `Output`. Rows that have a "level" have one each.
    Where a function reads tensors of a file, its settings have a method `tensors_of_files()`, which returns them by the
    name of the file: their digest is recorded with the run, and the run is refused where a run that it reads was made
    of others.
    """

    kind: ClassVar[str] = "function"
    procedure: ClassVar[str] = "prunus.experiments.function_run:run_function"

    function: str = ""
    """Where the function is, "package.module:function"."""
    settings: Any = None
    """A frozen dataclass with a class variable `kind`."""
    replicate: int | None = 0
    """None for a run that all replicates share."""
    inputs: tuple[Any, ...] = ()
    """The runs whose finished directories the function reads."""
    version: int = 1
    """To be increased when the function computes something else than before."""

    @classmethod
    def of(cls, function: Callable[..., Any], settings: Any, **options: Any) -> "FunctionRun":
        """Make a run of a function, named by its module and its name.

        Args:
            function: A function at the top level of a module, called as `function(settings, replicate, *inputs)`.
            settings: A frozen dataclass with a class variable `kind`.
            **options: Values of the fields `replicate`, `inputs` and `version`.

        Returns:
            The run. Nothing is computed.
        """
        return cls(f"{function.__module__}:{function.__qualname__}", settings, **options)

    def changed(self, *inputs: RunSpec, **settings: Any) -> "FunctionRun":
        """Return the run with other inputs and with some settings changed."""
        return replace(self, settings=replace(self.settings, **settings), inputs=inputs)

    def dependencies(self) -> dict[str, RunSpec]:
        """Return the runs whose directories are read, by their position."""
        return {f"input-{i}": spec for i, spec in enumerate(self.inputs)}

    def cost(self) -> tuple[str, float]:
        """Return the unit, one call of this function, and 1. Raises SpecError where the settings are impossible."""
        check_settings(self.settings)
        return self.function, 1.0

    def code_references(self) -> tuple[str, ...]:
        """Return the functions of the user: the function of this run, a model, or a method."""
        return references(self.function, *(getattr(self.settings, name, "") for name in ("model", "method")))


def run_function(
    run: FunctionRun,
    directory: RunDirectory,
    needed: Mapping[str, RunDirectory],
    report_steps: Callable[[int], None] | None = None,
) -> Row:
    """Call the function of a run and store what it returns; the procedure of FunctionRun.

    Rows of an attempt that was killed while it stored them are kept: the function gives the same rows again.

    Args:
        run: The run to do.
        directory: Where rows, tensors and masks are stored.
        needed: The finished directories of the inputs, by the keys of `run.dependencies()`: "input-0", "input-1", …
        report_steps: Not used: a call of a function has no steps.

    Returns:
        The number of rows, {"rows": n}.

    Raises:
        UnknownNameError: The module of the function cannot be imported, or has no such function.
        SpecError: Two rows have the same level.
        StoreError: A file does not have the tensors that an input, or an earlier attempt, was computed with.
    """
    if hasattr(run.settings, "tensors_of_files"):
        for name, tensors in run.settings.tensors_of_files().items():
            directory.check_input(name, tensors)
    inputs = [needed[role] for role in run.dependencies()]
    output = import_object(run.function)(run.settings, run.replicate, *inputs)
    if not isinstance(output, Output):
        output = Output(output)
    levels = [row["level"] for row in output.rows if "level" in row]
    if repeated := [level for level in levels if levels.count(level) > 1]:
        raise SpecError(
            f"Expected rows of different levels from {run.function}, got level {repeated[0]!r} twice, where the second "
            'row would take the place of the first; use another key than "level".'
        )
    if output.tensors is not None:
        directory.save_tensors("tensors", output.tensors)
    if output.masks is not None:
        directory.save_masks("masks", output.masks)
    directory.append_rows(output.rows[len(directory.rows()) :])
    return {"rows": len(output.rows)}


def check_settings(settings: Any) -> None:
    """Check the recipe and the counts of the settings of a function.

    Raises:
        SpecError: A count is below 1, or the recipe is impossible.
    """
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if isinstance(value, Recipe):
            check_recipe(value)
            name, value = f"{name}.epochs", value.epochs
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise SpecError(f"Expected {name} to be at least 1, got {value}.")
