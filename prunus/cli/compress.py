"""`prunus compress`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.options import AsJson, Backend, Device, Force, Seed, Threads, argument, flag, optional
from prunus.cli.tasks import Forward, Loss, Metric

MODEL = "A built-in model, or package.module:function for your own function that returns a torch.nn.Module."
SAME = "The same as MODEL."
DATA = "A built-in data set, or package.module:function for your own. Built-in models have a default."
OUT = "Output path of the compressed model; MODEL.prunus by default."
WEIGHTS = (
    "Trained weights: a .safetensors, .prunus or torch file. Without this option, the model is trained first."
)
Weights = Annotated[Path | None, optional("FILE", WEIGHTS)]
PRESET = (
    "A compression preset of `prunus list`. By default the preset with the name of the model, cnn for --weights of a "
    "built-in network with BatchNorm and color images, or else default; without-training with --no-train."
)
CRITERION = "A criterion or pruning method of `prunus list`."
DENSITY = "Fraction of weights to keep: of every layer, or of all together if the scope is global."
MAX_ACCURACY_DROP = (
    "Search for the density and bits with the smallest file whose validation accuracy, or --metric, drops by at most "
    "this number of percentage points, or units. About nine compressions are tried."
)
NO_TRAIN = (
    "Compress the weights of --weights, or those that your function returns, without training, in seconds: the output "
    "errors of the layers are minimized."
)
RECALIBRATE = "Estimate BatchNorm statistics again after pruning and after quantizing."
TRAINING = "Training recipe: the name of a model whose published training settings are known."
OPTIMIZER = "Optimizer of the weights: sgd, nesterov, adam, adamw or rmsprop."
RATE = "Learning rate of final retraining. Those of other stages change in proportion."
MOMENTUM = "Momentum of the optimizers sgd, nesterov and rmsprop."
AUGMENTATION = "Data augmentation of all stages: none, shift or flip_crop."
SCOPE = (
    "The weights that are ranked together: layer, global, a pattern N:M, or blocks ROWSxCOLUMNS. Patterns fix the "
    "density: 2:4 requires --density 0.5 --rounds 1."
)
BITS = "Bits per weight in every layer, 1 to 8."
ROUNDS = "Rounds of pruning and retraining."
EPOCHS = (
    "Epochs of a stage: dense, retrain (after each round), final_retrain (after the last round) or finetune. May be "
    "repeated."
)
INCLUDE = "Prune only weights whose names match. May be repeated."
Include = Annotated[list[str] | None, optional("PATTERN", INCLUDE)]
EXCLUDE = "Do not prune weights whose names match. May be repeated."
Exclude = Annotated[list[str] | None, optional("PATTERN", EXCLUDE)]
CHECKPOINTS = "Directory of checkpoints. An interrupted command resumes from them."
PAGE = "Output path of the report page. By default --out with the suffix .html."
Page = Annotated[Path | None, optional("FILE", PAGE)]


def compress(
    model: Annotated[str | None, argument("MODEL", MODEL, complete="model")] = None,
    model_option: Annotated[str | None, optional("NAME", SAME, "--model", complete="model")] = None,
    data: Annotated[str | None, optional("NAME", DATA, complete="data set")] = None,
    out: Annotated[Path | None, optional("FILE", OUT)] = None,
    weights: Weights = None,
    preset: Annotated[str | None, optional("NAME", PRESET, complete="preset")] = None,
    criterion: Annotated[str | None, optional("NAME", CRITERION, complete="criterion")] = None,
    density: Annotated[float | None, optional("FRACTION", DENSITY)] = None,
    bits: Annotated[int | None, optional("N", BITS, lowest=1, highest=8)] = None,
    scope: Annotated[str | None, optional("NAME", SCOPE, complete="scope")] = None,
    max_accuracy_drop: Annotated[float | None, optional("POINTS", MAX_ACCURACY_DROP)] = None,
    no_train: Annotated[bool, flag("--no-train", NO_TRAIN)] = False,
    recalibrate: Annotated[bool, flag("--recalibrate", RECALIBRATE)] = False,
    rounds: Annotated[int | None, optional("N", ROUNDS, lowest=1, highest=10_000)] = None,
    recipe: Annotated[str | None, optional("NAME", TRAINING)] = None,
    optimizer: Annotated[str | None, optional("NAME", OPTIMIZER)] = None,
    learning_rate: Annotated[float | None, optional("RATE", RATE)] = None,
    momentum: Annotated[float | None, optional("FRACTION", MOMENTUM)] = None,
    augmentation: Annotated[str | None, optional("NAME", AUGMENTATION)] = None,
    epochs: Annotated[list[str] | None, optional("STAGE=N", EPOCHS)] = None,
    include: Include = None,
    exclude: Exclude = None,
    forward: Forward = None,
    loss: Loss = None,
    metric: Metric = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    backend: Backend = "auto",
    checkpoints: Annotated[Path | None, optional("DIR", CHECKPOINTS)] = None,
    page: Page = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune, quantize and entropy-code a network into one small file, and write a report page.

    Example: prunus compress lenet-5 --data mnist --out lenet-5.prunus

    Example: prunus compress nets:mine --weights mine.pt --data digits --max-accuracy-drop 1.0

    Example: prunus compress resnet-20 --weights mine.pt --density 0.4 --bits 3 --no-train
    """
    from prunus.cli import networks, tasks
    from prunus.cli.compress_report import compress_and_report
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.progress import report
    from prunus.cli.recipe_options import default_preset, parse_epochs
    from prunus.compression.checks import check_options
    from prunus.compression.density_plan import planned_densities
    from prunus.compression.presets import compression_recipe
    from prunus.data import load_data
    from prunus.models.loading import make_model
    from prunus.pruning.prunable import prunable_weights
    from prunus.registry import source_files

    name = _model_name(model, model_option)
    out = out or Path(f"{name.replace(':', '.')}.prunus")
    use_threads(threads)
    device = resolve_device(device)
    if page is None:
        page = out.with_suffix(".html") if out.name else out
    inputs = [*source_files(name, data, criterion, forward, loss, metric), *([weights] if weights else [])]
    _check_outputs(out, page, checkpoints, force=force, inputs=inputs)
    if no_train and weights is None and ":" not in name:
        raise typer.BadParameter(
            f"Expected trained weights of {name} without training, got none; name a file with --weights.",
            param_hint="--no-train",
        )
    network = make_model(name, seed)
    if preset is None:
        preset = default_preset(network, train=not no_train, is_trained=weights is not None)
    options = {
        "criterion": criterion, "density": density, "bits": bits, "scope": scope, "rounds": rounds, "recipe": recipe,
        "optimizer": optimizer, "learning_rate": learning_rate, "momentum": momentum, "augmentation": augmentation,
        "epochs": parse_epochs(epochs or []) or None,
    }  # fmt: skip
    settings: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    changed = compression_recipe(preset, train=not no_train, **settings)
    check_options(
        changed, settings,
        train=not no_train, max_accuracy_drop=max_accuracy_drop, has_metric=metric is not None,
        training={"checkpoints": checkpoints, "backend": backend if backend == "sparse" else None},
    )  # fmt: skip
    task = tasks.import_task(forward, loss, metric)
    if weights is not None:
        networks.load_weights_file(network, weights)
    patterns = {"include": tuple(include or ("*",)), "exclude": tuple(exclude or ())}
    planned_densities(changed, prunable_weights(network, **patterns))  # before a data set is downloaded
    data = networks.default_data(name, network) if data is None else data
    compress_and_report(
        network.to(device),
        load_data(data, device=device, seed=seed, progress=report),
        preset,
        title=f"{name} on {data}",
        out=out,
        page=page,
        as_json=as_json,
        settings=settings,
        task=task,
        train=not no_train,
        train_first=weights is None and not no_train,
        recalibrate=recalibrate,
        max_accuracy_drop=max_accuracy_drop,
        seed=seed,
        backend=backend,
        checkpoints=checkpoints,
        **patterns,
    )


def _model_name(argument: str | None, option: str | None) -> str:
    """The name of the model, which is given exactly once."""
    names = [name for name in (argument, option) if name is not None]
    if len(names) != 1:
        raise typer.BadParameter(
            f"Expected one model, as MODEL or as --model, got {' and '.join(names) or 'none'}.",
            param_hint="MODEL",
        )
    return names[0]


def _check_outputs(
    out: Path, page: Path, checkpoints: Path | None, *, force: bool, inputs: Sequence[Path]
) -> None:
    """Check that the file, its page and the checkpoints can be written without destroying an input."""
    from prunus.cli.output import check_ending
    from prunus.errors import OutputError
    from prunus.files import check_writable, why_not_writable

    if checkpoints is not None:
        if reason := why_not_writable(checkpoints):
            raise OutputError(
                f"Checkpoints cannot be written to {checkpoints}: {reason}; name another folder with --checkpoints."
            )
        checkpoint_files = (checkpoints / path.name for path in (out, page) if path.suffix == ".safetensors")
        inputs = [*inputs, *checkpoint_files]
    check_writable(out, force=force, inputs=inputs)
    check_writable(page, force=force, inputs=[*inputs, out])
    check_ending(out, ".prunus")
