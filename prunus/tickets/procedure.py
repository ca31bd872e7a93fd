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
from prunus.nouns import Density, Evidence, Masks, Params, Probe, density_of, sizes
from prunus.pruning.criteria import CRITERIA, Criterion
from prunus.pruning.masks import count, everything
from prunus.pruning.probe import probe
from prunus.pruning.prunable import layer_kinds, prunable
from prunus.pruning.pruners import PRUNERS, Pruner, criterion_named
from prunus.pruning.scopes import Scope, hole, rehearse, scope_named
from prunus.resolve import resolve
from prunus.seeds import derive, generator
from prunus.tables import look_up
from prunus.tickets.dense import Dense, StepReport, curve_rows, measured, state_on, training_name
from prunus.tickets.invariants import receipt
from prunus.tickets.mask0 import MASK0
from prunus.tickets.mask1 import MASK1
from prunus.tickets.past import KeptAction, Past, PrunedAction
from prunus.tickets.shelf import Shelf
from prunus.training import Masked, Recipe
from prunus.training.learning_rates import DECAYS
from prunus.training.state import State, copies, under

if TYPE_CHECKING:
    from prunus.tickets.ticket import Rates, Ticket

A = TypeVar("A", KeptAction, PrunedAction)


def run_ticket(
    spec: "Ticket", shelf: Shelf, needed: Sequence[Shelf], report_steps: StepReport | None = None
) -> dict[str, Any]:
    """Train level after level; a level that is written down is not trained again. Returns the last level's row."""
    wanted = spec.trained_levels()
    run = Run(spec, shelf, needed)
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
        constraint = Masked(run.model, masks, values) if run.mask0.frozen else None
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
        proof = receipt(past, masks, before, counts, kept, run.rewind, last, watch, run.mask1, run.mask0)
        row = {
            "level": level,
            "density": density_of(masks),
            **measured(run.model, watch, spec.dense.dataset()),
            "seconds": round(time.perf_counter() - began, 2),
            "receipt": proof.to_json(),
        }
        run.write(level, row, masks, start, curve_rows(level, watch))
    if shelf.has("last"):
        shelf.put("final", run.last_model())
        shelf.drop("last")
    return dict(shelf.rows()[-1])


class Run:
    """What stays the same from level to level, and what the last level left."""

    def __init__(self, spec: "Ticket", shelf: Shelf, needed: Sequence[Shelf]) -> None:
        self.spec, self.shelf, self.needed = spec, shelf, needed
        self.model = spec.dense.network()
        self.names = list(prunable(self.model))
        self.criterion, self.select, self.mask1, self.mask0 = joints(spec)
        self.original = state_on(needed[0], "state-0")
        self.rewind = state_on(needed[0], f"state-{spec.rewind_step}")
        self.recipe, self.seed = spec.dense.recipe, spec.dense.replicate
        self._finish_writing()

    @property
    def written(self) -> set[int]:
        """The levels that are written down."""
        return {row["level"] for row in self.shelf.rows()}

    def past(self, level: int) -> tuple[Past, Params]:
        """The moments of this level, and the whole model as the last training left it."""
        if self.spec.chained and self.written:
            last = self.shelf.get("last")
            start = {name: last[f"start/{name}"] for name in self.names}
            final = self.last_model()
            masks = self.shelf.get_masks(mask_name(level - 1))
        else:
            start, final = self._prunable(self.rewind.model), self.needed[0].get("final")
            masks = everything(start)

        def fresh(seed: int) -> Params:
            return {name: w.cpu() for name, w in copies(prunable(self.spec.dense.network(seed))).items()}

        original, rewind = self._prunable(self.original.model), self._prunable(self.rewind.model)
        learned = {} if self.spec.learned is None else self._prunable(self.needed[1].get("final"))
        return Past(original, rewind, start, self._prunable(final), masks, fresh, learned), final

    def masks(self, level: int, past: Past, last: Params) -> tuple[Masks, Mapping[str, int]]:
        """This level's masks, and how many weights each layer must keep."""
        source, taken = self.spec.source, self.spec.masks_of is not None
        if source is None or (taken and source.as_dense_as is not None):  # their counts are their own
            learned = self.needed[1].get_masks(mask_name(level))
            return learned, {name: int(mask.sum()) for name, mask in learned.items()}
        density = self._density(source, level)
        numbers = sizes(past.original)
        if isinstance(density, Mapping):
            once = hole(source.scope)
            counts = {name: once * count(density[name], number // once) for name, number in numbers.items()}
        else:
            counts = {"all": count(density, sum(numbers.values()))}
        if taken:
            return self.needed[1].get_masks(mask_name(level)), counts
        given = past.apart()
        if isinstance(self.criterion, Pruner):
            return self.pruned(self.criterion, level, given, last, density), counts
        evidence = Evidence(
            given.final,
            seed=derive(self.seed, "criterion", level),
            initial=given.start,
            masks=given.masks,
            probe=self._probe(),
        )
        scores = self.criterion(evidence)
        return self.select(scores, density, past.masks, derive(self.seed, "ties", level)), counts

    def pruned(self, pruner: Pruner, level: int, past: Past, last: Params, density: Density) -> Masks:
        """The masks of a pruner that looks at the trained network; what it would make of the weights is not used."""
        trained, data = self.spec.dense.network(), self.spec.dense.dataset().train.to("cpu")
        trained.load_state_dict({**last, **past.final})
        prune = pruner.on(trained.cpu(), data, derive(self.seed, "criterion", level))
        seed = derive(self.seed, "ties", level)
        return prune(past.final, density, self.select, within=past.masks, seed=seed).masks

    def start(
        self, level: int, past: Past, masks: Masks, last: Params
    ) -> tuple[Params, State, Params | None, Recipe]:
        """What the mask-1 action gives, the state training starts from, what pruned weights stay at, and how."""
        draw = (self.spec.draw,) if self.spec.draw else ()
        seeds = [derive(self.seed, name, level, *draw) for name in ("mask1", "mask0")]
        kept = self.mask1.values(past.apart(), copies(masks), seeds[0])
        whole = self.mask0.values(past.apart(), copies(masks), copies(kept), seeds[1])
        rewound = self.mask1.rest == "rewound"
        source, optimiser = (self.rewind.model, self.rewind.optimiser) if rewound else (last, {})
        start = State(self.rewind.step, {**source, **whole}, dict(optimiser), self.rewind.random)
        zeros = not any(bool((whole[name][~masks[name]] != 0).any()) for name in masks)
        recipe = self.recipe
        if self.mask1.rate == "last":
            recipe = at_last_rate(recipe, self.spec.dense.total_steps())
        return kept, start, None if zeros else whole, recipe

    def write(
        self, level: int, row: dict[str, Any], masks: Masks, start: State, curve: list[dict[str, Any]]
    ) -> None:
        """Lay down the level so that a kill between two writes loses nothing: what is needed to go on, then the row."""
        self.shelf.put_masks(mask_name(level), masks)
        last = {f"final/{name}": tensor for name, tensor in self.model.state_dict().items()}
        last |= {f"start/{name}": tensor for name, tensor in start.model.items()}
        self.shelf.put("last", last, {"row": row, "curve": curve})
        self._finish_writing()

    def last_model(self) -> Params:
        """The whole model as the last level left it."""
        return under("final/", self.shelf.get("last"))

    def before(self, level: int, past: Past) -> Masks | None:
        """The masks that a level's must lie within: those it was made within; None where it was made alone."""
        if self.spec.chained:
            return past.masks
        source, taken = self.spec.source, self.spec.masks_of
        if source is None or taken is None or not source.chained or level - 1 not in taken.trained_levels():
            return None
        return self.needed[1].get_masks(mask_name(level - 1))

    def _finish_writing(self) -> None:
        if self.shelf.has("last"):
            note = self.shelf.note("last")
            level = note["row"]["level"]
            if level not in self.written:
                self.shelf.append_curve(note["curve"])
                self.shelf.append(note["row"])
            self.shelf.drop(training_name(level))

    def _prunable(self, model: Params) -> Params:
        return {name: model[name] for name in self.names}

    def _density(self, source: "Ticket", level: int) -> Density:
        """What a level keeps: what the rates say, or as much of each layer as a learned mask does."""
        if source.as_dense_as is None:
            return densities(self.model, source.rates, source.scope, level)
        learned = self.needed[1].get_masks(mask_name(level))
        return {name: density_of({name: mask}) for name, mask in learned.items()}

    def _probe(self) -> Probe:
        """The network as this round's training started, and a batch drawn before it."""
        data = self.spec.dense.dataset().train
        draw = torch.randperm(len(data), generator=generator(self.seed, "probe"))[: self.spec.probe_size]
        chosen = draw.to(data.labels.device)
        model: nn.Module = self.spec.dense.network()
        chained = self.spec.chained and self.written
        model.load_state_dict(under("start/", self.shelf.get("last")) if chained else self.rewind.model)
        return probe(model.cpu(), data.inputs[chosen].cpu(), data.labels[chosen].cpu())


def joints(spec: "Ticket") -> tuple[Criterion | Pruner, Scope, KeptAction, PrunedAction]:
    """What the ticket is made of. Raises UnknownNameError or SpecError where there is no such thing."""
    return (
        criterion_named(spec.criterion, spec.scope, {**CRITERIA, **PRUNERS}),
        scope_named(spec.scope),
        action("mask-1 action", MASK1, spec.mask1, KeptAction),
        action("mask-0 action", MASK0, spec.mask0, PrunedAction),
    )


def action(kind: str, table: Mapping[str, A], name: str, of: type[A]) -> A:
    """A built-in action, or yours. Raises SpecError where "package.module:name" is something else."""
    one = found(kind, table, name)
    if not isinstance(one, of):
        raise SpecError(f"{name} was to be a {of.__name__}, with its claims, and is a {type(one).__name__}.")
    return one


def found(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """A built-in variant, or "package.module:name", yours."""
    return resolve(name) if ":" in name else look_up(kind, table, name)


def check_reach(spec: "Ticket", wanted: Sequence[int]) -> None:
    """Raise before any training what shapes alone tell.

    Raises DensityError where the scope cannot give the density of a wanted level, or leaves a layer without a weight;
    ModelError where the network is too large for the criterion.
    """
    if spec.masks_of is not None or spec.as_dense_as is not None:
        return
    model = outline(spec.dense.model)
    weights = prunable(model)
    if isinstance(criterion := joints(spec)[0], Pruner):
        criterion.check_size(sum(sizes(weights).values()))
    path = [densities(model, spec.rates, spec.scope, level) for level in wanted]
    if spec.scope not in ("layer", "global"):  # those give every density
        rehearse(scope_named(spec.scope), weights, path)
    for level, density in zip(wanted, path, strict=True):
        for name, asked in density.items() if isinstance(density, Mapping) else ():
            if not count(asked, weights[name].numel()):
                raise DensityError(
                    f"Level {level} would keep none of the {weights[name].numel():,} weights of {name!r} (density "
                    f"{asked:.1e}): no signal passes it; ask for fewer rounds or lower rates."
                )


@lru_cache(maxsize=8)
def outline(model: str) -> nn.Module:
    """A network of that name, for its shapes."""
    return Dense(model).network()


def densities(model: nn.Module, rates: "Rates", scope: str, level: int) -> Density:
    """The densities of a level: one a layer, or, in the global scope, one.

    >>> from prunus.models import lenet_300_100
    >>> from prunus.tickets.ticket import Rates
    >>> {n: round(d, 4) for n, d in densities(lenet_300_100(), Rates(), "layer", 2).items()}
    {'fc1.weight': 0.64, 'fc2.weight': 0.64, 'fc3.weight': 0.81}
    """
    if scope == "global":
        return float((1 - rates.linear) ** level)
    kinds = layer_kinds(model)
    names = list(prunable(model))
    rate = {name: rates.output if name == names[-1] else getattr(rates, kinds[name]) for name in names}
    return {name: (1 - rate[name]) ** level for name in names}


def at_last_rate(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with the rate of the last of its `steps` throughout: fine-tuning (Renda et al. 2020, section 2).

    >>> at_last_rate(Recipe(1, 0.1, 60, decay="steps"), 10).learning_rate
    0.001
    """
    last = look_up("learning-rate decay", DECAYS, recipe.decay)((steps - 1) / steps)
    return recipe.but(learning_rate=recipe.learning_rate * last, decay="constant")


def _warn_of_a_standstill(run: Run) -> None:
    """Warn where fine-tuning has a rate at which nothing moves: the last of a decay that ends at nothing."""
    if run.mask1.rate != "last":
        return
    last = at_last_rate(run.recipe, run.spec.dense.total_steps()).learning_rate
    if last < run.recipe.learning_rate / 1000:
        warnings.warn(
            f"Fine-tuning keeps the last learning rate, which the decay {run.recipe.decay!r} makes {last:.1e}: next to "
            "nothing moves; take another decay.",
            NoEffectWarning,
            stacklevel=3,
        )


def mask_name(level: int) -> str:
    """What a level's masks are called on a shelf."""
    return f"masks-{level:02d}"
