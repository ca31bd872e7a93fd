"""Lottery tickets in one call, from a model function and a data set in memory."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from prunus.data import DATASETS
from prunus.data.validation import check_dataset
from prunus.errors import SpecError, StoreError, UnknownNameError
from prunus.masks import all_kept
from prunus.models import MODELS
from prunus.pruning.obs.method import PruningMethod
from prunus.pruning.scopes import Scope
from prunus.pruning.statistics import Criterion, Statistics
from prunus.registry import check_callbacks, import_object
from prunus.tickets.actions import Mask0Action, Mask1Action
from prunus.training import Recipe
from prunus.training.fit import Fit, check_fit
from prunus.training.losses import Loss, LossFunction
from prunus.training.outputs import Forward
from prunus.training.trainer import steps_per_epoch
from prunus.types import Dataset, MaskDict, Params, Scores

if TYPE_CHECKING:  # `import prunus` stays fast: what runs tickets is imported by the first call
    from prunus.runs.content import Row
    from prunus.runs.store import Store
    from prunus.tickets.rounds import Round
    from prunus.tickets.ticket import PruningRates, TicketSpec


@dataclass(frozen=True)
class LotteryLevel:
    """The training of one level; level 0 is the dense network. Losses in nats, accuracies in percent.

    Accuracies are NaN where labels are not classes, and test losses where `lottery` has neither a loss nor a forward
    function.
    """

    level: int
    density: float
    stop_step: int
    """The early-stopping step: the evaluated step with the lowest validation loss."""
    stop_test_accuracy: float
    """The test accuracy at that step."""
    final_validation_accuracy: float
    final_test_accuracy: float
    verified: bool
    """Whether all invariants of the level hold: exact counts, nested masks, kept and pruned weights, other tensors."""
    stop_test_loss: float = math.nan
    """The test loss at the early-stopping step."""
    final_test_loss: float = math.nan


@dataclass(frozen=True)
class LotteryResult:
    """The levels of a lottery ticket, from the dense network to the last round."""

    levels: tuple[LotteryLevel, ...]
    ticket: "TicketSpec" = field(repr=False)
    """All settings."""
    _masks: dict[int, MaskDict] = field(repr=False)
    _weights: dict[int, Params] = field(repr=False)

    @property
    def verified(self) -> bool:
        """Whether the invariants of all levels hold."""
        return all(level.verified for level in self.levels)

    def masks(self, level: int) -> MaskDict:
        """The masks of a level."""
        return self._masks[self._check(level)]

    def weights(self, level: int) -> Params:
        """The `state_dict` at the end of the training of a level.

        Raises:
            StoreError: The result is from a store, which keeps the weights of the dense network and of the last level.
        """
        if self._check(level) not in self._weights:
            raise StoreError(
                f"Expected a level whose weights the store keeps, {sorted(self._weights)}, got {level}; leave out "
                "`store` to keep all in memory."
            )
        return self._weights[level]

    def _check(self, level: int) -> int:
        if level not in self._masks:
            raise SpecError(f"Expected a level from 0 to {len(self.levels) - 1}, got {level}.")
        return level


def lottery(
    model_fn: str | Callable[..., nn.Module],
    data: str | Dataset,
    *,
    rounds: int = 10,
    criterion: str | PruningMethod | Criterion | Callable[[Statistics], Scores] = "large_final",
    scope: str | Scope = "layer",
    exclude: Sequence[str] = (),
    mask1: str | Mask1Action = "rewind",
    mask0: str | Mask0Action = "zero",
    pruning_rates: "PruningRates | None" = None,
    recipe: Recipe | None = None,
    fit: Fit | None = None,
    forward: str | Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    replicate: int = 0,
    backend: str = "auto",
    store: "Store | str | PathLike[str] | None" = None,
    report: Callable[[LotteryLevel], None] | None = None,
) -> LotteryResult:
    """Train a network, then prune it, reset its weights and train it again, in several rounds.

    Source: Frankle & Carbin 2019, section 2; Zhou et al. 2019, section 2.

    Args:
        model_fn: A function that returns the untrained network; if it has a parameter `seed`, it is called with a seed
            that depends on the replicate. Or a key of MODELS, or "package.module:function".
        data: The data set. Or a key of DATASETS, or "package.module:function".
        rounds: The number of rounds of pruning; each is a level.
        criterion: A criterion or pruning method, its name, or a function of statistics.
        scope: Which weights are ranked together: a scope or its name.
        exclude: Shell patterns of the names of weights that are not pruned.
        mask1: What kept weights start from: an action or its name.
        mask0: What pruned weights are set to: an action or its name.
        pruning_rates: The fraction of the remaining weights that a round prunes. None: 20 % of linear layers, 10 % of
            convolutions and of the last layer.
        recipe: How every level is trained; needed unless there is `fit`.
        fit: A function (model, masks) that trains every level in place of the recipe; it calls
            `masks.attach(optimizer)`. The network is evaluated before and afterwards only, as steps 0 and 1.
        forward: (model, (inputs, labels)) -> outputs, as for `train`, or "package.module:function".
        loss: The loss of training, of evaluations and of criteria that differentiate one, as for `train`, or
            "package.module:function".
        replicate: Selects the seeds of all random choices.
        backend: What trains and evaluates, as for `prunus.train`; it is part of the identity of the runs in a store.
        store: A store of runs, in which finished runs are found again and interrupted ones are resumed. Then every
            argument needs a name, which identifies the run: functions must be importable. None: nothing is kept on
            disk.
        report: Called with each level, as soon as it is trained; with a store, after all of them.

    Returns:
        The levels, with their masks and weights.

    Raises:
        SpecError: Settings contradict each other, an object without a name is to be stored, or the data are a folder
            of images.
        TrainingError: `fit` changed a pruned weight.
        UnknownNameError: A name is not known.
        DensityError: The scope cannot reach the density of a level, or a layer would keep no weight.
        ModelError, DataError: The model cannot be trained on the data.

    Example:
        >>> import prunus
        >>> def make_model() -> nn.Module:
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> data = prunus.load_data("digits").take(240, 80)
        >>> result = prunus.lottery(make_model, data, rounds=2, recipe=prunus.Recipe(2, 0.01, 60))
        >>> [round(level.density, 2) for level in result.levels], result.verified
        ([1.0, 0.81, 0.66], True)
        >>> int(result.masks(2)["1.weight"].sum())  # 2048 weights, twice less 20 %
        1311
    """
    from prunus.runs.store import Store
    from prunus.tickets.baseline import BaselineSpec
    from prunus.tickets.ticket import PruningRates, TicketSpec

    if isinstance(exclude, str):
        raise SpecError(f"Expected exclude to be a list of patterns, got {exclude!r}; write [{exclude!r}].")
    if not (isinstance(data, str) or (callable(data) and store is not None)):  # a store takes its name
        check_dataset(data)
    check_callbacks(report=report)
    check_fit(fit, backend=backend if backend == "sparse" else None)
    if (recipe is None) == (fit is None) or (fit is not None and store is not None):
        raise SpecError(
            "Expected either a recipe or fit, and no store with fit, as a run with fit has no ID."
        )
    recipe = recipe or Recipe(epochs=1, learning_rate=0.0, batch_size=60)  # with `fit`, it is not used
    settings: dict[str, Any] = {"model": model_fn, "data": data, "forward": forward, "loss": loss}
    choices: dict[str, Any] = {"criterion": criterion, "scope": scope, "mask1": mask1, "mask0": mask0}
    if store is not None:
        settings, choices = ({k: _name(k, v) for k, v in part.items()} for part in (settings, choices))
    baseline = BaselineSpec(**settings, recipe=recipe, replicate=replicate, backend=backend)
    steps = steps_per_epoch(recipe, baseline.load_data().train)
    baseline = replace(baseline, eval_every=min(baseline.eval_every, steps), fit=fit)
    rates = pruning_rates or PruningRates()
    ticket = TicketSpec(baseline, rounds=rounds, pruning_rates=rates, exclude=tuple(exclude), **choices)
    ticket.check()
    if store is None:
        return _in_memory(ticket, report)
    result = _stored(ticket, store if isinstance(store, Store) else Store(Path(store)))
    if report is not None:
        for level in result.levels:
            report(level)
    return result


def _in_memory(ticket: "TicketSpec", report: Callable[[LotteryLevel], None] | None) -> LotteryResult:
    """Run both procedures in a temporary folder, and keep every round."""
    from prunus.runs.directory import RunDirectory
    from prunus.runs.executors.run_task import SingleThread
    from prunus.tickets.baseline import run_baseline
    from prunus.tickets.procedure import run_ticket

    levels: list[LotteryLevel] = []
    masks: dict[int, MaskDict] = {}
    weights: dict[int, Params] = {}

    def keep(row: "Row", level_masks: MaskDict, level_weights: Params) -> None:
        levels.append(_level(row))
        masks[levels[-1].level], weights[levels[-1].level] = level_masks, level_weights
        if report is not None:
            report(levels[-1])

    def keep_round(finished: "Round") -> None:
        keep(finished.row, finished.masks, {name: t.clone() for name, t in finished.final.items()})

    with tempfile.TemporaryDirectory(prefix="prunus-") as folder, SingleThread():
        directories = [RunDirectory(Path(folder) / name) for name in ("baseline", "ticket")]
        for directory in directories:
            directory.path.mkdir()
        row = run_baseline(ticket.baseline, directories[0], {})
        keep(row, _dense_masks(ticket), directories[0].load_tensors("final"))
        run_ticket(ticket, directories[1], {"baseline": directories[0]}, report_round=keep_round)
    return LotteryResult(tuple(levels), ticket, masks, weights)


def _stored(ticket: "TicketSpec", store: "Store") -> LotteryResult:
    """Run what the store does not have, and read the results from it."""
    from prunus.runs.executors import run_plan
    from prunus.runs.spec import run_id
    from prunus.tickets.baseline import masks_name

    run_plan([ticket], store, executor="inline")
    directories = [store.directory(run_id(spec)) for spec in (ticket.baseline, ticket)]
    rows = [row for directory in directories for row in directory.rows()]
    masks = {level: directories[1].load_masks(masks_name(level)) for level in ticket.trained_levels}
    weights = dict(zip((0, ticket.rounds), (d.load_tensors("final") for d in directories), strict=True))
    return LotteryResult(tuple(map(_level, rows)), ticket, {0: _dense_masks(ticket), **masks}, weights)


def _dense_masks(ticket: "TicketSpec") -> MaskDict:
    return all_kept(ticket.weights_of(ticket.baseline.make_network()))


def _level(row: "Row") -> LotteryLevel:
    verified = bool(row.get("invariants", {}).get("passed", row["level"] == 0))
    names = [name for name in LotteryLevel.__dataclass_fields__ if name != "verified"]
    return LotteryLevel(**{name: row.get(name, math.nan) for name in names}, verified=verified)


def _name(setting: str, value: object) -> str | None:
    """The name that identifies a setting in a store. Raises SpecError if the object cannot be imported by a name."""
    if value is None or isinstance(value, str):
        return value
    name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    try:
        if import_object(name) is value:
            return name
    except UnknownNameError:
        pass
    built_in: dict[str, Mapping[str, object]] = {"model": MODELS, "data": DATASETS}
    for name, component in built_in.get(setting, {}).items():
        if component is value:
            return name
    raise SpecError(
        f"Expected a name or an importable function for {setting} of a run in a store, got {type(value).__name__} "
        'that has none; pass "package.module:name", or leave out `store`.'
    )
