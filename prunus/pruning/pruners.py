"""Pruners: criteria that look at a network with examples, most of which also update the weights that stay.

    obs              OBS layer by layer, exactly, row by row               `layerwise.exact_obs`        updates
    sparse_gpt       OBS layer by layer, column by column                  `layerwise.sparse_gpt`       updates
    fisher           OBS with the blockwise empirical Fisher               `second_order.fisher`        updates
    full_obs         OBS with the inverse Hessian of the whole network     `second_order.obs`           updates
    obd              OBD with the Levenberg-Marquardt diagonal             `second_order.obd`
    obd_hutchinson   the same with an estimated diagonal, any network      `second_order.obd`

`AT_WEIGHTS` has the criteria snip, gradient, grasp and synflow as they are at trained weights.

A pruner stands wherever a criterion stands: in schedules with retraining, Deep Compression, tickets (which take its
masks alone) and `prunus prune`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, final

import torch
from torch import nn

from prunus.errors import StatisticsError, UpdateRejectedWarning
from prunus.masks import apply_masks
from prunus.pruning.calibration_checks import check_is_tensor
from prunus.pruning.criteria import CRITERIA, Criterion
from prunus.pruning.layerwise import SparsityPattern, exact_obs, sparse_gpt
from prunus.pruning.layerwise.hessian import DAMPING as OF_LAYERS
from prunus.pruning.layerwise.sparse_gpt import SELECT
from prunus.pruning.scopes import Scope
from prunus.pruning.scoring_batch import make_scoring_batch
from prunus.pruning.second_order import (
    Objective,
    PruneFn,
    PruneResult,
    PruningMethod,
    PruningState,
    criterion_method,
    fisher,
    make_objective,
    obd,
    obs,
    prune_weights,
)
from prunus.pruning.second_order.fisher import DAMPING as OF_FISHER
from prunus.pruning.second_order.inverse_hessian import check_size
from prunus.pruning.second_order.obs import DAMPING as OF_OBS
from prunus.pruning.second_order.pruning_state import CriterionState
from prunus.registry import import_object, lookup
from prunus.seeds import derive_seed, make_generator
from prunus.types import Density, MaskDict, Params, Progress, Split, Statistics

ROUNDING = 1e-6
"""Relative difference of two errors that is rounding."""
STEPS = (0.5, 0.25, 0.125)
"""Shares of an update that are tried where the whole of it raises the error."""


MAX_DAMPING = 1e9
"""Far above any curvature, an update is nothing but rounding, and products of the damping overflow."""


@final
@dataclass(frozen=True)
class Pruner:
    """How to prune a network that can be looked at; `PRUNERS` has one a method.

    Raises StatisticsError where damping or cuts are asked for that it has no use for, or damping out of range.
    """

    line: str
    """What it is, for lists."""
    make: "Callable[[Pruner, nn.Module, Split, int], PruneFn]"
    """(itself, the network, the examples to look at, a seed) -> the way of pruning."""
    scope: str = "layer"
    """The name of the scope it will be used under: what a hole looks like."""
    examples: int = 1024
    """Training examples to look at, drawn by the seed."""
    damping: float | None = None
    """As the method means it; None: its own."""
    cuts: int = 1
    """Steps of equal size; the curvature is looked at anew before each."""
    inverts: bool = True
    """Whether it inverts a curvature, so that damping means something."""
    undamped: bool = False
    """Whether it can do with a damping of zero."""
    stepwise: bool = True
    """Whether it can prune in more than one cut."""
    progress: Progress | None = None
    """Called after each step of long work."""
    check_size: Callable[[int], None] = lambda weights: None
    """Raises ModelError where it cannot take so many weights together."""

    def __post_init__(self) -> None:
        if self.damping is not None and not self.inverts:
            raise StatisticsError(
                f"Damping {self.damping:g} was asked for, but nothing is inverted: {self.line} "
                f"These invert: {', '.join(name for name, one in PRUNERS.items() if one.inverts)}."
            )
        is_in_range = self.damping is None or 0 <= self.damping <= MAX_DAMPING
        if not is_in_range or (self.damping == 0 and not self.undamped):
            raise StatisticsError(
                f"Damping {self.damping:g} was asked for; it must be {'at least' if self.undamped else 'above'} 0 and "
                f"at most {MAX_DAMPING:g}, as in 0.01: {self.line}"
            )
        if self.cuts != 1 and not self.stepwise:
            raise StatisticsError(f"{self.cuts} cuts were asked for, but it prunes in one go: {self.line}")

    def on(self, model: nn.Module, split: Split, seed: int, progress: Progress | None = None) -> PruneFn:
        """This way of pruning `model`, with `examples` of `split` drawn by `seed`; `model` is not changed.

        `progress` is called after each step of long work.

        Raises what `drawn` raises.
        """
        asked = self if progress is None else replace(self, progress=progress)
        return self.make(
            asked, model, sample_examples(split, self.examples, seed), derive_seed(seed, "pruner")
        )

    def damped(self, own: float) -> float:
        """The damping asked for, else the method's own."""
        return own if self.damping is None else self.damping


def sample_examples(split: Split, examples: int, seed: int) -> Split:
    """Some examples of `split`, or all where it has no more, in an order drawn by `seed`.

    Raises StatisticsError where there is none, or not a label for every input.
    """
    check_is_tensor(split.inputs)
    check_is_tensor(split.labels, "calibration labels")
    if not split.inputs.dim() or not split.labels.dim():
        raise StatisticsError(
            f"Expected calibration inputs [N, ...] with labels [N], got {list(split.inputs.shape)} with "
            f"{list(split.labels.shape)}; add a dimension for the examples."
        )
    if len(split.inputs) != len(split.labels):
        raise StatisticsError(
            f"Pruning was to look at {len(split.inputs)} inputs with {len(split.labels)} labels; pass a split with one "
            "label for each input."
        )
    if examples < 1 or not len(split):
        raise StatisticsError(
            f"Pruning was to look at {examples} of {len(split)} examples; at least one is needed."
        )
    draw = torch.randperm(len(split), generator=make_generator(seed, "calibration"))[:examples]
    chosen = draw.to(split.labels.device)
    return Split(split.inputs[chosen], split.labels[chosen])


def prune_fn_from_criterion(criterion: Criterion) -> PruneFn:
    """A criterion that looks at nothing but weights, as a way of pruning: what goes is set to zero."""

    def prune(
        weights: Params, density: Density, scope: Scope, *, within: MaskDict | None = None, seed: int = 0
    ) -> PruneResult:
        return prune_weights(
            criterion_method(criterion, seed), weights, density, scope, within=within, seed=seed
        )

    return prune


def make_prune_fn(
    criterion: "Criterion | Pruner",
    model: nn.Module,
    split: Split,
    seed: int,
    progress: Progress | None = None,
) -> PruneFn:
    """The way of pruning of a criterion or a pruner; `progress` is called after each step of long work."""
    return (
        criterion.on(model, split, seed, progress)
        if isinstance(criterion, Pruner)
        else prune_fn_from_criterion(criterion)
    )


def get_criterion(
    name: str, scope: str = "layer", table: "Mapping[str, Criterion | Pruner] | None" = None
) -> "Criterion | Pruner":
    """The pruner or criterion of this name, or yours: "package.module:name".

    Args:
        scope: the name of the scope it will be used under.
        table: where to look; None: pruners, criteria of gradients at the weights as they are, and the other criteria.

    Raises UnknownNameError.

    >>> get_criterion("obs", "2:4").scope
    '2:4'
    """
    found: Any = (
        import_object(name, Pruner)
        if ":" in name
        else lookup("criterion", table or {**CRITERIA, **GRADIENT_PRUNERS, **PRUNERS}, name)
    )
    return replace(found, scope=scope) if isinstance(found, Pruner) else found


def _operating(asked: Pruner, examine_of: Callable[[Params], PruningMethod]) -> PruneFn:
    def prune(
        weights: Params, density: Density, scope: Scope, *, within: MaskDict | None = None, seed: int = 0
    ) -> PruneResult:
        examine = examine_of(weights)
        return prune_weights(
            examine, weights, density, scope, within=within, seed=seed, cuts=asked.cuts, looks=asked.cuts
        )

    return prune


def _obs(asked: Pruner, model: nn.Module, split: Split, seed: int) -> PruneFn:
    examine = exact_obs(
        model,
        split.inputs,
        damping=asked.damped(OF_LAYERS),
        holes=SparsityPattern.of(asked.scope),
        progress=asked.progress,
    )
    return _operating(asked, lambda weights: examine)


def _sparse_gpt(asked: Pruner, model: nn.Module, split: Split, seed: int) -> PruneFn:
    select = None if asked.scope == "global" else SELECT
    return sparse_gpt(
        model, split.inputs, damping=asked.damped(OF_LAYERS), select=select, progress=asked.progress
    )


def _by_objective(
    surgeon: Callable[[Objective, Pruner, int], PruningMethod],
) -> Callable[[Pruner, nn.Module, Split, int], PruneFn]:
    def make(asked: Pruner, model: nn.Module, split: Split, draw: int) -> PruneFn:
        def prune(
            weights: Params, density: Density, scope: Scope, *, within: MaskDict | None = None, seed: int = 0
        ) -> PruneResult:
            target = make_objective(model, weights, split.inputs, split.labels)
            done = _operating(asked, lambda weights: surgeon(target, asked, draw))(
                weights, density, scope, within=within, seed=seed
            )
            return no_worse_than_zeroing(target, weights, done) if asked.inverts else done

        return prune

    return make


@torch.no_grad()
def no_worse_than_zeroing(target: Objective, weights: Params, done: PruneResult) -> PruneResult:
    """`done`, its update of the kept weights halved until the error is at most that of setting weights to zero alone.

    Warns with UpdateRejectedWarning where the update as a whole gives a higher error, or one that is not finite.
    """
    zeroed = apply_masks({name: weight.detach() for name, weight in weights.items()}, done.masks)
    allowed = float(target.error(zeroed)) * (1 + ROUNDING)
    updated, error = done.weights, float(target.error(done.weights))
    # NaN compares false.
    if error <= allowed or not allowed < inf:
        return done
    for step in STEPS:
        updated = {name: zero + step * (done.weights[name] - zero) for name, zero in zeroed.items()}
        if float(target.error(updated)) <= allowed:
            break
    else:
        step, updated = 0.0, zeroed
    warnings.warn(
        f"The update of the kept weights gives an error of {error:.3g} on the calibration examples, where setting the "
        f"pruned weights to zero alone gives {allowed:.3g}; the update was multiplied by {step:g}. More damping, more "
        "examples or more cuts make it better.",
        UpdateRejectedWarning,
        stacklevel=3,
    )
    return replace(done, weights=apply_masks(updated, done.masks))


def _by_probe(name: str) -> Callable[[Pruner, nn.Module, Split, int], PruneFn]:
    """A criterion of gradients, at the weights as they are."""

    def make(asked: Pruner, model: nn.Module, split: Split, seed: int) -> PruneFn:
        look = make_scoring_batch(model, split.inputs, split.labels)

        def examine(weights: Params, masks: MaskDict) -> PruningState:
            evidence = Statistics(weights, initial=weights, masks=masks, probe=look)
            return CriterionState(CRITERIA[name], evidence, masks)

        return _operating(asked, lambda weights: examine)

    return make


PRUNERS: Mapping[str, Pruner] = {
    "obs": Pruner(
        "OBS layer by layer, row by row (ExactOBS), and the update of what stays.", _obs, undamped=True
    ),
    "sparse_gpt": Pruner(
        "OBS layer by layer, column by column (SparseGPT), and the update.",
        _sparse_gpt,
        undamped=True,
        stepwise=False,
    ),
    "fisher": Pruner(
        "OBS with the blockwise empirical Fisher (WoodFisher, oBERT), and the update.",
        _by_objective(
            lambda objective, asked, seed: fisher(
                objective, damping=asked.damped(OF_FISHER), progress=asked.progress
            )
        ),
    ),
    "full_obs": Pruner(
        "OBS with the inverse Hessian of the whole network, up to 16,384 weights, and the update.",
        _by_objective(
            lambda objective, asked, seed: obs(
                objective, damping=asked.damped(OF_OBS), progress=asked.progress
            )
        ),
        check_size=check_size,
    ),
    "obd": Pruner(
        "OBD: h w² / 2 with the Levenberg-Marquardt diagonal; nothing is moved.",
        _by_objective(
            lambda objective, asked, seed: obd(objective, "levenberg_marquardt", progress=asked.progress)
        ),
        inverts=False,
    ),
    "obd_hutchinson": Pruner(
        "OBD: h w² / 2 with the diagonal as Hutchinson estimates it, through any network; nothing is moved.",
        _by_objective(lambda objective, asked, seed: obd(objective, "hutchinson", seed, asked.progress)),
        inverts=False,
    ),
}

GRADIENT_PRUNERS: Mapping[str, Pruner] = {
    name: Pruner(f"{name}, at the weights as they are.", _by_probe(name), inverts=False)
    for name in ("snip", "gradient", "grasp", "synflow")
}
"""What criteria of gradients are outside of tickets, where there are no initial weights to look back to."""
