"""The network that a finished run ended with, and which of its weights a file need not store."""

from torch import nn

from prunus.errors import ModelMismatchError
from prunus.runs.directory import RunDirectory
from prunus.seeded_tensors import SeededTensor
from prunus.tickets.baseline import BaselineSpec


def load_trained_network(
    baseline: BaselineSpec, directory: RunDirectory
) -> tuple[nn.Module, dict[str, SeededTensor], dict[str, float]]:
    """Load the network of a finished run: the baseline, a ticket at its last level, or a most likely supermask.

    Args:
        baseline: The baseline of the run, which makes the network.
        directory: The directory of the finished run.

    Returns:
        The network; which of its weights are made from seeds, by name; and the factor of each of these layers. The
        last two are empty except for a supermask over such weights. `prunus.save(model, path, generated=...,
        factors=...)` stores them instead of the weights.

    Raises:
        ModelMismatchError: If the model function does not make the network of the run.
    """
    model = baseline.make_network()
    try:
        model.load_state_dict(directory.load_tensors("final"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelMismatchError(
            f"Expected {baseline.model} to make the network of the run, got another one: {reason}"
        ) from error
    return model, *load_seeded_weights(directory)


def load_seeded_weights(directory: RunDirectory) -> tuple[dict[str, SeededTensor], dict[str, float]]:
    """Return which weights of a finished run are made from seeds, and their factors; both may be empty."""
    if not directory.has("factors"):
        return {}, {}
    seeds = directory.load_metadata("factors")["generated"]
    generated = {name: SeededTensor(*values) for name, values in seeds.items()}
    factors = directory.load_tensors("factors")
    return generated, {name: float(value) for name, value in factors.items() if name in generated}
