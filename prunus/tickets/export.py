"""The network that a finished run ended with, and what a file of it can do without."""

from typing import Any, Protocol

from torch import nn

from prunus.errors import ModelMismatchError
from prunus.seeded_tensors import SeededTensor
from prunus.tickets.baseline import BaselineSpec
from prunus.types import Params


class OfDense(Protocol):
    """A spec of what is made of a dense training."""

    @property
    def dense(self) -> BaselineSpec:
        """The training."""


class Kept(Protocol):
    """What a finished run has left: a shelf, or its folder in a store."""

    def has(self, name: str) -> bool:
        """Whether that name is kept."""

    def load_tensors(self, name: str) -> Params:
        """The tensors of that name."""

    def load_metadata(self, name: str) -> dict[str, Any]:
        """The note of that name."""


def load_trained_network(
    spec: BaselineSpec | OfDense, kept: Kept
) -> tuple[nn.Module, dict[str, SeededTensor], dict[str, float]]:
    """The network of a finished run: trained, a ticket's at its last level, or under its most likely supermask.

    With it, which of its weights come from seeds, and each layer's factor: empty but for a supermask over such
    weights. `prunus.save(model, path, generated=..., factors=...)` writes the two instead of the weights.
    Raises ModelMismatchError where the model has changed since.
    """
    dense = spec if isinstance(spec, BaselineSpec) else spec.dense
    model = dense.network()
    try:
        model.load_state_dict(kept.load_tensors("final"))
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise ModelMismatchError(
            f"{dense.model} does not make the network that the run ended with: {why}"
        ) from error
    return model, *from_seeds(kept)


def from_seeds(kept: Kept) -> tuple[dict[str, SeededTensor], dict[str, float]]:
    """How the weights of a finished run come from seeds, and their factors; both are empty where they do not."""
    if not kept.has("factors"):
        return {}, {}
    generated = {name: SeededTensor(*how) for name, how in kept.load_metadata("factors")["generated"].items()}
    return generated, {
        name: float(value) for name, value in kept.load_tensors("factors").items() if name in generated
    }
