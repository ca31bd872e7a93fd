"""What `prune` does: train where need be, prune at one go, write the network, and say what it costs."""

import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.cli.loading import check_fit, create_model, load_dataset, load_weights_into
from prunus.cli.output import echo, echo_json, echo_table, log
from prunus.cli.progress import epoch_lines, report
from prunus.cli.recipe_options import resolve_recipe
from prunus.cli.tensors import safetensors_bytes
from prunus.compression.container import load, pack
from prunus.compression.density_checks import check_densities_nonempty
from prunus.compression.save import save
from prunus.errors import DataError, DensityError, ModelError, NoEffectWarning, StatisticsError
from prunus.files import after_writing, check_writable, write_atomic
from prunus.masks import all_kept, apply_masks, mask_density
from prunus.pruning.layerwise import (
    LayerHessian,
    allocate_densities,
    error_curves,
    exact_obs,
    layer_hessians,
    relative_error_curves,
    relative_output_errors,
)
from prunus.pruning.prunable import coverage, describe_skipped, prunable_weights, skipped_parameters
from prunus.pruning.pruners import Pruner, get_criterion, make_prune_fn, sample_examples
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import Scope, check_densities_reachable, get_scope
from prunus.pruning.second_order import PruneResult, intermediate_densities
from prunus.pruning.weights import with_weights
from prunus.registry import source_files
from prunus.report import formatting
from prunus.seeds import derive_seed
from prunus.training import Evaluation, evaluate, train
from prunus.training.checks import check_tensor_state
from prunus.types import Dataset, Density, Params, Split, numel_by_name

BUDGET = "budget"
EXAMPLES = 1024
"""That a layer's error is looked at with, where the criterion does not say."""


@dataclass(frozen=True)
class PruneOptions:
    """What the command line asks for."""

    model: str
    weights: Path | None
    data: str | None
    device: str
    criterion: str
    density: float
    scope: str
    examples: int | None
    damping: float | None
    cuts: int | None
    recalibrate: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    out: Path | None
    seed: int
    force: bool = False


@dataclass(frozen=True)
class LayerRow:
    """A layer; errors are those of its output on examples of the validation split, as shares of the output."""

    name: str
    shape: tuple[int, ...]
    density: float
    zeroed: float | None
    """With the pruned weights at zero and the others as they were; None: not of a kind whose output is looked at."""
    updated: float | None
    """With the weights as they are written."""
    seconds: float | None
    """None: the layers were not pruned one by one."""


@dataclass(frozen=True)
class PruneReport:
    """What came of a job."""

    job: PruneOptions
    out: Path
    rows: list[LayerRow]
    done: PruneResult
    recalibrated: int
    before: Evaluation
    after: Evaluation
    seconds: float
    """Of pruning alone."""
    coverage: Mapping[str, object]
    """How many of all parameters were not pruned, and why."""
    not_pruned: str
    """The same as a sentence."""


def run_prune(job: PruneOptions) -> PruneReport:
    """Do it. Raises before the work what can be known before it."""
    name = Path(job.model).name.removesuffix(".prunus").replace(":", ".")
    out = job.out or Path(f"{name}-pruned.safetensors")
    inputs = [Path(job.model), *([job.weights] if job.weights else []), *source_files(job.model, job.data)]
    check_writable(out, force=job.force, inputs=inputs)
    if out.suffix not in (".safetensors", ".prunus"):
        raise ModelError(f"{out} was to be written; a name ends in .safetensors or .prunus.")
    model, trained = _model(job)
    if out.suffix == ".safetensors":
        safetensors_bytes(model.state_dict())  # what such a file cannot hold is known before the work
    weights = prunable_weights(model, job.include, job.exclude)
    criterion = _criterion(job)
    scope = get_scope("layer" if job.scope == BUDGET else job.scope)
    _rehearse(job, criterion, scope, weights)
    _check_format(model, out)
    data = load_dataset(_usual_data(job.model, model) if job.data is None else job.data, job.device, job.seed)
    check_fit(model, data)
    if not trained:
        model = _trained(job, model, data)
        weights = prunable_weights(model, job.include, job.exclude)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    began = time.perf_counter()
    seed = derive_seed(job.seed, "prune")
    examples = criterion.examples if isinstance(criterion, Pruner) else job.examples or EXAMPLES
    few = sample_examples(data.train, examples, seed)
    density = _budgeted(job, model, before, few) if job.scope == BUDGET else job.density
    report("pruning", 0, 0)
    prune = make_prune_fn(criterion, model, data.train, seed, report)
    done = prune(before, density, scope, seed=derive_seed(job.seed, "ties"))
    seconds = time.perf_counter() - began
    if mask_density(done.masks) == 1.0:
        warnings.warn("Every weight is kept, so nothing is pruned.", NoEffectWarning, stacklevel=2)
    pruned = with_weights(model, done.weights)
    recalibrated = recalibrate_batchnorm(pruned, few.inputs, progress=report) if job.recalibrate else 0
    _write(job, pruned, out)
    with after_writing(out):
        report("measuring the error of each layer", 0, 0)
        rows = _rows(model, before, done, data.validation.take(examples))
        dense = evaluate(model, data.test, progress=report)
        after = evaluate(pruned, data.test, progress=report)
        skipped = skipped_parameters(model, job.include, job.exclude)
        return PruneReport(
            job,
            out,
            rows,
            done,
            recalibrated,
            dense,
            after,
            seconds,
            coverage(model, skipped),
            describe_skipped(model, skipped),
        )


def _model(job: PruneOptions) -> tuple[nn.Module, bool]:
    """The network, and whether it is trained."""
    path = Path(job.model)
    if path.suffix == ".prunus":
        if job.weights is not None:
            raise ModelError(f"{path} has weights of its own; --weights {job.weights} would replace them.")
        return load(path).to(job.device), True
    model = create_model(job.model, job.seed)
    if job.weights is not None:
        load_weights_into(model, job.weights)
    return model.to(job.device), job.weights is not None


def _usual_data(name: str, model: nn.Module) -> str:
    """The data set that the papers of a built-in model have it on."""
    built_in: Any = getattr(model, "built_in", None)
    if built_in is None:
        raise DataError(f"Which data {name} takes is not known; name a data set with --data.")
    return "mnist" if built_in["name"].startswith("lenet") else "cifar-10"


def _criterion(job: PruneOptions) -> Any:
    found = get_criterion(job.criterion, "layer" if job.scope == BUDGET else job.scope)
    if isinstance(found, Pruner):
        return replace(
            found,
            examples=found.examples if job.examples is None else job.examples,
            damping=found.damping if job.damping is None else job.damping,
            cuts=found.cuts if job.cuts is None else job.cuts,
        )
    for asked, usual, what in ((job.cuts or 1, 1, "cuts"), (job.damping, None, "damping")):
        if asked != usual:
            raise StatisticsError(
                f"{asked} {what} were asked for, but {job.criterion!r} looks at weights alone: they change nothing."
            )
    return found


def _rehearse(job: PruneOptions, criterion: Any, scope: Scope, weights: Params) -> None:
    """Raise before any training what sizes and densities will raise."""
    density = job.density
    check_densities_nonempty(density, "global" if job.scope == BUDGET else job.scope, weights)
    check_densities_reachable(scope, weights, [density])
    if not isinstance(criterion, Pruner):
        return
    criterion.check_size(sum(numel_by_name(weights).values()))
    *between, _ = intermediate_densities(density, scope, all_kept(weights), criterion.cuts)
    try:
        check_densities_reachable(scope, weights, between)
    except DensityError as error:
        raise DensityError(
            f"{criterion.cuts} cuts pass through other densities on the way to {density}: {error}"
        ) from None


def _trained(job: PruneOptions, model: nn.Module, data: Dataset) -> nn.Module:
    recipe = resolve_recipe(job.model, None, None, None, None, []).dense
    log(
        f"{job.model} is trained first, {formatting.pluralize(recipe.epochs, 'epoch')}; --weights FILE takes trained ones"
    )
    model = copy.deepcopy(model)
    epoch_line = epoch_lines(recipe.epochs)
    train(
        model,
        data,
        recipe,
        seed=derive_seed(job.seed, "dense"),
        report=lambda epoch: epoch_line("dense", epoch),
        progress=report,
    )
    return model


def _budgeted(job: PruneOptions, model: nn.Module, weights: Params, few: Split) -> Density:
    """The density of each layer, from the errors that exact OBS foretells."""
    surgeon = exact_obs(model, few.inputs, progress=report)(weights, all_kept(weights))
    found = relative_error_curves(error_curves(surgeon.scores(), surgeon.masks), surgeon.inputs, weights)
    return allocate_densities(found, numel_by_name(weights), job.density)


def _rows(model: nn.Module, before: Params, done: PruneResult, few: Split) -> list[LayerRow]:
    zeroed, updated = _errors(model, before, done, few)
    return [
        LayerRow(
            name,
            tuple(weight.shape),
            mask_density({name: done.masks[name]}),
            zeroed.get(name),
            updated.get(name),
            done.seconds.get(name),
        )
        for name, weight in before.items()
    ]


def _errors(
    model: nn.Module, before: Params, done: PruneResult, few: Split
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Before and after the update. A layer that cannot be looked at, or answers zero, has none."""
    found = {
        name: inputs
        for name, inputs in _looked_at(model, before, few).items()
        if inputs.error(before[name])  # a layer that answers zero has no share of it
    }
    zeroed = apply_masks({name: before[name] for name in found}, {name: done.masks[name] for name in found})
    return relative_output_errors(found, before, zeroed), relative_output_errors(found, before, done.weights)


def _looked_at(model: nn.Module, weights: Params, few: Split) -> dict[str, LayerHessian]:
    try:
        return layer_hessians(model, weights, few.inputs, progress=report)
    except (ModelError, StatisticsError) as error:
        if len(weights) == 1:
            log(f"no error of {next(iter(weights))}: {error}")
            return {}
    alone = [_looked_at(model, {name: weight}, few) for name, weight in weights.items()]
    return {name: found for one in alone for name, found in one.items()}


def _write(job: PruneOptions, pruned: nn.Module, out: Path) -> None:
    if out.suffix == ".prunus":
        save(pruned, out, made={"criterion": job.criterion, "density": job.density, "scope": job.scope})
        return
    write_atomic(out, safetensors_bytes(pruned.state_dict()))


def _check_format(model: nn.Module, out: Path) -> None:
    """Raise, before any work, what writing a tensor of `model` into `out` would raise: one entry of each is encoded."""
    check_tensor_state(model)
    samples = {
        # What is not dense has no first entry, and is refused as a whole.
        name: tensor.detach().flatten()[:1].clone() if tensor.layout == torch.strided else tensor.detach()
        for name, tensor in model.state_dict().items()
    }
    if out.suffix == ".prunus":
        pack(samples)
    else:
        safetensors_bytes(samples)


def to_json(outcome: PruneReport) -> dict[str, object]:
    """The same as JSON has it; errors of the network in percent, of a layer as a share."""
    job = outcome.job
    return {
        "file": str(outcome.out),
        "criterion": job.criterion,
        "scope": job.scope,
        "density": mask_density(outcome.done.masks),
        "coverage": dict(outcome.coverage),
        "damping": outcome.done.damping,
        "recalibrated": outcome.recalibrated,
        "dense_test_error": outcome.before.error,
        "test_error": outcome.after.error,
        "n": outcome.after.n,
        "seconds": outcome.seconds,
        "layers": [
            {
                "name": row.name,
                "shape": list(row.shape),
                "density": row.density,
                "error_before": row.zeroed,
                "error_after": row.updated,
                "seconds": row.seconds,
            }
            for row in outcome.rows
        ],
    }


def show_prune(outcome: PruneReport, as_json: bool) -> None:
    """Print a row a layer, and what became of the network."""
    if as_json:
        echo_json(to_json(outcome))
        return
    echo_table(
        ("weights", "shape", "density (sparsity)", "error, zeroed", "error, updated", "seconds"),
        [
            (
                row.name,
                " × ".join(map(str, row.shape)),
                formatting.format_density(row.density),
                _share(row.zeroed),
                _share(row.updated),
                "–" if row.seconds is None else f"{row.seconds:.2f}",
            )
            for row in outcome.rows
        ],
        words=2,
        title="Squared error of what each layer answers, as a share of the answers",
    )
    whole = mask_density(outcome.done.masks)
    damping = f", damping {outcome.done.damping:.3g}" if outcome.done.damping else ""
    weights = sum(numel_by_name(outcome.done.masks).values())
    echo(
        f"all    {formatting.format_density(whole)} kept of {weights:,} weights in {outcome.seconds:.1f} s{damping}"
    )
    echo(f"rest   {outcome.not_pruned}")
    if outcome.job.recalibrate:
        echo(f"norms  {outcome.recalibrated} recalibrated")
    echo(
        f"test   {formatting.format_error(outcome.before)} wrong before, {formatting.format_error(outcome.after)} after"
    )
    echo(f"file   {outcome.out}")


def _share(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.3g} %"
