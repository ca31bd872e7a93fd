"""`prunus compress`, and the report that it shares with `prunus demo`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.names import completion
from prunus.cli.options import AsJson, Backend, DataName, Device, Force, Seed, Threads, optional

if TYPE_CHECKING:
    from torch import nn

    from prunus.compression.container import FileInspection
    from prunus.compression.presets import CompressionRecipe
    from prunus.compression.result import Compressed
    from prunus.training import Evaluation
    from prunus.types import Dataset

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A built-in model, or package.module:function for a function of yours that returns a torch.nn.Module.",
        show_default=False,
        autocompletion=completion("model"),
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="FILE", help="Output path of the compressed model.", show_default=False)
]
Weights = Annotated[
    Path | None,
    optional(
        "FILE",
        "Trained weights: a .safetensors, .prunus or torch file. Without this option, the model is "
        "trained first.",
    ),
]
Preset = Annotated[
    str | None,
    optional(
        "NAME",
        "A compression preset of `prunus list`. By default the preset with the name of the model, or else default.",
        complete=completion("preset"),
    ),
]
Density = Annotated[float | None, optional("FRACTION", "Fraction of weights to keep in every layer.")]
Scope = Annotated[
    str | None,
    optional(
        "NAME",
        "The weights that are ranked together: layer, global, a pattern N:M, or blocks ROWSxCOLUMNS. Patterns fix the "
        "density: 2:4 requires --density 0.5 --rounds 1.",
        complete=completion("scope"),
    ),
]
Bits = Annotated[int | None, optional("N", "Bits per weight in every layer, 1 to 8.", 1, 8)]
Rounds = Annotated[int | None, optional("N", "Rounds of pruning and retraining.", 1, 10_000)]
Epochs = Annotated[
    list[str] | None,
    optional(
        "STAGE=N",
        "Epochs of a stage: dense, retrain (after each round), final_retrain (after the last round) or finetune. May "
        "be repeated.",
    ),
]
Include = Annotated[
    list[str] | None, optional("PATTERN", "Prune only weights whose names match. May be repeated.")
]
Exclude = Annotated[
    list[str] | None, optional("PATTERN", "Do not prune weights whose names match. May be repeated.")
]
Checkpoints = Annotated[
    Path | None,
    optional("DIR", "Directory of checkpoints. An interrupted command resumes from them."),
]
Page = Annotated[
    Path | None, optional("FILE", "Output path of the report page. By default --out with the suffix .html.")
]


def compress(
    model: Model,
    data: DataName,
    out: Out,
    weights: Weights = None,
    preset: Preset = None,
    density: Density = None,
    bits: Bits = None,
    scope: Scope = None,
    rounds: Rounds = None,
    epochs: Epochs = None,
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    backend: Backend = "auto",
    checkpoints: Checkpoints = None,
    page: Page = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune, quantize and entropy-code a network into one small file, and write a report page.

    Example: prunus compress --model lenet-5 --data mnist --out lenet-5.prunus

    Example: prunus compress --model nets:mine --weights mine.pt --data digits --out mine.prunus
    """
    from prunus.cli import networks
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.progress import report
    from prunus.cli.recipe_options import resolve_recipe
    from prunus.compression.density_plan import planned_densities
    from prunus.data import load_data
    from prunus.models.loading import make_model
    from prunus.pruning.prunable import prunable_weights
    from prunus.registry import source_files

    use_threads(threads)
    device = resolve_device(device)
    if page is None:
        page = out.with_suffix(".html") if out.name else out
    inputs = [*source_files(model, data), *([weights] if weights else [])]
    _check_outputs(out, page, checkpoints, force=force, inputs=inputs)
    settings = resolve_recipe(model, preset, density, bits, rounds, epochs or [], scope)
    network = make_model(model, seed)
    if weights is not None:
        networks.load_weights_file(network, weights)
    patterns = {"include": tuple(include or ("*",)), "exclude": tuple(exclude or ())}
    planned_densities(settings, prunable_weights(network, **patterns))  # before a data set is downloaded
    compress_and_report(
        network.to(device),
        load_data(data, device=device, seed=seed, progress=report),
        settings,
        title=f"{model} on {data}",
        out=out,
        page=page,
        as_json=as_json,
        train_first=weights is None,
        seed=seed,
        backend=backend,
        checkpoints=checkpoints,
        **patterns,
    )


def compress_and_report(
    model: "nn.Module",
    data: "Dataset",
    recipe: "CompressionRecipe",
    *,
    title: str,
    out: Path,
    page: Path,
    as_json: bool,
    train_first: bool,
    **options: Any,
) -> None:
    """Call `prunus.compress`, evaluate the test split with PyTorch, print the result, and write the page.

    Args:
        model, data, recipe, train_first: See `prunus.compress`.
        title: Title of the page and the table.
        out: The file to write.
        page: The page to write.
        as_json: Whether to print JSON.
        options: Further arguments of `prunus.compress`.
    """
    import prunus
    from prunus.cli.output import echo, echo_json, stdout
    from prunus.cli.progress import cumulative_progress, epoch_lines, report
    from prunus.files import after_writing
    from prunus.report.compression import write_page
    from prunus.report.figures import check_figure_libraries
    from prunus.training import evaluate
    from prunus.training.loop import steps_per_epoch

    start = time.perf_counter()
    check_figure_libraries()  # an error before the work if a library of the page is missing
    patterns = {key: options[key] for key in ("include", "exclude") if key in options}
    rounds = _announce(model, data, recipe, **patterns)
    trainings = [*[recipe.retrain] * (rounds - 1), recipe.final_retrain, recipe.finetune]
    if train_first:
        trainings.append(recipe.dense)
    num_steps = sum(training.epochs * steps_per_epoch(training, data.train) for training in trainings)
    result = prunus.compress(
        model,
        out,
        data=data,
        preset=recipe,
        train_first=train_first,
        report=epoch_lines(sum(training.epochs for training in trainings)),
        progress=cumulative_progress(num_steps, report),
        **options,
    )
    with after_writing(out):
        dense_test = evaluate(result.dense_model, data.test, progress=report, backend="dense")
        test = evaluate(result.model, data.test, progress=report, backend="dense")
        inspection, seconds = prunus.inspect(out), time.perf_counter() - start
        report("writing the page", 0, 0)
        try:  # the page is written even if stdout is closed
            if as_json:
                errors = {"dense_test_error": dense_test.error, "test_error": test.error, "n": test.n}
                paths = {"file": str(out), "page": str(page)}
                echo_json({**paths, **result.to_json(), **errors, "seconds": seconds})
            else:
                _show(result, inspection, title, out, dense_test, test)
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
            )
    if not as_json:
        echo(f"page  {page}")


def _announce(model: "nn.Module", data: "Dataset", recipe: "CompressionRecipe", **patterns: Any) -> int:
    """Check everything, log which weights will be pruned, and return the number of rounds."""
    from prunus.cli.output import log
    from prunus.compression.checks import bits_by_name, check_compressible
    from prunus.compression.density_plan import planned_densities
    from prunus.pruning.density import densities_by_name
    from prunus.pruning.scopes import parse_scope

    weights = check_compressible(model, data, recipe, **patterns)
    bits = bits_by_name(model, list(weights), recipe.bits)
    ranked_together = parse_scope(recipe.scope).ranks_layers_together
    densities = {} if ranked_together else densities_by_name(recipe.density, list(weights))
    for name, weight in weights.items():
        shape = " × ".join(map(str, weight.shape))
        density = f" to density {densities[name]:g}" if densities else ""
        log(f"will prune {name} ({shape}){density}, and quantize it to {bits[name]} bits")
    if ranked_together:
        log(f"will rank them together, to density {recipe.density:g} of all")
    if others := [name for name, _ in model.named_parameters() if name not in weights]:
        log(f"not pruned: {', '.join(others)}")
    return len(planned_densities(recipe, weights))


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
    from prunus.report import formatting
    from prunus.report.compression import stage_rows

    columns = ("stage", "bytes", "ratio", "density (sparsity)", "validation error", "Han et al. 2016")
    rows = [
        (
            *(row.name, formatting.format_int(row.bytes), formatting.format_ratio(row.ratio)),
            *(
                formatting.format_density(row.density),
                formatting.format_error(row.validation),
                row.paper_text,
            ),
        )
        for row in stage_rows(result, inspection)
    ]
    echo_table(columns, rows, title=title)
    size, ratio = formatting.format_int(inspection.file_bytes), formatting.format_ratio(inspection.ratio)
    echo(f"file  {out}: {size} bytes, compression ratio {ratio}")
    before, after = formatting.format_error(dense_test), formatting.format_error(test)
    echo(f"test  error {before} before, {after} after compression")
    echo(f"rest  {describe_skipped(result.model, result.skipped)}")


def _check_outputs(
    out: Path, page: Path, checkpoints: Path | None, *, force: bool, inputs: Sequence[Path]
) -> None:
    """Check that the file, its page and the checkpoints can be written without destroying an input."""
    from prunus.diagnostics import why_not_writable
    from prunus.errors import OutputError
    from prunus.files import check_writable, has_control_characters

    if checkpoints is not None:
        if has_control_characters(checkpoints):
            name, reason = repr(str(checkpoints)), "its name has control characters"
        else:
            name, reason = str(checkpoints), why_not_writable(checkpoints)
        if reason:
            raise OutputError(
                f"Checkpoints cannot be written to {name}: {reason}; name another folder with --checkpoints."
            )
        checkpoint_files = (checkpoints / path.name for path in (out, page) if path.suffix == ".safetensors")
        inputs = [*inputs, *checkpoint_files]
    check_writable(out, force=force, inputs=inputs)
    check_writable(page, force=force, inputs=[*inputs, out])
