"""`prunus slim`: remove channels from a network, write the smaller one, and print the table of its layers."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunus.cli.compress import Page
from prunus.cli.options import AsJson, Device, Force, Seed, Threads, flag, option, optional
from prunus.cli.prune import Examples, Model
from prunus.cli.tasks import Forward, Loss, Metric

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunus.pruning.structured.latency import LatencyComparison
    from prunus.training import Evaluation

BATCH_SIZES = (1, 32)
"""Batch sizes at which the time of a forward pass is measured."""

WEIGHTS = (
    "Trained weights: a .safetensors, .prunus or torch file. Without this option, a built-in model has its initial "
    "weights; the command does not train."
)
MACS = "Multiply-accumulates to keep: a fraction, or a number above 1."
PARAMETERS = "Parameters to keep: a fraction, or a number above 1."
DENSITY = "Fraction of the channels to keep: of each group, or of all together if the scope is global."
LATENCY = "Time to keep of a forward pass of one example, as a fraction of the dense time."
FILE_BYTES = "Largest size of the .prunus file in bytes, without quantization."
CRITERION = "A filter criterion or a criterion of `prunus list`, or package.module:function of your own."
SCOPE = "layer: every group keeps the same fraction; global: the channels of all groups are ranked together."
DATA = (
    "Calibration data, if the criterion or --refit needs some, and test data, if it is a data set: a built-in one, or "
    "package.module:function for your own. Built-in models have a default."
)
SHAPE = "Shape of one example, such as 3,224,224. By default that of the data or of the built-in model."
ROUND_TO = "Keep multiples of this number of channels in each group."
MIN_CHANNELS = "Keep at least this number of channels in each group."
EXCLUDE = "A module or parameter that keeps all its channels. May be repeated."
INEXACT = "Also remove channels over which a normalization such as LayerNorm runs."
REFIT = "Fit the layers that lose inputs to the outputs of the dense layers, by least squares on the calibration data."
OUT = (
    "Output path of the smaller network: .prunus, which also stores which channels were removed, or .safetensors. By "
    "default MODEL-slim.prunus."
)


def slim(
    model: Model,
    macs: Annotated[float | None, optional("N", MACS)] = None,
    parameters: Annotated[float | None, optional("N", PARAMETERS)] = None,
    density: Annotated[float | None, optional("FRACTION", DENSITY)] = None,
    latency: Annotated[float | None, optional("FRACTION", LATENCY)] = None,
    file_bytes: Annotated[int | None, optional("N", FILE_BYTES, lowest=1)] = None,
    criterion: Annotated[str, option("NAME", CRITERION, complete="filter criterion")] = "l2",
    scope: Annotated[str, option("NAME", SCOPE)] = "layer",
    weights: Annotated[Path | None, optional("FILE", WEIGHTS)] = None,
    data: Annotated[str | None, optional("NAME", DATA, complete="data set")] = None,
    calibration_examples: Examples = None,
    input_shape: Annotated[str | None, optional("SIZES", SHAPE)] = None,
    round_to: Annotated[int, option("N", ROUND_TO, lowest=1)] = 1,
    min_channels: Annotated[int, option("N", MIN_CHANNELS, lowest=1)] = 1,
    exclude: Annotated[list[str] | None, optional("NAME", EXCLUDE)] = None,
    allow_inexact: Annotated[bool, flag("--allow-inexact", INEXACT)] = False,
    refit: Annotated[bool, flag("--refit", REFIT)] = False,
    out: Annotated[Path | None, optional("FILE", OUT)] = None,
    page: Page = None,
    forward: Forward = None,
    loss: Loss = None,
    metric: Metric = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Remove whole channels from a network, and measure the speed and the test error of the smaller dense network.

    Example: prunus slim resnet-20 --weights resnet-20.pt --macs 0.5 --criterion taylor --out smaller.prunus
    """
    import prunus
    from prunus.cli import networks, tasks
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.output import echo_json, log
    from prunus.data.examples import DEFAULT_NUM_EXAMPLES, as_examples
    from prunus.errors import ModelError
    from prunus.files import after_writing, check_writable
    from prunus.modules import copied
    from prunus.pruning.structured.criteria import filter_criterion
    from prunus.pruning.structured.latency import compare_latency
    from prunus.registry import source_files
    from prunus.report.slim import write_slim_page
    from prunus.report.templating import load_template

    load_template("slim.html")  # an error before the work if the library of the page is missing
    use_threads(threads)
    device = resolve_device(device)
    path = out or Path(f"{Path(model).name.removesuffix('.prunus').replace(':', '.')}-slim.prunus")
    inputs = [
        Path(model),
        *([weights] if weights else []),
        *source_files(model, data, criterion, forward, loss, metric),
    ]
    page = page or path.with_suffix(".html")
    check_writable(path, force=force, inputs=inputs)
    check_writable(page, force=force, inputs=[*inputs, path])
    scorer = filter_criterion(criterion)
    network, is_trained = networks.load_network(model, weights, device, seed)
    networks.check_format(network, path)
    is_initial = not is_trained and hasattr(network, "built_in")
    if is_initial:
        log(f"{model} has the initial weights of seed {seed}; pass trained weights with --weights FILE")
    needs_data = scorer.needs_examples or refit
    loaded = networks.load_calibration(model, network, data, needs_data, device=device, seed=seed)
    if loaded is None and is_trained:
        loaded = _default_test_data(model, network, device, seed)
    num_examples = calibration_examples or DEFAULT_NUM_EXAMPLES
    calibration = None if loaded is None else as_examples(loaded, num_examples).take(slice(num_examples))
    example = _example(model, network, input_shape, None if calibration is None else calibration.inputs)
    if file_bytes and path.suffix != ".prunus":
        raise ModelError(f"Expected a file that ends in .prunus with --file-bytes, got {path}.")
    task = tasks.import_task(forward, loss, metric)
    test = None if is_initial else getattr(loaded, "test", None)
    before = tasks.evaluate_if_possible(network, test, task)
    settings = {"criterion": criterion, "scope": scope, **({"refit": True} if refit else {})}
    budget = (partial(prunus.saved_size, metadata=settings), file_bytes) if file_bytes else None
    plan = prunus.slim(
        network, example.to(device),
        macs=macs, parameters=parameters, density=density, latency=latency, budget=budget, criterion=scorer,
        scope=scope, calibration=calibration, forward=task["forward"], seed=seed,
        loss=task["loss"] if scorer.uses_loss else None,
        round_to=round_to, min_channels=min_channels, exclude=exclude or (), allow_inexact=allow_inexact, refit=refit,
    )  # fmt: skip
    dense, report = copied(network), plan.report
    plan.apply()
    networks.write_network(network, path, settings)
    goals = {"macs": macs, "parameters": parameters, "density": density, "latency": latency}
    goals = {name: value for name, value in {**goals, "file bytes": file_bytes}.items() if value is not None}
    with after_writing(path):
        after = tasks.evaluate_if_possible(network, None if before is None else test, task)
        tests = None if before is None or after is None else (before, after)
        times = [(size, compare_latency(dense, network, example.to(device), size)) for size in BATCH_SIZES]
        write_slim_page(
            page, report, title=Path(model).name, times=times, tests=tests, settings={**goals, **settings}
        )
    if as_json:
        sizes = {"file": str(path), "file_bytes": path.stat().st_size, "page": str(page)}
        latencies = [{"batch_size": size, **time.to_json()} for size, time in times]
        n = {} if after is None else {"n": after.n}
        evaluations = {**tasks.evaluation_json(before, "dense_"), **tasks.evaluation_json(after), **n}
        echo_json({**sizes, **settings, **report.to_json(), **evaluations, "latency": latencies})
    else:
        _show(report, tests, times, path, page)


def _example(name: str, network: "nn.Module", input_shape: str | None, inputs: Any) -> "Tensor":
    """One example of the model, of random numbers where there are no data."""
    import torch

    from prunus.errors import DataError
    from prunus.models import input_shape as built_in_shape

    draw = torch.Generator().manual_seed(0)
    if input_shape is not None:
        try:
            sizes = [int(size) for size in input_shape.split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1:
            raise DataError(f"Expected an --input-shape such as 3,32,32, got {input_shape!r}.")
        return torch.randn(1, *sizes, generator=draw)
    if isinstance(inputs, torch.Tensor):
        return inputs[:1]
    built_in: Any = getattr(network, "built_in", None)
    if built_in is None:
        raise DataError(
            f"Expected the shape of one example of {name}, which is not built in; pass --input-shape or --data."
        )
    return torch.randn(1, *built_in_shape(built_in["name"]), generator=draw)


def _default_test_data(name: str, network: "nn.Module", device: str, seed: int) -> Any:
    """The data set of a built-in model; None, with a line on stderr for a built-in one, where there is none."""
    from prunus.cli.networks import load_calibration
    from prunus.cli.output import log
    from prunus.errors import DataError

    if not hasattr(network, "built_in"):
        return None
    try:
        return load_calibration(name, network, None, needs_data=True, device=device, seed=seed)
    except DataError as error:
        log(f"no test error: {error}")
        return None


def _show(
    report: Any,
    tests: "tuple[Evaluation, Evaluation] | None",
    times: "list[tuple[int, LatencyComparison]]",
    path: Path,
    page: Path,
) -> None:
    """Print the table of the layers, why channels remain, the test errors, the measured times and the files."""
    from prunus.cli.output import echo, echo_table
    from prunus.report.formatting import format_quality, quality_name

    header, rows = report.table()
    # the names of the coupled layers come second, so that numbers are together
    rows = [(row[0], row[-1], *row[1:-1]) for row in rows]
    echo_table((header[0], header[-1], *header[1:-1]), rows, text_columns=2, footer=1)
    for text in report.refused:
        echo(f"refused  {text}")
    if tests is not None:
        before, after = (format_quality(test) for test in tests)
        echo(
            f"test     {quality_name(tests[0])} before removal {before}, after removal without retraining {after}"
        )
    for batch_size, measured in times:
        low, middle, high = measured.speedup
        echo(
            f"time     batch {batch_size}: {1000 * measured.before:.2f} ms → {1000 * measured.after:.2f} ms, "
            f"{middle:.2f}× as fast (quartiles {low:.2f} to {high:.2f}, n = {measured.n})"
        )
    echo(f"file     {path}, {path.stat().st_size:,} bytes")
    echo(f"page     {page}")
