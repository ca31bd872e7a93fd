"""`prunus evaluate`."""

import math
from typing import Annotated

from prunus.cli.options import AsJson, Backend, DataName, Device, File, MaxBytes, optional
from prunus.cli.output import echo, echo_json
from prunus.cli.tasks import Forward, Loss, Metric, evaluation_json, import_task

MODEL = "A model that is not built in: package.module:function for your own function that returns it."


def evaluate(
    file: File,
    data: DataName,
    model: Annotated[str | None, optional("NAME", MODEL, complete="model")] = None,
    forward: Forward = None,
    loss: Loss = None,
    metric: Metric = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    max_bytes: MaxBytes = None,
    as_json: AsJson = False,
) -> None:
    """Measure the error, the loss or a metric of a compressed file on the test split.

    Example: prunus evaluate demo/lenet-300-100.prunus --data mnist
    """
    from prunus import training
    from prunus.cli.devices import resolve_device
    from prunus.cli.progress import report
    from prunus.compression.container import load, read_header
    from prunus.compression.container.reading import named_model
    from prunus.data import load_examples
    from prunus.errors import ModelMismatchError
    from prunus.models import MODELS
    from prunus.models.loading import make_model
    from prunus.report import formatting
    from prunus.types import Dataset

    device = resolve_device(device)
    if model is None and (named_model(read_header(file)) or ("",))[0] not in MODELS:
        raise ModelMismatchError(
            f"{file} does not name a built-in model; pass yours with --model package.module:function."
        )
    loaded = load(file, None if model is None else make_model(model), max_bytes).to(device)
    task = import_task(forward, loss, metric)
    examples = load_examples(data, device=device, progress=report)
    test = examples.test if isinstance(examples, Dataset) else examples
    result = training.evaluate(loaded, test, progress=report, backend=backend, **task)
    if as_json:
        numbers = evaluation_json(result)
        echo_json({"n": result.n, "loss": numbers.pop("test_loss"), **numbers})
        return
    if not math.isnan(result.error):
        echo(f"test error  {formatting.format_error(result)}")
    if result.metric is not None:
        echo(f"metric      {result.metric:.6g}")
    echo(f"n           {result.n:,}")
    if not math.isnan(result.loss):
        echo(f"loss        {result.loss:.4f}")
