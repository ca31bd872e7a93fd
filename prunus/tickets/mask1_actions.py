"""The mask-1 actions of the lottery ticket papers: source x arrangement x sign x rescaling.

    w = s(a(source)) · r

    source       the weights at the rewind step, at the end of the last training, at the initialization, of a new draw
                 of the initialization, of a learned supermask, or sign(w_initial) · σ, σ being the standard deviation
                 of all initial weights of the layer as a population
    arrangement  in place; permuted over the whole layer; reshuffled among the kept weights of the layer
    sign         its own, or that of the initial weight at the same place, so that only magnitudes are rearranged
    rescaling    r = 1, or weights of the layer / kept weights of the layer

Source: Zhou et al. 2019, section 3, and the authors' code; Frankle & Carbin 2019, section 2 (`rewind`,
`reinitialize`); Frankle et al. 2020 (rewinding to a later step); Han et al. 2015, section 3, and Renda et al. 2020,
section 2 (`finetune`, `rewind_learning_rate`).

Differences from the authors' code of Zhou et al. 2019:
    - Every action starts from the initialization. Their code starts from the values that the previous round started
      from, so that permutations accumulate and σ decreases in every round (by 1.3 % in a small layer in 24 rounds).
    - What their code calls `reinit` permutes the layer; here that is `permute`, and `reinitialize` draws again.
    - A weight that is exactly zero has no sign. It stays zero under the actions that keep signs.

Unless an action says otherwise, biases, BatchNorm with its running statistics, and the optimizer state start as at the
rewind step. Three published codebases did not reset the weights or the statistics; the invariants detect that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunus.errors import SpecError
from prunus.seeds import make_generator
from prunus.tickets.actions import Invariants, Mask1Action, WeightHistory
from prunus.tickets.statistical_checks import (
    MAX_DEVIATIONS,
    are_equal_where,
    consistent_with_permutation,
    consistent_with_selected_sample,
    is_population_std,
    is_sub_multiset,
    population_std,
)
from prunus.types import MaskDict, Params

Source = Literal["rewind", "final", "initial", "redraw", "signed_constant", "supermask"]


def permute_where(values: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the entries of a tensor at some places.

    Args:
        values: Tensor of any shape; not modified.
        places: Boolean tensor of the same shape; True where entries are permuted.
        generator: Draws the permutation.

    Returns:
        A copy of `values`; the entries outside `places` are unchanged.

    Example:
        >>> permute_where(torch.tensor([1.0, 2.0]), torch.tensor([False, True]), torch.Generator())
        tensor([1., 2.])
    """
    flat = values.detach().flatten().clone()
    indices = places.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(indices), generator=generator).to(indices.device)
    flat[indices] = flat[indices[order]]
    return flat.reshape(values.shape)


def with_signs_of(signed: Tensor, magnitudes: Tensor) -> Tensor:
    """Return `magnitudes` with the signs of `signed`; where `signed` is zero, the result is zero.

    Args:
        signed: The tensor whose signs are used.
        magnitudes: The tensor, of the same shape, whose absolute values are used.

    Returns:
        A new tensor of the same shape, without a gradient.

    Example:
        >>> with_signs_of(torch.tensor([-3.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 2.0]))
        tensor([-1.,  0.,  2.])
    """
    return signed.detach().sign() * magnitudes.detach().abs()


@dataclass(frozen=True)
class KeptValues:
    """Values for kept weights, as the `values` of a `Mask1Action`."""

    source: Source
    arrangement: Literal["in_place", "permuted", "reshuffled"] = "in_place"
    initial_signs: bool = False
    """Whether each weight gets the sign of the initial weight at its place."""
    seed_role: str = ""
    """Name of the random role that draws the permutation."""

    def __call__(self, history: WeightHistory, masks: MaskDict, seed: int) -> Params:
        """Return new tensors for all weights. Raises SpecError if a supermask is needed and there is none."""
        values = source_weights(self.source, history, seed)
        return {name: self._arrange(name, value, history, masks, seed) for name, value in values.items()}

    def _arrange(
        self, name: str, value: Tensor, history: WeightHistory, masks: MaskDict, seed: int
    ) -> Tensor:
        if self.arrangement != "in_place":
            places = masks[name] if self.arrangement == "reshuffled" else torch.ones_like(masks[name])
            if self.initial_signs:  # a weight that is exactly zero has no sign and stays where it is
                places = places & (history.initial[name] != 0)
            value = permute_where(value, places, make_generator(seed, self.seed_role, name))
        return with_signs_of(history.initial[name], value) if self.initial_signs else value.detach().clone()


def source_weights(source: Source, history: WeightHistory, seed: int) -> Params:
    """Return the weights of a source, before they are rearranged.

    Args:
        source: Which weights: "redraw", "signed_constant", or the name of a field of `history`.
        history: The weights of the replicate.
        seed: The seed of a new draw; used by "redraw" alone.

    Returns:
        The prunable weights by name. They are those of `history` and not copies, except for "redraw" and
        "signed_constant".

    Raises:
        SpecError: The source is "supermask", and the masks are not those of a learned supermask.
    """
    if source == "redraw":
        redrawn = history.redraw(seed)
        return {name: redrawn[name] for name in history.initial}
    if source == "signed_constant":
        return {name: w.detach().sign() * population_std(w) for name, w in history.initial.items()}
    if source == "supermask" and not history.supermask:
        raise SpecError(
            "Expected masks of a learned supermask for mask1='supermask', got masks of a criterion; set masks_from to "
            "a learned supermask."
        )
    weights: Params = getattr(history, source)
    return weights


# Invariants. Each examines the tensors alone, not how they were computed.

CheckInvariants = Callable[[WeightHistory, MaskDict, Params], Invariants]
"""The `invariants` of a `Mask1Action`."""
KeptLayerCheck = Callable[[Tensor, Tensor, Tensor], bool]
"""(kept values, all initial weights of the layer, mask) -> whether a statement holds for the layer."""

MOVED = "no more kept weights than by chance have the value they had at the initialization"
INITIAL_SIGNS = "every kept weight has its initial sign"


def layer_invariants(checks: Mapping[str, KeptLayerCheck]) -> CheckInvariants:
    """Make the `invariants` of an action from statements about one layer; each must hold for all layers."""

    def invariants(history: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
        layers = [(start[name][mask], history.initial[name], mask) for name, mask in masks.items()]
        return {statement: all(check(*layer) for layer in layers) for statement, check in checks.items()}

    return invariants


def _equal_to(source: Source, statement: str) -> CheckInvariants:
    """The invariant that kept weights are those of a source, bit for bit."""
    return lambda history, masks, start: {
        statement: are_equal_where(masks, start, source_weights(source, history, seed=0))
    }


def _supermask_invariants(history: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    nonzero = [bool((history.supermask[name][mask] != 0).all()) for name, mask in masks.items()]
    return {
        "every kept weight equals that of the supermask": are_equal_where(masks, start, history.supermask),
        "no kept weight of the supermask is zero": all(nonzero),
    }


def _redrawn(history: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
    """A new draw cannot be recognized by its values, but it differs from the old ones, ties excepted."""

    def differ_from(old: Params) -> bool:
        return all(
            consistent_with_permutation(start[name][mask], old[name][mask], history.initial[name].flatten())
            for name, mask in masks.items()
        )

    return {
        "no more kept weights than by chance equal initial ones": differ_from(history.initial),
        "no more kept weights than by chance equal those of the rewind step": differ_from(history.rewind),
    }


def _redrawn_with(checks: Mapping[str, KeptLayerCheck]) -> CheckInvariants:
    """The invariants of a new draw, and statements about one layer."""
    of_layers = layer_invariants(checks)
    return lambda history, masks, start: {
        **_redrawn(history, masks, start),
        **of_layers(history, masks, start),
    }


def _has_initial_distribution(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    has_magnitudes = _has_initial_magnitudes(kept_weights, layer, mask)
    return has_magnitudes and consistent_with_selected_sample(kept_weights, layer)


def _has_initial_magnitudes(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    return consistent_with_selected_sample(kept_weights.abs(), layer.abs())


def _has_initial_signs_or_zero(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    """A magnitude may be drawn as zero (once in 2^24 draws, where the distribution is uniform)."""
    initial = layer[mask]
    return bool(((kept_weights.sign() == initial.sign()) | ((kept_weights == 0) & (initial != 0))).all())


def _has_initial_signs(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    return torch.equal(kept_weights.sign(), layer[mask].sign())


def permutation_checks(
    places: Literal["layer", "kept"], *, signed: bool = False
) -> dict[str, KeptLayerCheck]:
    """Return what must hold of a permutation over the layer or over its kept weights; of magnitudes if signs stay.

    Args:
        places: Over which weights of a layer the permutation is: all of them ("layer"), or the kept ones ("kept").
        signed: Whether each weight keeps its sign, so that only magnitudes are permuted.

    Returns:
        Two checks by their statements: that the values are those of a permutation, and that they were permuted.
    """
    what = "magnitudes" if signed else "weights"
    statement = f"kept {what} are a permutation of their initial values"
    if places == "layer":
        statement = f"kept {what} are initial {what} of their layer, each used at most once"

    def from_pool(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
        values, pool = kept_weights, layer.flatten() if places == "layer" else layer[mask]
        return is_sub_multiset(values.abs(), pool.abs()) if signed else is_sub_multiset(values, pool)

    def moved(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
        before, pool = layer[mask], layer.flatten() if places == "layer" else layer[mask]
        if not signed:
            return consistent_with_permutation(kept_weights, before, pool)
        nonzero = kept_weights != 0  # a weight that is exactly zero has no sign and stays where it is
        return consistent_with_permutation(
            kept_weights[nonzero].abs(), before[nonzero].abs(), pool[pool != 0].abs()
        )

    return {statement: from_pool, MOVED: moved}


def _has_one_magnitude(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    return len(torch.unique(kept_weights[kept_weights != 0].abs())) <= 1


def _magnitude_is_std(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    return all(
        is_population_std(value, layer) for value in torch.unique(kept_weights[kept_weights != 0].abs())
    )


def _has_sign_counts(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    counts = [(int((kept_weights.sign() == s).sum()), int((layer.sign() == s).sum())) for s in (-1, 0, 1)]
    return all(num_kept <= num_in_layer for num_kept, num_in_layer in counts)


def _has_permuted_signs(kept_weights: Tensor, layer: Tensor, mask: Tensor) -> bool:
    """Whether as many signs agree, and differ, as a permutation of the layer can bring.

    The bounds are those of the whole layer, because a criterion may have kept exactly the places where signs agree.
    """
    products = kept_weights.sign() * layer[mask].sign()
    positive, negative = int((layer > 0).sum()), int((layer < 0).sum())
    for product, pairs in ((-1, 2 * positive * negative), (1, positive**2 + negative**2)):
        expected = pairs / layer.numel()
        bound = expected + MAX_DEVIATIONS * math.sqrt(expected) + MAX_DEVIATIONS
        if int((products == product).sum()) > bound:
            return False
    return True


_CONSTANT: dict[str, KeptLayerCheck] = {
    "kept weights of a layer have one magnitude": _has_one_magnitude,
    "the magnitude is the standard deviation of the layer's initial weights": _magnitude_is_std,
}


_DRAW: dict[str, KeptLayerCheck] = {
    "kept weights are distributed as initial ones, up to the choice of a criterion": _has_initial_distribution,
}
_SIGNED_DRAW: dict[str, KeptLayerCheck] = {
    "kept magnitudes are distributed as initial ones, up to the choice of a criterion": _has_initial_magnitudes,
    "no kept weight has the opposite of its initial sign": _has_initial_signs_or_zero,
}


def rescaled(action: Mask1Action) -> Mask1Action:
    """Multiply the weights of an action by the inverse of their layer's density.

    The invariants are those of the action, for a history in which every weight is larger by the same factor: an order,
    a sign or a statistic of a layer does not depend on when the factor is applied, so equality stays equality.
    A layer of which nothing is kept has the factor 1.

    Source: the code of Zhou et al. 2019 rescales four of its actions (`*_rescaling`). The dynamic weight rescaling of
    supermasks in the paper, section 5, has the same factor, computed for each sample.
    """

    def values(history: WeightHistory, masks: MaskDict, seed: int) -> Params:
        return _scale(action.values(history, masks, seed), masks)

    def invariants(history: WeightHistory, masks: MaskDict, start: Params) -> Invariants:
        names = ("initial", "rewind", "start", "final")
        scaled = {name: _scale(getattr(history, name), masks) for name in names}
        larger = replace(history, **scaled, redraw=lambda seed: _scale(history.redraw(seed), masks))
        checks = action.invariants(larger, masks, start)
        return {f"before rescaling, {statement}": holds for statement, holds in checks.items()}

    description = f"{action.description} Rescaled: times weights / kept weights of the layer."
    return replace(action, values=values, invariants=invariants, description=description)


def _scale(weights: Params, masks: MaskDict) -> Params:
    counts = {name: int(masks[name].sum()) for name in weights}
    return {n: w.detach() * (w.numel() / counts[n] if counts[n] else 1.0) for n, w in weights.items()}


_AS_TRAINED = _equal_to("final", "every kept weight equals that of the end of the last training")

_BASE: dict[str, Mask1Action] = {
    "rewind": Mask1Action(
        KeptValues("rewind"),
        _equal_to("rewind", "every kept weight equals that of the rewind step"),
        description="w = w_rewind: back to the rewind step; at step 0 the lottery ticket (Frankle & Carbin 2019).",
    ),
    "finetune": Mask1Action(
        KeptValues("final"),
        _AS_TRAINED,
        other_tensors="final",
        learning_rate="last",
        description="w = w_final: train on at the last learning rate (Han et al. 2015; Renda et al. 2020).",
    ),
    "rewind_learning_rate": Mask1Action(
        KeptValues("final"),
        _AS_TRAINED,
        other_tensors="final",
        description="w = w_final, with the learning rates from the rewind step on (Renda et al. 2020, section 2).",
    ),
    "reinitialize": Mask1Action(
        KeptValues("redraw"),
        _redrawn_with(_DRAW),
        description="w ~ the initialization: a new draw, the control of Frankle & Carbin 2019, section 2.",
    ),
    "signed_reinitialize": Mask1Action(
        KeptValues("redraw", initial_signs=True),
        _redrawn_with(_SIGNED_DRAW),
        description="w = sign(w_initial) · |new draw|: new magnitudes, initial signs (Zhou et al. 2019).",
    ),
    "permute": Mask1Action(
        KeptValues("initial", "permuted", seed_role="permute"),
        layer_invariants(permutation_checks("layer")),
        description="w = π(w_initial), π over the layer (Zhou et al. 2019; random_reinit in their code).",
    ),
    "signed_permute": Mask1Action(
        KeptValues("initial", "permuted", initial_signs=True, seed_role="signed_permute"),
        layer_invariants({INITIAL_SIGNS: _has_initial_signs, **permutation_checks("layer", signed=True)}),
        description="w = sign(w_initial) · π(|w_initial|), π over the layer (Zhou et al. 2019; signed_reinit).",
    ),
    "reshuffle": Mask1Action(
        KeptValues("initial", "reshuffled", seed_role="reshuffle"),
        layer_invariants(permutation_checks("kept")),
        description="w = π(w_initial), π over the kept weights of the layer (Zhou et al. 2019).",
    ),
    "signed_reshuffle": Mask1Action(
        KeptValues("initial", "reshuffled", initial_signs=True, seed_role="signed_reshuffle"),
        layer_invariants({INITIAL_SIGNS: _has_initial_signs, **permutation_checks("kept", signed=True)}),
        description="w = sign(w_initial) · π(|w_initial|), π over the kept weights (Zhou et al. 2019).",
    ),
    "signed_constant": Mask1Action(
        KeptValues("signed_constant"),
        layer_invariants({INITIAL_SIGNS: _has_initial_signs, **_CONSTANT}),
        description="w = sign(w_initial) · σ, σ of the layer's initial weights (Zhou et al. 2019).",
    ),
    "random_signed_constant": Mask1Action(
        KeptValues("signed_constant", "permuted", seed_role="random_signed_constant"),
        layer_invariants(
            {
                **_CONSTANT,
                "no sign is more frequent among kept weights than among the layer's initial weights": _has_sign_counts,
                "the number of kept weights with their initial sign is that of a permutation": _has_permuted_signs,
            }
        ),
        description="w = π(sign(w_initial)) · σ, π over the layer: the control of signed_constant (Zhou et al. 2019).",
    ),
    "supermask": Mask1Action(
        KeptValues("supermask"),
        _supermask_invariants,
        description="w = w_frozen · factor of the learned supermask, then trained (extends Zhou et al. 2019).",
    ),
}

NOT_RESCALED = ("finetune", "rewind_learning_rate", "signed_reinitialize", "supermask")
"""Actions that have no rescaled variant."""
MASK1_ACTIONS: dict[str, Mask1Action] = {
    **_BASE,
    **{f"{name}_rescaled": rescaled(_BASE[name]) for name in _BASE if name not in NOT_RESCALED},
}
