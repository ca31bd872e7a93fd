"""`prunus evaluate`."""

import math
from typing import Annotated

import typer

from prunus.cli.names import completion
from prunus.cli.options import AsJson, Backend, DataName, Device, File, MaxBytes
from prunus.cli.output import echo, echo_json


def evaluate(
    file: File,
    data: DataName,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For a model that is not built in: package.module:function of a function that returns it.",
            show_default=False,
            autocompletion=completion("model"),
        ),
    ] = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    max_bytes: MaxBytes = None,
    as_json: AsJson = False,
) -> None:
    """Measure the error of a compressed file on the test split, in percent.

    Example: prunus evaluate demo/lenet-300-100.prunus --data mnist
    """
    from prunus import training
    from prunus.cli.devices import resolve_device
    from prunus.cli.progress import report
    from prunus.compression.container import load, read_header
    from prunus.compression.container.read import named_model
    from prunus.data import load_data
    from prunus.errors import ModelMismatchError
    from prunus.models import MODELS
    from prunus.models.loading import make_model
    from prunus.report import formatting
    from prunus.training.checks import check_model

    device = resolve_device(device)
    if model is None and (named_model(read_header(file)) or ("",))[0] not in MODELS:
        raise ModelMismatchError(
            f"{file} does not name a built-in model; pass yours with --model package.module:function."
        )
    loaded = load(file, None if model is None else make_model(model), max_bytes).to(device)
    dataset = load_data(data, device=device, progress=report)
    check_model(loaded, dataset.train, len(dataset.class_names))
    result = training.evaluate(loaded, dataset.test, progress=report, backend=backend)
    if as_json:
        loss = result.loss if math.isfinite(result.loss) else None
        echo_json({"test_error": result.error, "n": result.n, "loss": loss})
        return
    echo(f"test error  {formatting.format_error(result)}")
    echo(f"n           {formatting.format_int(result.n)}")
    echo(f"loss        {result.loss:.4f}")
