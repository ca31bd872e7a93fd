"""The lottery ticket procedure: train, prune, set kept and pruned weights, train again.

    θ_0 → train → θ_T;  in each round:  m = select(criterion(θ_0, θ_T)),  θ' = mask-1 (kept) and mask-0 (pruned),
    train θ'

Source: Frankle & Carbin 2019, section 2; Zhou et al. 2019, section 2.
"""

import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from prunus.data.examples import sample_examples
from prunus.errors import NoEffectWarning
from prunus.masks import Masks, mask_density
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.statistics import collect
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed, make_generator
from prunus.tickets.actions import WeightHistory
from prunus.tickets.baseline import Baseline, Needed, StepReport, final_metrics, masks_name
from prunus.tickets.invariants import Selection, check_round, count_kept
from prunus.tickets.rounds import Round, complete_interrupted_save, finish_rounds, weight_history
from prunus.tickets.ticket import TicketSpec, warn_if_learning_rate_vanishes
from prunus.training.state import TrainingState, clone_tensors
from prunus.types import MaskDict, Params, Split


def run_ticket(
    ticket: TicketSpec,
    directory: RunDirectory,
    needed: Needed,
    report_steps: StepReport | None = None,
    report_round: Callable[[Round], None] | None = None,
) -> Row:
    """Train one level after another, from the given baseline.

    Args:
        ticket: The settings.
        directory: Where every level is saved; a repeated call continues after the last saved level.
        needed: The directories of the finished dependencies: "baseline", and "masks" or "densities" if those are from
            another run.
        report_steps: Called with the number of training steps since the last call.
        report_round: Called with each round that is trained.

    Returns:
        The row of the last level.

    Raises:
        SpecError, UnknownNameError, DensityError, ModelError: As `TicketSpec.check`.
    """
    ticket.check()
    warn_if_learning_rate_vanishes(ticket)
    baseline = Baseline.load(needed["baseline"], ticket.rewind_step)
    model = ticket.baseline.make_network()
    previous = Round.dense(baseline, list(ticket.weights_of(model)))
    complete_interrupted_save(directory)
    finished = {row["level"] for row in directory.rows()}
    if finished and report_steps is not None:
        report_steps(len(finished) * (ticket.baseline.total_steps() - ticket.rewind_step))
    for level in ticket.trained_levels:
        if level in finished:
            continue
        started = time.perf_counter()
        if ticket.is_iterative and level > 1:
            previous = Round.load_last(directory)
        history = weight_history(ticket, baseline, previous, needed)
        selection = select_masks(ticket, level, history, previous, needed)
        masks = selection.masks
        kept_weights, start = starting_state(ticket, level, history, masks, baseline, previous)
        constraint = _frozen(model, masks, start.model) if ticket.mask0_action.freezes else None
        monitor = ticket.baseline.train(
            model, directory, level,
            constraint=constraint, start=start, recipe=ticket.recipe, report_steps=report_steps,
        )  # fmt: skip
        actions = ticket.mask1_action, ticket.mask0_action
        report = check_round(
            *actions, history, selection, kept_weights, baseline.rewind, previous.final, monitor
        )
        metrics = final_metrics(model, monitor, ticket.baseline)
        seconds = round(time.perf_counter() - started, 2)
        row = {"level": level, "density": mask_density(masks), **metrics, "seconds": seconds}
        row["invariants"] = report.to_json()
        finished_round = Round(level, masks, start.model, model.state_dict(), row, monitor.curve_rows(level))
        finished_round.save(directory)
        if report_round is not None:
            report_round(finished_round)
    return finish_rounds(directory)


def select_masks(
    ticket: TicketSpec, level: int, history: WeightHistory, previous: Round, needed: Needed
) -> Selection:
    """Select the masks of a level: those of another run, or the highest scores among the weights kept so far.

    Warns with NoEffectWarning if the level prunes nothing.

    Args:
        ticket: The settings.
        level: The level, from 1.
        history: The prunable weights that the criterion may use, with the masks of the last training.
        previous: The round before this one, which has the complete models that the criterion is computed on.
        needed: The directories of the finished dependencies, of which those that give masks or densities are read.

    Returns:
        The masks, with the counts and the enclosing masks that the invariants compare them with.
    """
    source, other = ticket.mask_source, ticket.masks_from
    if other is None:
        learned = needed["densities"].load_masks(masks_name(level)) if ticket.densities_from else None
        masks, counts = _prune(ticket, level, history, previous, learned), ticket.counts_at(level, learned)
        enclosing = history.masks if ticket.is_iterative else None
    else:
        masks = needed["masks"].load_masks(masks_name(level))
        # Masks without pruning rates have counts of their own.
        has_own_counts = source is None or source.densities_from is not None
        counts = count_kept(masks) if source is None or has_own_counts else source.counts_at(level)
        nested = source is not None and source.is_iterative and level - 1 in other.trained_levels
        enclosing = needed["masks"].load_masks(masks_name(level - 1)) if nested else None
    if all(torch.equal(mask, history.masks[name]) for name, mask in masks.items()):
        reason = "the learned mask keeps all weights" if source is None else f"{source.pruning_rates}"
        warnings.warn(f"Level {level} prunes nothing: {reason}.", NoEffectWarning, stacklevel=3)
    return Selection(masks, counts, enclosing, ticket.tied_names)


def _prune(
    ticket: TicketSpec, level: int, history: WeightHistory, previous: Round, learned: MaskDict | None
) -> MaskDict:
    """Select masks within those of the last training, at the weights before or after it."""
    replicate, method, scope = ticket.baseline.replicate, ticket.method, ticket.scope_value
    seed, ties_seed = (derive_seed(replicate, role, level) for role in ("criterion", "ties"))
    density, train = ticket.density_at(level, learned), ticket.baseline.load_data().train.to("cpu")
    copies, model = history.clone(), ticket.baseline.make_network().cpu()
    at_start = ticket.scored_weights == "initialization"
    model.load_state_dict(previous.start if at_start else previous.final)
    weights = clone_tensors(copies.start if at_start else copies.final)
    if not isinstance(method, CriterionMethod):
        examples = sample_examples(train, method.num_examples, seed)
        seeds = seed, ties_seed  # the masks alone: the actions set the weights of a ticket
        return method.prune(
            model, weights, density, scope, examples, within=copies.masks, seeds=seeds, **ticket.baseline.task
        ).masks
    generator = make_generator(replicate, "probe")  # the same examples in every round
    indices = torch.randperm(len(train), generator=generator)[: ticket.num_scoring_examples]
    scored = Split(train.inputs[indices], train.labels[indices])
    statistics = collect(
        model, weights, method.criterion.requires, scored,
        initial=copies.start, masks=copies.masks, seed=seed, **ticket.baseline.task,
    )  # fmt: skip
    return scope.select(method.criterion(statistics), density, history.masks, ties_seed)


def starting_state(
    ticket: TicketSpec,
    level: int,
    history: WeightHistory,
    masks: MaskDict,
    baseline: Baseline,
    previous: Round,
) -> tuple[Params, TrainingState]:
    """Return the values of the mask-1 action, and the state that training starts from.

    The mask-1 action sets kept weights and the mask-0 action pruned ones; biases, buffers and the optimizer state are
    those of the rewind step or of the last training, as the mask-1 action says.

    Args:
        ticket: The settings.
        level: The level, from 1, on which the seeds of the actions depend.
        history: The prunable weights that the actions may use; they receive copies.
        masks: The masks of the level.
        baseline: The results of the baseline, with the training state at the rewind step.
        previous: The round before this one.

    Returns:
        The weights of the mask-1 action by name, of which only kept places count; and the complete state, at the rewind
        step.
    """
    mask1, mask0, rewind = ticket.mask1_action, ticket.mask0_action, baseline.rewind
    redraw = (ticket.redraw,) if ticket.redraw else ()
    seeds = [derive_seed(ticket.baseline.replicate, role, level, *redraw) for role in ("mask1", "mask0")]
    kept_weights = mask1.values(history.clone(), clone_tensors(masks), seeds[0])
    weights = mask0.values(history.clone(), clone_tensors(masks), clone_tensors(kept_weights), seeds[1])
    if mask1.other_tensors == "rewind":
        other_tensors, optimizer = rewind.model, dict(rewind.optimizer)
    else:
        other_tensors, optimizer = previous.final, {}
    tied = ticket.tied_names
    start = {name: weights.get(tied.get(name, name), tensor) for name, tensor in other_tensors.items()}
    return kept_weights, TrainingState(rewind.step, start, optimizer, rewind.random)


def _frozen(model: nn.Module, masks: MaskDict, start: Params) -> Masks:
    """Return the constraint that keeps pruned weights at zero, or at the values of the start."""
    all_zero = not any(bool((start[name][~mask] != 0).any()) for name, mask in masks.items())
    return Masks(model, masks, None if all_zero else {name: start[name] for name in masks})
