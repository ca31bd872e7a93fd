"""What `prunus compress` and `prunus demo` print while and after they compress, and their page."""

import time
import warnings
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from prunus.compression.container import FileInspection
    from prunus.compression.presets import CompressionRecipe
    from prunus.compression.result import Compressed
    from prunus.training import Evaluation
    from prunus.types import Dataset, Params


def compress_and_report(
    model: "nn.Module",
    data: "Dataset",
    preset: str,
    *,
    title: str,
    out: Path,
    page: Path,
    as_json: bool,
    settings: dict[str, Any],
    task: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Call `prunus.compress`, evaluate the test split, print the result, and write the page.

    Args:
        model, data, preset, settings: See `prunus.compress`.
        title: Title of the page and the table.
        out: The file to write.
        page: The page to write.
        as_json: Whether to print JSON.
        task: The arguments forward, loss and metric of `prunus.compress`, from `import_task`.
        options: Further arguments of `prunus.compress`.
    """
    import prunus
    from prunus.cli.output import echo, echo_json, stdout
    from prunus.cli.progress import cumulative_progress, epoch_lines, report
    from prunus.cli.tasks import evaluation_json
    from prunus.compression.checks import check_compressible
    from prunus.compression.density_plan import planned_densities
    from prunus.compression.presets import compression_recipe
    from prunus.files import after_writing
    from prunus.report.compression import write_page
    from prunus.report.figures import check_figure_libraries
    from prunus.training import evaluate
    from prunus.training.trainer import steps_per_epoch

    start = time.perf_counter()
    check_figure_libraries()  # an error before the work if a library of the page is missing
    train, is_search = options.get("train", True), options.get("max_accuracy_drop") is not None
    recipe = compression_recipe(preset, train=train, **settings)
    patterns = {key: options[key] for key in ("include", "exclude") if key in options}
    task = task or {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `prunus.compress` gives them
        weights = check_compressible(
            model,
            data,
            recipe,
            trains_by_recipe=train,
            calibrates=is_search or not train,
            task=task,
            **patterns,
        )
    _announce(model, recipe, weights, is_search=is_search)
    epoch_line: Any = None
    counted: Any = report
    if train and not is_search:
        num_rounds = len(planned_densities(recipe, weights))
        trainings = [*[recipe.retrain] * (num_rounds - 1), recipe.final_retrain, recipe.finetune]
        if options.get("train_first"):
            trainings.append(recipe.dense)
        num_steps = sum(training.epochs * steps_per_epoch(training, data.train) for training in trainings)
        epoch_line = epoch_lines(sum(training.epochs for training in trainings))
        counted = cumulative_progress(num_steps, report)
    result = prunus.compress(
        model, out, data=data, preset=preset, report=epoch_line, progress=counted,
        **settings, **options, **task,
    )  # fmt: skip
    with after_writing(out):
        # "sparse" applies to retraining only.
        backend = "dense" if options.get("backend") == "dense" else "auto"
        dense_test, test = (
            evaluate(network, data.test, progress=report, backend=backend, **task)
            for network in (result.dense_model, result.model)
        )
        examples, forward = data.validation.take(1000), task.get("forward")
        networks = {"before": result.dense_model, "after": result.model}
        zeros = {
            when: prunus.activation_zeros(network, examples, forward=forward)
            for when, network in networks.items()
        }
        inspection, seconds = prunus.inspect(out), time.perf_counter() - start
        report("writing the page", 0, 0)
        try:  # the page is written even if stdout is closed
            if as_json:
                errors = {**evaluation_json(dense_test, "dense_"), **evaluation_json(test), "n": test.n}
                paths = {"file": str(out), "page": str(page)}
                measured = {**errors, "activation_zeros": zeros, "seconds": seconds}
                echo_json({**paths, **result.to_json(), **measured})
            else:
                _show(result, inspection, title, out, dense_test, test)
                if zeros["after"]:
                    before, after = (f"{100 * mean(layers.values()):.0f} %" for layers in zeros.values())
                    echo(f"zero activations: {before} → {after} (inputs of layers, mean over layers)")
            stdout().flush()
        finally:
            write_page(
                page,
                result,
                inspection,
                title=title,
                dense_test=dense_test,
                test=test,
                seconds=seconds,
                provenance=data.provenance,
                activation_zeros=zeros,
            )
    if not as_json:
        echo(f"page  {page}")


def _announce(model: "nn.Module", recipe: "CompressionRecipe", weights: "Params", *, is_search: bool) -> None:
    """Log which weights will be pruned."""
    from prunus.cli.output import log
    from prunus.compression.checks import bits_by_name
    from prunus.pruning.density import densities_by_name
    from prunus.pruning.scopes import parse_scope

    bits = bits_by_name(model, list(weights), recipe.bits)
    ranked_together = parse_scope(recipe.scope).ranks_layers_together
    densities = {} if ranked_together else densities_by_name(recipe.density, list(weights))
    for name, weight in weights.items():
        shape = " × ".join(map(str, weight.shape))
        density = f" to density {densities[name]:g}" if densities else ""
        how = "" if is_search else f"{density}, and quantize it to {bits[name]} bits"
        log(f"will prune {name} ({shape}){how}")
    if ranked_together and not is_search:
        log(f"will rank them together, to density {recipe.density:g} of all")
    if others := [name for name, _ in model.named_parameters() if name not in weights]:
        log(f"not pruned: {', '.join(others)}")


def _show(
    result: "Compressed",
    inspection: "FileInspection",
    title: str,
    out: Path,
    dense_test: "Evaluation",
    test: "Evaluation",
) -> None:
    """Print the sizes after each stage, and those of the file."""
    from prunus.cli.output import echo, echo_table
    from prunus.pruning.prunable import describe_skipped
    from prunus.report.compression import stage_rows
    from prunus.report.formatting import format_density, format_quality, format_ratio, quality_name

    quality = quality_name(dense_test)
    rows = [
        (
            *(row.name, f"{row.bytes:,}", format_ratio(row.ratio)),
            *(format_density(row.density), format_quality(row.validation), row.paper_text),
        )
        for row in stage_rows(result, inspection)
    ]
    columns = ("stage", "bytes", "ratio", "density (sparsity)", f"validation {quality}", "Han et al. 2016")
    shown = None if any(row[-1] for row in rows) else -1  # the column of the paper, where it has values
    echo_table(columns[:shown], [row[:shown] for row in rows], title=title)
    if result.trials:
        trials = [
            (f"{t.density:g}", str(t.bits or "–"), f"{t.accuracy_drop:.2f}", f"{t.file_bytes:,}")
            for t in result.trials
        ]
        lost = "points lost in validation" if quality == "error" else "loss of the validation metric"
        echo_table(("density", "bits", lost, "bytes"), trials, title="Tried")
    ratio = format_ratio(inspection.ratio)
    echo(f"file  {out}: {inspection.file_bytes:,} bytes, compression ratio {ratio}")
    before, after = format_quality(dense_test), format_quality(test)
    echo(f"test  {quality} {before} before, {after} after compression")
    echo(describe_skipped(result.model, result.skipped))
