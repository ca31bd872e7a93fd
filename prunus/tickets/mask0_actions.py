"""The mask-0 actions of the lottery ticket papers: what pruned weights are set to, and whether they train.

    zero                         w = 0
    train                        w = 0, and pruned weights train like all others; the mask is only a start
    freeze_init                  w = w_initial
    freeze_init_zero             w = 0 if |w_final| < |w_start|, else w_start              (Variant 1)
    freeze_init_zero_all         the same, and kept weights that moved towards zero or started at it start at 0
                                                                                           (Variant 2)
    freeze_init_zero_reshuffled  as many zeros as Variant 1, at random positions, else w_start (control)
    freeze_init_zero_reversed    w = 0 if |w_final| > |w_start|, else w_start               (control)

Under the actions that freeze, a weight that an earlier round pruned keeps its value; under `zero` and `train` it is 0.
A weight is newly pruned if the last training still trained it.

Source: Frankle & Carbin 2019, section 2 (`zero`, called `mask` in the code of Zhou et al.); Zhou et al. 2019, section 4
("masking is training"), and the authors' code: `train` is its start `mask_init` with the model `original`.

Differences from the authors' code of Zhou et al. 2019:
    - `freeze_init` always uses the initialization, step 0. Their code uses the values that the previous round started
      from, which are the same where weights are rewound to step 0.
    - Magnitudes are compared, so a weight that crossed zero counts by its distance from zero. A weight that did not
      move is not set to zero. Start and end are those of the last training, as in their code.
    - Variant 2 sets kept weights that started at 0 to 0 again. In their code they are 0 because each round starts from
      the start of the previous one.
    - The number of random zeros is exact in each layer; weights that started at 0 are not drawn.

Biases, BatchNorm and the optimizer state follow the mask-1 action. The optimizer state of frozen weights has no effect,
because they are reset after every step; under `train` it is used.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask0Action, WeightHistory
from prunus.tickets.statistical_checks import consistent_with_hypergeometric
from prunus.types import MaskDict, Params


class PrunedLayer(NamedTuple):
    """One layer as a mask-0 action sees it."""

    name: str
    initial: Tensor
    start: Tensor
    final: Tensor
    mask: Tensor
    newly_pruned: Tensor
    """True for the weights that this round prunes and the last training still trained."""
    pruned_earlier: Tensor
    """True for the weights that an earlier round pruned."""

    def moved_towards_zero(self) -> Tensor:
        """Where the last training made the magnitude smaller."""
        return self.final.abs() < self.start.abs()

    def moved_away_from_zero(self) -> Tensor:
        """Where the last training made the magnitude larger."""
        return self.final.abs() > self.start.abs()

    def kept_zeros(self) -> Tensor:
        """Where Variant 2 sets kept weights to zero."""
        return self.mask & (self.moved_towards_zero() | (self.start == 0))


SelectPositions = Callable[[PrunedLayer], Tensor]
"""(layer) -> a boolean mask of the positions that a statement or an action is about."""
PrunedLayerCheck = Callable[[PrunedLayer, Tensor, Tensor], bool]
"""(layer, values of the mask-1 action, start) -> whether a statement holds for the layer."""


def _start(layer: PrunedLayer, kept_weights: Tensor) -> Tensor:
    return layer.start


def _kept_weights(layer: PrunedLayer, kept_weights: Tensor) -> Tensor:
    return kept_weights


def make_action(
    fill: Callable[[PrunedLayer, int], Tensor],
    checks: Mapping[str, PrunedLayerCheck],
    description: str,
    *,
    set_kept: Callable[[PrunedLayer, Tensor], Tensor] = _kept_weights,
    freezes: bool = True,
) -> Mask0Action:
    """Make an action from functions of one layer.

    Args:
        fill: (layer, seed) -> a complete tensor, of which only the pruned positions are used.
        checks: Statements that must hold for all layers.
        description: One line with the formula, and the source.
        set_kept: (layer, values of the mask-1 action) -> the kept weights.
        freezes: Whether pruned weights keep their values.

    Returns:
        The action, whose `values` and `invariants` apply these functions to each layer.
    """

    def layers(history: WeightHistory, masks: MaskDict) -> list[PrunedLayer]:
        result = []
        for n, mask in masks.items():
            weights, before = (history.initial[n], history.start[n], history.final[n]), history.masks[n]
            result.append(PrunedLayer(n, *weights, mask, before & ~mask, ~before & ~mask))
        return result

    def values(history: WeightHistory, masks: MaskDict, kept_weights: Params, seed: int) -> Params:
        start = {}
        for layer in layers(history, masks):
            mask1_values = set_kept(layer, kept_weights[layer.name].detach())
            start[layer.name] = torch.where(layer.mask, mask1_values, fill(layer, seed))
        return start

    def invariants(
        history: WeightHistory, masks: MaskDict, kept_weights: Params, start: Params
    ) -> Invariants:
        arguments = [(layer, kept_weights[layer.name], start[layer.name]) for layer in layers(history, masks)]
        return {statement: all(check(*each) for each in arguments) for statement, check in checks.items()}

    return Mask0Action(values, invariants, freezes, description)


def zero_where(zeros: SelectPositions) -> Callable[[PrunedLayer, int], Tensor]:
    """Zero at newly pruned positions that are also in `zeros`, elsewhere the start of the last training."""
    return lambda layer, seed: layer.start.masked_fill(layer.newly_pruned & zeros(layer), 0.0)


def zero_at_random(layer: PrunedLayer, seed: int) -> Tensor:
    """As many zeros as newly pruned weights moved towards zero, at random positions.

    Args:
        layer: The layer; only newly pruned weights that did not start at zero can be set to zero.
        seed: The seed of the action; the positions depend on it and on the name of the layer.

    Returns:
        A complete tensor: zero at the drawn positions, elsewhere the start of the last training.
    """
    count = int((layer.newly_pruned & layer.moved_towards_zero()).sum())
    indices = (layer.newly_pruned & (layer.start != 0)).flatten().nonzero().squeeze(1)
    generator = make_generator(seed, "freeze_init_zero_reshuffled", layer.name)
    order = torch.randperm(len(indices), generator=generator)
    zeroed = torch.zeros_like(layer.newly_pruned).flatten()
    zeroed[indices[order[:count].to(indices.device)]] = True
    return layer.start.masked_fill(zeroed.reshape(layer.newly_pruned.shape), 0.0)


# Invariants. Each examines the tensors alone, not how they were computed.


def equals(expected: Callable[[PrunedLayer, Tensor], Tensor], positions: SelectPositions) -> PrunedLayerCheck:
    """The start at some positions equals a tensor, made of the layer and the values of the mask-1 action.

    Args:
        expected: (layer, values of the mask-1 action) -> the expected tensor, of the shape of the layer.
        positions: Makes the boolean tensor of the positions from the layer.

    Returns:
        The check, in which -0.0 equals +0.0 and NaN equals nothing.
    """
    return lambda layer, kept_weights, start: torch.equal(
        start[positions(layer)], expected(layer, kept_weights)[positions(layer)]
    )


def is_zero(positions: SelectPositions) -> PrunedLayerCheck:
    """The start at some positions is zero."""
    return lambda layer, kept_weights, start: not bool(start[positions(layer)].any())


def zero_or_start(zeros: SelectPositions) -> dict[str, PrunedLayerCheck]:
    """Of the newly pruned weights, those at `zeros` are zero and the others are as the last training started."""
    return {
        "every newly pruned weight that must be zero is zero": is_zero(
            lambda layer: layer.newly_pruned & zeros(layer)
        ),
        OTHERS_AT_START: equals(_start, lambda layer: layer.newly_pruned & ~zeros(layer)),
        **EARLIER_UNCHANGED,
    }


def random_zeros(layer: PrunedLayer, start: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that may be zeroed at random, and those that are.

    Args:
        layer: The layer.
        start: The weights of the layer that training starts from, of its shape.

    Returns:
        Two boolean tensors of the shape of the layer: the newly pruned positions that did not start the last training
        at zero, and those of them that are zero in `start`.
    """
    free = layer.newly_pruned & (layer.start != 0)
    return free, free & (start == 0)


def has_count_of_zeros(layer: PrunedLayer, kept_weights: Tensor, start: Tensor) -> bool:
    """As many newly pruned weights are zero as moved towards zero.

    Args:
        layer: The layer.
        kept_weights: Not used.
        start: The weights of the layer that training starts from, of its shape.

    Returns:
        Whether both numbers are equal; weights that started the last training at zero do not count.
    """
    free, zeros = random_zeros(layer, start)
    return int(zeros.sum()) == int((free & layer.moved_towards_zero()).sum())


def has_zeros_by_chance(layer: PrunedLayer, kept_weights: Tensor, start: Tensor) -> bool:
    """The zeros are at positions that moved towards zero about as often as by chance.

    Args:
        layer: The layer.
        kept_weights: Not used.
        start: The weights of the layer that training starts from, of its shape.

    Returns:
        False if the zeros are at positions that moved towards zero so often, or so rarely, that a random choice is
        excluded.
    """
    free, zeros = random_zeros(layer, start)
    smaller = free & layer.moved_towards_zero()
    count = int(smaller.sum())
    return consistent_with_hypergeometric(int((zeros & smaller).sum()), count, count, int(free.sum()))


def others_are_at_start(layer: PrunedLayer, kept_weights: Tensor, start: Tensor) -> bool:
    """Newly pruned weights that were not zeroed are as the last training started.

    Args:
        layer: The layer.
        kept_weights: Not used.
        start: The weights of the layer that training starts from, of its shape.

    Returns:
        Whether all of these weights are equal.
    """
    others = layer.newly_pruned & ~random_zeros(layer, start)[1]
    return torch.equal(start[others], layer.start[others])


OTHERS_AT_START = "every other newly pruned weight equals the start of the last training"
KEPT_UNCHANGED: dict[str, PrunedLayerCheck] = {
    "every kept weight equals the value of the mask-1 action": equals(_kept_weights, lambda layer: layer.mask)
}
EARLIER_UNCHANGED: dict[str, PrunedLayerCheck] = {
    "every weight pruned earlier keeps its value": equals(_start, lambda layer: layer.pruned_earlier)
}
ALL_ZERO = {**KEPT_UNCHANGED, "every pruned weight is zero": is_zero(lambda layer: ~layer.mask)}

MASK0_ACTIONS: dict[str, Mask0Action] = {
    "zero": make_action(
        lambda layer, seed: torch.zeros_like(layer.start),
        ALL_ZERO,
        "w = 0, frozen: the lottery ticket (Frankle & Carbin 2019).",
    ),
    "freeze_init": make_action(
        lambda layer, seed: torch.where(layer.newly_pruned, layer.initial, layer.start),
        {
            **KEPT_UNCHANGED,
            "every newly pruned weight equals its initial value": equals(
                lambda layer, kept_weights: layer.initial, lambda layer: layer.newly_pruned
            ),
            **EARLIER_UNCHANGED,
        },
        "w = w_initial, frozen (Zhou et al. 2019).",
    ),
    "freeze_init_zero": make_action(
        zero_where(PrunedLayer.moved_towards_zero),
        {**KEPT_UNCHANGED, **zero_or_start(PrunedLayer.moved_towards_zero)},
        "w = 0 if training moved it towards zero, else its start, frozen (Zhou et al. 2019, Variant 1).",
    ),
    "freeze_init_zero_all": make_action(
        zero_where(PrunedLayer.moved_towards_zero),
        {
            "every kept weight that moved towards zero, or started at zero, is zero": is_zero(
                PrunedLayer.kept_zeros
            ),
            "every other kept weight equals the value of the mask-1 action": equals(
                _kept_weights, lambda layer: layer.mask & ~layer.kept_zeros()
            ),
            **zero_or_start(PrunedLayer.moved_towards_zero),
        },
        "freeze_init_zero, and kept weights moved towards zero start at 0 (Zhou et al. 2019, Variant 2).",
        set_kept=lambda layer, kept_weights: kept_weights.masked_fill(layer.kept_zeros(), 0.0),
    ),
    "freeze_init_zero_reshuffled": make_action(
        zero_at_random,
        {
            **KEPT_UNCHANGED,
            "as many newly pruned weights are zero as moved towards zero": has_count_of_zeros,
            "the choice of the zeros is consistent with chance": has_zeros_by_chance,
            OTHERS_AT_START: others_are_at_start,
            **EARLIER_UNCHANGED,
        },
        "freeze_init_zero with its zeros at random positions, a control (Zhou et al. 2019).",
    ),
    "freeze_init_zero_reversed": make_action(
        zero_where(PrunedLayer.moved_away_from_zero),
        {**KEPT_UNCHANGED, **zero_or_start(PrunedLayer.moved_away_from_zero)},
        "w = 0 if training moved it away from zero, else its start, a control (Zhou et al. 2019).",
    ),
    "train": make_action(
        lambda layer, seed: torch.zeros_like(layer.start),
        ALL_ZERO,
        "w = 0 at the start, and trains like all others (Zhou et al. 2019, code).",
        freezes=False,
    ),
}
