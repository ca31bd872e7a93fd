"""Options for data and models of any task, and what commands print of an evaluation."""

import math
from typing import TYPE_CHECKING, Annotated, Any

from prunus.cli.options import optional

if TYPE_CHECKING:
    from torch import nn

    from prunus.training import Evaluation

FORWARD = (
    "package.module:function for a function (model, batch) that returns the outputs. By default, the model is called "
    "with the inputs."
)
Forward = Annotated[str | None, optional("NAME", FORWARD)]
LOSS = (
    "squared_error, cross_entropy, or package.module:function for a function (outputs, batch) that returns the mean "
    "loss. By default the loss that the outputs contain, or else cross-entropy."
)
Loss = Annotated[str | None, optional("NAME", LOSS)]
METRIC = (
    "package.module:function for a function (outputs, batch) that returns the mean of a metric, for tasks other than "
    "classification."
)
Metric = Annotated[str | None, optional("NAME", METRIC)]


def import_task(forward: str | None, loss: str | None, metric: str | None) -> dict[str, Any]:
    """The arguments of `prunus.evaluate` that the options name.

    Args:
        forward: "package.module:function".
        loss: The same, or a key of LOSSES.
        metric: "package.module:function".

    Returns:
        Keyword arguments.

    Raises:
        UnknownNameError: There is no such function or loss.
    """
    from prunus.registry import import_object
    from prunus.training.losses import find_loss

    functions = {"forward": forward, "metric": metric}
    task: dict[str, Any] = {key: import_object(name) if name else None for key, name in functions.items()}
    return {**task, "loss": import_object(loss) if loss and ":" in loss else find_loss(loss)}


def evaluate_if_possible(model: "nn.Module", data: Any, task: dict[str, Any]) -> "Evaluation | None":
    """The evaluation of a model on examples; None, with a line on stderr, where it returns no tensor to evaluate.

    Args:
        model: The model.
        data: A split, or None.
        task: From `import_task`.

    Returns:
        The evaluation.

    Raises:
        ModelError, DataError, StatisticsError: The model or the data cannot be used.
    """
    import torch

    from prunus.cli.output import log
    from prunus.cli.progress import report
    from prunus.data.examples import as_examples
    from prunus.errors import ModelError
    from prunus.training import evaluate
    from prunus.training.checks import checked_forward, unchanged
    from prunus.training.modes import eval_mode
    from prunus.training.outputs import output_tensor

    if data is None:
        return None
    if task["metric"] is None and task["loss"] is None:
        batch = as_examples(data).take(slice(2)).batch
        with unchanged(model), torch.no_grad(), eval_mode(model):
            output = checked_forward(model, batch, task["forward"])
        try:
            output_tensor(model, output)
        except ModelError as error:
            log(f"no test error: {error}")
            return None
    return evaluate(model, data, progress=report, **task)


def evaluation_json(result: "Evaluation | None", prefix: str = "") -> dict[str, float | None]:
    """The numbers of an evaluation for JSON, which has no NaN.

    Args:
        result: The evaluation.
        prefix: The beginning of each key.

    Returns:
        {key: number}; empty where there is no evaluation.
    """
    if result is None:
        return {}
    numbers = {"test_error": result.error, "test_loss": result.loss, "test_metric": result.metric}
    return {
        prefix + key: value if math.isfinite(value) else None
        for key, value in numbers.items()
        if value is not None
    }
