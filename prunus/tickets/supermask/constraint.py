"""A learned mask as a constraint of the training loop: the scores are what is trained, the weights never are.

    forward    w' = w · f,  f = mask · scale of this step, written into the model's parameters in place
    backward   ∂L/∂w' by the loop; ∂L/∂score from it by the kind's straight-through rule, before the optimizer steps

Nothing of the forward pass is repeated and nothing of it is in a graph: a step costs a dense one and a few passes
over the weights.
"""

import hashlib
from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, ModelError
from prunus.masks import check_masks
from prunus.seeds import derive_seed
from prunus.tickets.supermask.uniforms import aligned_chunks, is_dense_in_memory, laid_out_as
from prunus.types import MaskDict, Params


class MaskLayer(Protocol):
    """The mask of one tensor while it is learned. All tensors have the weight's shape and lie in memory as it does."""

    scores: Tensor
    """What the optimizer steps."""
    factors: Tensor
    """Mask x scale of this step."""

    def draw(self, place: int) -> None:
        """Set the factors: a function of the scores and of (seed, place) alone."""

    def pull(self, upstream: Tensor, effective: Tensor, out: Tensor) -> None:
        """Set `out` to the gradient of the scores, from that of the effective weights, weight x factor."""

    def likely(self) -> Tensor:
        """The factors of the one mask that the scores say, without chance."""


class SupermaskType(Protocol):
    """The settings of a kind of mask."""

    kind: ClassVar[str]

    @property
    def density(self) -> float | None:
        """The density that is expected at the start; None: it is not known before."""

    @property
    def random(self) -> bool:
        """Whether a mask is drawn anew in every step."""

    def check(self) -> None:
        """Raise PrunusError where no mask can have these settings."""

    def layer(self, weight: Tensor, seed: int) -> MaskLayer:
        """The mask of a tensor, before its first draw. Raises PrunusError as `check` does, or for this tensor."""


class SupermaskConstraint:
    """A constraint for the training loop: after every step, the model's weights are `weights` under a new mask.

    Whatever is not in `weights` (biases, norms) stays as it is in the model.

    >>> from prunus.tickets.supermask.edge_popup import EdgePopup
    >>> model = nn.Linear(4, 1)
    >>> learned = SupermaskConstraint(model, {"weight": torch.ones(1, 4)}, EdgePopup(density=0.5), seed=0)
    >>> learned.apply()
    >>> int(model.weight.count_nonzero())
    2
    """

    def __init__(self, model: nn.Module, weights: Params, kind: SupermaskType, seed: int) -> None:
        self.model = model
        parameters = dict(model.named_parameters())
        check_masks(parameters, weights)
        self.parameters = {name: parameters[name] for name in weights}
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                raise ModelError(
                    f"A mask was to be learned over {name!r}, which has requires_grad = False: no gradient tells "
                    "what to keep; set it to True."
                )
        gaps = [name for name, parameter in self.parameters.items() if not is_dense_in_memory(parameter)]
        if gaps:
            raise ModelError(
                f"{', '.join(gaps)} would be learned in place but are views with gaps or overlaps in memory; "
                "make each a parameter of its own, nn.Parameter(weight.detach().contiguous())."
            )
        self.effective = {name: parameter.detach() for name, parameter in self.parameters.items()}
        """The parameters themselves, to be written in place."""
        self.weights = {
            name: torch.empty_like(self.effective[name]).copy_(weight) for name, weight in weights.items()
        }
        self.layers = {
            name: kind.layer(weight, derive_seed(seed, "supermask", name))
            for name, weight in self.weights.items()
        }
        self.draws = 0
        """How many masks were drawn; what the next is depends on it and on the scores alone."""

    def trainable_tensors(self) -> dict[str, Tensor]:
        """The scores."""
        return {name: layer.scores for name, layer in self.layers.items()}

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """The gradients of the scores from those of the effective weights."""
        for name, layer in self.layers.items():
            upstream = self.parameters[name].grad
            if upstream is None:
                raise ModelError(
                    f"A mask was to be learned over {name!r}, which the forward pass does not reach: no gradient tells "
                    "what to keep; take the layer out of the network."
                )
            if layer.scores.grad is None:
                layer.scores.grad = torch.empty_like(layer.scores)
            effective = self.effective[name]
            layer.pull(laid_out_as(effective, upstream), effective, layer.scores.grad)

    def apply(self) -> None:
        """Draw the mask of the next step, and write the effective weights."""
        self.draws += 1
        self.put()

    @torch.no_grad()
    def put(self, place: int | None = None) -> None:
        """Write the effective weights of the mask at `place`, or of the step's."""
        for name, layer in self.layers.items():
            layer.draw(self.draws if place is None else place)
            for weight, factors, out in aligned_chunks(
                self.weights[name], layer.factors, self.effective[name]
            ):
                torch.mul(weight, factors, out=out)

    def sample(self, number: int) -> None:
        """Write the effective weights of a fresh mask, no step's: the same ones for a number whenever it is asked."""
        self.put(-1 - number)

    @torch.no_grad()
    def put_likely(self) -> Params:
        """Write the effective weights of the most likely mask, and return its factors."""
        factors = {name: layer.likely() for name, layer in self.layers.items()}
        for name, factor in factors.items():
            torch.mul(self.weights[name], factor, out=self.effective[name])
        self.finalize()
        return factors

    def verify(self) -> int:
        """How many weights in the model are not, bit for bit, zero or weight x this step's one factor (or minus it)."""
        return sum(
            int(torch.count_nonzero(~_allowed(self.effective[name], self.weights[name], layer.factors)))
            for name, layer in self.layers.items()
        )

    @torch.no_grad()
    def finalize(self) -> None:
        """Make every -0.0, which a product with zero leaves of a negative weight, +0.0: a hole in a file."""
        torch._foreach_add_(list(self.effective.values()), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """The scores, how many masks were drawn, and a digest of the weights."""
        scores = {f"scores/{name}": layer.scores.detach() for name, layer in self.layers.items()}
        return {**scores, "draws": torch.tensor(self.draws), "weights": self._digest()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the scores back, and the mask that was drawn; the weights must be the same."""
        mine = self.state_dict()
        if mine.keys() != state.keys() or not torch.equal(mine["weights"], state["weights"].cpu()):
            raise CheckpointError("The checkpoint is of a mask over other weights than this run's.")
        for name, layer in self.layers.items():
            layer.scores.data.copy_(state[f"scores/{name}"])
        self.draws = int(state["draws"])
        self.put()

    def _digest(self) -> Tensor:
        """32 bytes that tell these weights from all others."""
        digest = hashlib.sha256()
        for name, weight in self.weights.items():
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def masks_from(factors: Params) -> MaskDict:
    """The masks in factors: what is not zero is kept."""
    return {name: (factor != 0).contiguous() for name, factor in factors.items()}


def _allowed(effective: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """Where an effective weight is 0, or its weight times the layer's one positive factor, or minus that."""
    scaled = weight * factors.abs().amax()
    return (effective == 0) | (effective == scaled) | (effective == -scaled)
