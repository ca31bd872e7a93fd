"""`prunus prune`: train if need be, call `prunus.prune`, write the network, and print the report."""

from pathlib import Path
from typing import Annotated, Any

from prunus.cli.compress import Exclude, Include, Weights
from prunus.cli.options import AsJson, Device, Force, Seed, Threads, argument, flag, option, optional
from prunus.cli.tasks import Forward, Loss, Metric

MODEL = (
    "A built-in model, package.module:function for your own function that returns a torch.nn.Module, or a .prunus file "
    "of a built-in model."
)
Model = Annotated[str, argument("MODEL", MODEL, complete="model")]
CRITERION = (
    "A criterion or pruning method of `prunus list`; obs, sparse_gpt, admm, fisher and full_obs also update the "
    "remaining weights."
)
SCOPE = "Which weights are ranked together: layer, global, a pattern N:M, or blocks ROWSxCOLUMNS."
DENSITIES = (
    "error-curves chooses the density of each layer by the output errors that obs predicts. By default, every layer "
    "has --density."
)
OUT = (
    "Output path of the pruned network: .safetensors, or .prunus, which is entropy-coded. By default "
    "MODEL-pruned.safetensors."
)
DATA = (
    "A built-in data set, or package.module:function for your own function that returns a prunus.Dataset, tensors or "
    "a DataLoader. Built-in models have a default."
)
Examples = Annotated[int | None, optional("N", "Number of calibration examples; 1024 by default.", lowest=1)]
DAMPING = "Damping added to the curvature so that it can be inverted; each criterion defines its scale."
STEPS = "Number of pruning steps, 1 by default. The curvature is computed again before each step."
RECALIBRATE = "Estimate BatchNorm statistics again after pruning."
REFIT = "Fit the remaining weights of each layer to its dense outputs on the calibration examples."
STRICT = (
    "Fail if the scope or criterion cannot prune a weight, such as 2:4 with 3 inputs. By default, such a weight is not "
    "pruned."
)
NO_TRAIN = "Prune the weights that your function returns, without training the model first."


def prune(
    model: Model,
    density: Annotated[float, optional("FRACTION", "Fraction of weights to keep.")],
    criterion: Annotated[str, option("NAME", CRITERION, complete="criterion")] = "magnitude",
    scope: Annotated[str, option("NAME", SCOPE, complete="scope")] = "layer",
    densities: Annotated[str | None, optional("NAME", DENSITIES)] = None,
    weights: Weights = None,
    data: Annotated[str | None, optional("NAME", DATA, complete="data set")] = None,
    out: Annotated[Path | None, optional("FILE", OUT)] = None,
    calibration_examples: Examples = None,
    damping: Annotated[float | None, optional("FRACTION", DAMPING)] = None,
    steps: Annotated[int | None, optional("N", STEPS, lowest=1)] = None,
    refit: Annotated[bool, flag("--refit", REFIT)] = False,
    recalibrate: Annotated[bool, flag("--recalibrate", RECALIBRATE)] = False,
    include: Include = None,
    exclude: Exclude = None,
    strict: Annotated[bool, flag("--strict", STRICT)] = False,
    no_train: Annotated[bool, flag("--no-train", NO_TRAIN)] = False,
    forward: Forward = None,
    loss: Loss = None,
    metric: Metric = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune a trained network in one call, without retraining, and print the error of each layer.

    Example: prunus prune lenet-300-100 --criterion obs --density 0.5 --scope 2:4

    Example: prunus prune nets:mine --weights mine.pt --data digits --criterion sparse_gpt --density 0.3
    """
    import prunus
    from prunus.cli import networks, tasks
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.output import echo, echo_json, log
    from prunus.cli.progress import report
    from prunus.files import after_writing, check_writable
    from prunus.pruning.methods import pruning_method, with_options
    from prunus.pruning.prune import check_prune, uses_loss
    from prunus.pruning.scopes import parse_scope
    from prunus.pruning.selection import select_weights
    from prunus.registry import source_files
    from prunus.report import formatting

    use_threads(threads)
    device = resolve_device(device)
    path = out or Path(f"{Path(model).name.removesuffix('.prunus').replace(':', '.')}-pruned.safetensors")
    inputs = [
        Path(model),
        *([weights] if weights else []),
        *source_files(model, data, criterion, forward, loss, metric),
    ]
    check_writable(path, force=force, inputs=inputs)
    network, is_trained = networks.load_network(model, weights, device, seed)
    # Everything that can be known before the training is checked before it.
    networks.check_format(network, path)
    task = tasks.import_task(forward, loss, metric)
    patterns: dict[str, Any] = {"include": tuple(include or ("*",)), "exclude": tuple(exclude or ())}
    allocation: Any = densities.replace("-", "_") if densities else None
    method = pruning_method(criterion)
    method = with_options(method, num_examples=calibration_examples, damping=damping, num_steps=steps)
    selection = select_weights(network, method, parse_scope(scope), strict=strict, **patterns)
    check_prune(method, selection, density, parse_scope(scope), allocation)
    is_trained = is_trained or no_train
    needs_data = refit or recalibrate or method.needs_examples or allocation is not None or not is_trained
    needs_data = needs_data or hasattr(network, "built_in")  # a built-in model is evaluated on its data set
    examples = networks.load_calibration(model, network, data, needs_data, device=device, seed=seed)
    if not is_trained:
        networks.train_with_its_recipe(model, network, examples, seed, task)
    test = getattr(examples, "test", None)
    before = tasks.evaluate_if_possible(network, test, task)
    report("pruning", 0, 0)
    pruned = prunus.prune(
        network, density,
        criterion=method, scope=scope, densities=allocation, calibration=examples, refit=refit, recalibrate=recalibrate,
        forward=task["forward"], loss=task["loss"] if uses_loss(method) else None,
        strict=strict, seed=seed, progress=report, **patterns,
    )  # fmt: skip
    networks.write_network(network, path, {"criterion": criterion, "density": density, "scope": scope})
    for name, reason in pruned.report.unmeasured.items():
        log(f"no error of {name}: {reason}")
    with after_writing(path):
        after = tasks.evaluate_if_possible(network, None if before is None else test, task)
    if as_json:
        names = {"file": str(path), "criterion": criterion, "scope": scope}
        n = {} if after is None else {"n": after.n}
        tests = {**tasks.evaluation_json(before, "dense_"), **tasks.evaluation_json(after), **n}
        echo_json({**names, **pruned.report.to_json(), **tests})
        return
    _show(pruned.report, recalibrate)
    if before is not None and after is not None:
        texts = [formatting.format_quality(result) for result in (before, after)]
        quality = formatting.quality_name(before)
        echo(f"test   {quality} before pruning {texts[0]}, after pruning {texts[1]}")
    echo(f"file   {path}")


def _show(report: Any, recalibrate: bool) -> None:
    """Print one row per layer, and what was not pruned."""
    from prunus.cli.output import echo, echo_table
    from prunus.report import formatting

    header, rows = report.table()
    title = "Squared error of the output of each layer, relative to the output"
    echo_table(header, rows, text_columns=2, title=title)
    damping = f", damping {report.damping:.3g}" if report.damping else ""
    echo(f"all    {formatting.format_density(report.density)} kept in {report.seconds:.1f} s{damping}")
    echo(report.not_pruned)
    if recalibrate:
        echo(f"BatchNorm layers recalibrated: {report.num_recalibrated}")
