"""The lottery ticket procedure: train, score, mask, set the kept and the pruned weights, train again.

    θ_0 → train → θ_T;  again and again: m = select(criterion(θ_0, θ_T)),  θ' = mask-1(kept) ⊕ mask-0(pruned),  train θ'

Source: Frankle & Carbin 2019, section 2; Zhou et al. 2019, section 2.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from prunus.errors import DensityError, NoEffectWarning, SpecError
from prunus.pruning.criteria import CRITERIA, Criterion
from prunus.pruning.masks import all_kept, num_to_keep
from prunus.pruning.prunable import layer_kinds, prunable_weights
from prunus.pruning.pruners import PRUNERS, Pruner, get_criterion
from prunus.pruning.scopes import Scope, check_densities_reachable, get_scope, weights_per_block
from prunus.pruning.scoring_batch import make_scoring_batch
from prunus.registry import import_object, lookup
from prunus.seeds import derive_seed, make_generator
from prunus.tickets.actions import Mask0Action, Mask1Action, WeightHistory
from prunus.tickets.artifacts import RunArtifacts
from prunus.tickets.baseline import (
    BaselineSpec,
    StepReport,
    checkpoint_name,
    curve_rows,
    final_metrics,
    load_saved_state,
)
from prunus.tickets.invariants import make_invariant_report
from prunus.tickets.mask0 import MASK0_ACTIONS
from prunus.tickets.mask1 import MASK1_ACTIONS
from prunus.training import Masks, Recipe
from prunus.training.lr_schedules import LR_SCHEDULES
from prunus.training.state import TrainingState, clone_tensors, strip_prefix
from prunus.types import Density, MaskDict, Params, ScoringBatch, Statistics, mask_density, numel_by_name

if TYPE_CHECKING:
    from prunus.tickets.ticket import PruningRates, TicketSpec

A = TypeVar("A", Mask1Action, Mask0Action)


def run_ticket(
    spec: "TicketSpec",
    shelf: RunArtifacts,
    needed: Mapping[str, RunArtifacts],
    report_steps: StepReport | None = None,
) -> dict[str, Any]:
    """Train level after level; a level that is written down is not trained again. Returns the last level's row."""
    wanted = spec.trained_levels()
    run = TicketRunner(spec, shelf, needed)
    _warn_of_a_standstill(run)
    for level in wanted:
        if level in run.written:
            continue
        began = time.perf_counter()
        past, last = run.past(level)
        masks, counts = run.masks(level, past, last)
        if all(torch.equal(mask, past.masks[name]) for name, mask in masks.items()):
            why = "the learned mask keeps all" if spec.source is None else spec.source.rates
            warnings.warn(f"Level {level} prunes nothing: {why}.", NoEffectWarning, stacklevel=2)
        kept, start, values, recipe = run.start(level, past, masks, last)
        constraint = Masks(run.model, masks, values) if run.mask0.frozen else None
        watch = spec.dense.train(
            run.model,
            shelf,
            level,
            constraint=constraint,
            start=start,
            recipe=recipe,
            report_steps=report_steps,
        )
        before = run.before(level, past)
        proof = make_invariant_report(
            past, masks, before, counts, kept, run.rewind, last, watch, run.mask1, run.mask0
        )
        row = {
            "level": level,
            "density": mask_density(masks),
            **final_metrics(run.model, watch, spec.dense.dataset()),
            "seconds": round(time.perf_counter() - began, 2),
            "invariants": proof.to_json(),
        }
        run.write(level, row, masks, start, curve_rows(level, watch))
    if shelf.has("last"):
        shelf.save_tensors("final", run.last_model())
        shelf.remove("last")
    return dict(shelf.rows()[-1])


class TicketRunner:
    """What stays the same from level to level, and what the last level left."""

    def __init__(self, spec: "TicketSpec", shelf: RunArtifacts, needed: Mapping[str, RunArtifacts]) -> None:
        self.spec, self.shelf, self.needed = spec, shelf, needed
        self.model = spec.dense.network()
        self.names = list(prunable_weights(self.model))
        self.criterion, self.select, self.mask1, self.mask0 = resolve_components(spec)
        self.original = load_saved_state(needed["baseline"], "state-0")
        self.rewind = load_saved_state(needed["baseline"], f"state-{spec.rewind_step}")
        self.recipe, self.seed = spec.dense.recipe, spec.dense.replicate
        self._finish_writing()

    @property
    def written(self) -> set[int]:
        """The levels that are written down."""
        return {row["level"] for row in self.shelf.rows()}

    def past(self, level: int) -> tuple[WeightHistory, Params]:
        """The moments of this level, and the whole model as the last training left it."""
        if self.spec.chained and self.written:
            last = self.shelf.load_tensors("last")
            start = {name: last[f"start/{name}"] for name in self.names}
            final = self.last_model()
            masks = self.shelf.load_masks(mask_key(level - 1))
        else:
            start, final = self._prunable(self.rewind.model), self.needed["baseline"].load_tensors("final")
            masks = all_kept(start)

        def fresh(seed: int) -> Params:
            return {
                name: w.cpu()
                for name, w in clone_tensors(prunable_weights(self.spec.dense.network(seed))).items()
            }

        original, rewind = self._prunable(self.original.model), self._prunable(self.rewind.model)
        learned = (
            {} if self.spec.learned is None else self._prunable(self.needed["masks"].load_tensors("final"))
        )
        return WeightHistory(original, rewind, start, self._prunable(final), masks, fresh, learned), final

    def masks(self, level: int, past: WeightHistory, last: Params) -> tuple[MaskDict, Mapping[str, int]]:
        """This level's masks, and how many weights each layer must keep."""
        source, taken = self.spec.source, self.spec.masks_from is not None
        if source is None or (taken and source.densities_from is not None):  # their counts are their own
            learned = self.needed["masks"].load_masks(mask_key(level))
            return learned, {name: int(mask.sum()) for name, mask in learned.items()}
        density = self._density(source, level)
        numbers = numel_by_name(past.original)
        if isinstance(density, Mapping):
            once = weights_per_block(source.scope)
            counts = {
                name: once * num_to_keep(density[name], number // once) for name, number in numbers.items()
            }
        else:
            counts = {"all": num_to_keep(density, sum(numbers.values()))}
        if taken:
            return self.needed["masks"].load_masks(mask_key(level)), counts
        given = past.apart()
        if isinstance(self.criterion, Pruner):
            return self.pruned(self.criterion, level, given, last, density), counts
        evidence = Statistics(
            given.final,
            seed=derive_seed(self.seed, "criterion", level),
            initial=given.start,
            masks=given.masks,
            probe=self._probe(),
        )
        scores = self.criterion(evidence)
        return self.select(scores, density, past.masks, derive_seed(self.seed, "ties", level)), counts

    def pruned(
        self, pruner: Pruner, level: int, past: WeightHistory, last: Params, density: Density
    ) -> MaskDict:
        """The masks of a pruner that looks at the trained network; what it would make of the weights is not used."""
        trained, data = self.spec.dense.network(), self.spec.dense.dataset().train.to("cpu")
        trained.load_state_dict({**last, **past.final})
        prune = pruner.on(trained.cpu(), data, derive_seed(self.seed, "criterion", level))
        seed = derive_seed(self.seed, "ties", level)
        return prune(past.final, density, self.select, within=past.masks, seed=seed).masks

    def start(
        self, level: int, past: WeightHistory, masks: MaskDict, last: Params
    ) -> tuple[Params, TrainingState, Params | None, Recipe]:
        """What the mask-1 action gives, the state training starts from, what pruned weights stay at, and how."""
        draw = (self.spec.draw,) if self.spec.draw else ()
        seeds = [derive_seed(self.seed, name, level, *draw) for name in ("mask1", "mask0")]
        kept = self.mask1.values(past.apart(), clone_tensors(masks), seeds[0])
        whole = self.mask0.values(past.apart(), clone_tensors(masks), clone_tensors(kept), seeds[1])
        rewound = self.mask1.rest == "rewound"
        source, optimizer = (self.rewind.model, self.rewind.optimizer) if rewound else (last, {})
        start = TrainingState(self.rewind.step, {**source, **whole}, dict(optimizer), self.rewind.random)
        zeros = not any(bool((whole[name][~masks[name]] != 0).any()) for name in masks)
        recipe = self.recipe
        if self.mask1.rate == "last":
            recipe = with_final_learning_rate(recipe, self.spec.dense.total_steps())
        return kept, start, None if zeros else whole, recipe

    def write(
        self,
        level: int,
        row: dict[str, Any],
        masks: MaskDict,
        start: TrainingState,
        curve: list[dict[str, Any]],
    ) -> None:
        """Lay down the level so that a kill between two writes loses nothing: what is needed to go on, then the row."""
        self.shelf.save_masks(mask_key(level), masks)
        last = {f"final/{name}": tensor for name, tensor in self.model.state_dict().items()}
        last |= {f"start/{name}": tensor for name, tensor in start.model.items()}
        self.shelf.save_tensors("last", last, {"row": row, "curve": curve})
        self._finish_writing()

    def last_model(self) -> Params:
        """The whole model as the last level left it."""
        return strip_prefix("final/", self.shelf.load_tensors("last"))

    def before(self, level: int, past: WeightHistory) -> MaskDict | None:
        """The masks that a level's must lie within: those it was made within; None where it was made alone."""
        if self.spec.chained:
            return past.masks
        source, taken = self.spec.source, self.spec.masks_from
        if source is None or taken is None or not source.chained or level - 1 not in taken.trained_levels():
            return None
        return self.needed["masks"].load_masks(mask_key(level - 1))

    def _finish_writing(self) -> None:
        if self.shelf.has("last"):
            note = self.shelf.load_metadata("last")
            level = note["row"]["level"]
            if level not in self.written:
                self.shelf.append_curve(note["curve"])
                self.shelf.append_row(note["row"])
            self.shelf.remove(checkpoint_name(level))

    def _prunable(self, model: Params) -> Params:
        return {name: model[name] for name in self.names}

    def _density(self, source: "TicketSpec", level: int) -> Density:
        """What a level keeps: what the rates say, or as much of each layer as a learned mask does."""
        if source.densities_from is None:
            return level_densities(self.model, source.rates, source.scope, level)
        learned = self.needed["densities"].load_masks(mask_key(level))
        return {name: mask_density({name: mask}) for name, mask in learned.items()}

    def _probe(self) -> ScoringBatch:
        """The network as this round's training started, and a batch drawn before it."""
        data = self.spec.dense.dataset().train
        draw = torch.randperm(len(data), generator=make_generator(self.seed, "probe"))[
            : self.spec.num_scoring_examples
        ]
        chosen = draw.to(data.labels.device)
        model: nn.Module = self.spec.dense.network()
        chained = self.spec.chained and self.written
        model.load_state_dict(
            strip_prefix("start/", self.shelf.load_tensors("last")) if chained else self.rewind.model
        )
        return make_scoring_batch(model.cpu(), data.inputs[chosen].cpu(), data.labels[chosen].cpu())


def resolve_components(spec: "TicketSpec") -> tuple[Criterion | Pruner, Scope, Mask1Action, Mask0Action]:
    """What the ticket is made of. Raises UnknownNameError or SpecError where there is no such thing."""
    return (
        get_criterion(spec.criterion, spec.scope, {**CRITERIA, **PRUNERS}),
        get_scope(spec.scope),
        resolve_action("mask-1 action", MASK1_ACTIONS, spec.mask1, Mask1Action),
        resolve_action("mask-0 action", MASK0_ACTIONS, spec.mask0, Mask0Action),
    )


def resolve_action(kind: str, table: Mapping[str, A], name: str, of: type[A]) -> A:
    """A built-in action, or yours. Raises SpecError where "package.module:name" is something else."""
    one = resolve_component(kind, table, name)
    if not isinstance(one, of):
        raise SpecError(f"{name} was to be a {of.__name__}, with its claims, and is a {type(one).__name__}.")
    return one


def resolve_component(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """A built-in variant, or "package.module:name", yours."""
    return import_object(name) if ":" in name else lookup(kind, table, name)


def check_feasible(spec: "TicketSpec", wanted: Sequence[int]) -> None:
    """Raise before any training what shapes alone tell.

    Raises DensityError where the scope cannot give the density of a wanted level, or leaves a layer without a weight;
    ModelError where the network is too large for the criterion.
    """
    if spec.masks_from is not None or spec.densities_from is not None:
        return
    model = outline(spec.dense.model)
    weights = prunable_weights(model)
    if isinstance(criterion := resolve_components(spec)[0], Pruner):
        criterion.check_size(sum(numel_by_name(weights).values()))
    path = [level_densities(model, spec.rates, spec.scope, level) for level in wanted]
    if spec.scope not in ("layer", "global"):  # those give every density
        check_densities_reachable(get_scope(spec.scope), weights, path)
    for level, density in zip(wanted, path, strict=True):
        for name, asked in density.items() if isinstance(density, Mapping) else ():
            if not num_to_keep(asked, weights[name].numel()):
                raise DensityError(
                    f"Level {level} would keep none of the {weights[name].numel():,} weights of {name!r} (density "
                    f"{asked:.1e}): no signal passes it; ask for fewer rounds or lower rates."
                )


@lru_cache(maxsize=8)
def outline(model: str) -> nn.Module:
    """A network of that name, for its shapes."""
    return BaselineSpec(model).network()


def level_densities(model: nn.Module, rates: "PruningRates", scope: str, level: int) -> Density:
    """The densities of a level: one a layer, or, in the global scope, one.

    >>> from prunus.models import lenet_300_100
    >>> from prunus.tickets.ticket import PruningRates
    >>> {n: round(d, 4) for n, d in level_densities(lenet_300_100(), PruningRates(), "layer", 2).items()}
    {'fc1.weight': 0.64, 'fc2.weight': 0.64, 'fc3.weight': 0.81}
    """
    if scope == "global":
        return float((1 - rates.linear) ** level)
    kinds = layer_kinds(model)
    names = list(prunable_weights(model))
    rate = {name: rates.output if name == names[-1] else getattr(rates, kinds[name]) for name in names}
    return {name: (1 - rate[name]) ** level for name in names}


def with_final_learning_rate(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with the rate of the last of its `steps` throughout: fine-tuning (Renda et al. 2020, section 2).

    >>> with_final_learning_rate(Recipe(1, 0.1, 60, lr_schedule="steps"), 10).learning_rate
    0.001
    """
    last = lookup("learning-rate decay", LR_SCHEDULES, recipe.lr_schedule)((steps - 1) / steps)
    return recipe.replace(learning_rate=recipe.learning_rate * last, lr_schedule="constant")


def _warn_of_a_standstill(run: TicketRunner) -> None:
    """Warn where fine-tuning has a rate at which nothing moves: the last of a decay that ends at nothing."""
    if run.mask1.rate != "last":
        return
    last = with_final_learning_rate(run.recipe, run.spec.dense.total_steps()).learning_rate
    if last < run.recipe.learning_rate / 1000:
        warnings.warn(
            f"Fine-tuning keeps the last learning rate, which the decay {run.recipe.lr_schedule!r} makes {last:.1e}: next to "
            "nothing moves; take another decay.",
            NoEffectWarning,
            stacklevel=3,
        )


def mask_key(level: int) -> str:
    """What a level's masks are called on a shelf."""
    return f"masks-{level:02d}"
