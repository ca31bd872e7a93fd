"""A learned mask as a constraint of the training loop: scores are trained, and the weights never are.

    forward    w' = w · f, with the factor f = mask · scale of this step; w' is written into the model's parameters
    backward   ∂L/∂w' by the training loop; from it ∂L/∂score, by the straight-through estimator of the kind of mask,
               before the optimizer step

No part of the forward pass is repeated or recorded in a graph: a step costs a dense step and a few passes over the
weights. Parameters are looked up by name at each step, so the constraint holds after `model.to`, `.half`, `.double` and
`load_state_dict(assign=True)`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, ModelError
from prunus.masks import check_masks
from prunus.seeds import derive_seed
from prunus.tickets.supermask.kinds import SupermaskLayer, SupermaskType
from prunus.tickets.supermask.uniforms import (
    aligned_chunks,
    has_layout_of,
    is_dense_in_memory,
    laid_out_as,
)
from prunus.training.identity import digest
from prunus.types import MaskDict, Params


class SupermaskConstraint:
    """A constraint under which the model's weights are fixed weights times a mask, a new one after each step.

    Tensors that are not in `weights` (biases, norms) stay as they are in the model.

    Args:
        model: The network; its weights are replaced.
        weights: The fixed weights by parameter name, of the parameters' shapes; not modified.
        kind: The kind of mask and its settings.
        seed: Seed of the scores and of the masks that are drawn.

    Raises:
        ModelError: If a name or shape does not match, or a parameter cannot be learned over.

    Example:
        >>> from prunus.tickets.supermask.kinds import EdgePopup
        >>> model = nn.Linear(4, 1)
        >>> constraint = SupermaskConstraint(model, {"weight": torch.ones(1, 4)}, EdgePopup(density=0.5), seed=0)
        >>> constraint.apply()
        >>> int(model.weight.count_nonzero())
        2
    """

    def __init__(self, model: nn.Module, weights: Params, kind: SupermaskType, seed: int) -> None:
        self.model = model
        parameters = dict(model.named_parameters())
        check_masks(parameters, weights)
        for name in weights:
            if not parameters[name].requires_grad:
                raise ModelError(
                    f"Expected requires_grad = True for {name!r}, over which a mask is learned, got False; the scores "
                    "are trained with its gradient."
                )
        with_gaps = [name for name in weights if not is_dense_in_memory(parameters[name])]
        if with_gaps:
            raise ModelError(
                f"Expected parameters that are dense in memory, but {', '.join(with_gaps)} is a view with gaps or "
                "overlaps; make it a parameter of its own, nn.Parameter(weight.detach().contiguous())."
            )
        self.weights: Params = {}
        self.layers: dict[str, SupermaskLayer] = {}
        for name, weight in weights.items():
            # Scores, and the probabilities that are compared with 16-bit numbers, need at least float32.
            dtype = torch.promote_types(parameters[name].dtype, torch.float32)
            self.weights[name] = torch.empty_like(parameters[name], dtype=dtype).detach().copy_(weight)
            self.layers[name] = kind.layer(self.weights[name], derive_seed(seed, "supermask", name))
        self.draws = 0
        """Number of masks drawn; the next mask depends on it and on the scores only."""

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Return the scores by parameter name."""
        return {name: layer.scores for name, layer in self.layers.items()}

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Compute the gradients of the scores from those of the effective weights."""
        for name, layer in self.layers.items():
            parameter, weight = self.model.get_parameter(name), self.weights[name]
            if parameter.grad is None:
                raise ModelError(
                    f"Expected a gradient of {name!r}, over which a mask is learned, but the forward pass does not use "
                    "it; remove the layer from the network."
                )
            if layer.scores.grad is None:
                layer.scores.grad = torch.empty_like(layer.scores)
            upstream, effective = laid_out_as(weight, parameter.grad), laid_out_as(weight, parameter.detach())
            layer.backward(upstream, effective, layer.scores.grad)

    def apply(self) -> None:
        """Draw the mask of the next step, and write the effective weights into the model."""
        self.draws += 1
        self._apply_draw(self.draws)

    def apply_sample(self, index: int) -> None:
        """Write the effective weights of a mask of no step, which depends on the index and the scores only."""
        self._apply_draw(-1 - index)

    @torch.no_grad()
    def apply_most_likely_mask(self) -> Params:
        """Write the effective weights of the most likely mask, and return its factors."""
        factors = {name: layer.most_likely_factors() for name, layer in self.layers.items()}
        for name, factor in factors.items():
            self._write(name, factor)
        self.finalize()
        return factors

    @torch.no_grad()
    def _apply_draw(self, index: int) -> None:
        for name, layer in self.layers.items():
            layer.draw(index)
            self._write(name, layer.factors)

    def _write(self, name: str, factors: Tensor) -> None:
        parameter, weight = self.model.get_parameter(name).detach(), self.weights[name]
        if not has_layout_of(parameter, weight):  # the model was moved or converted since
            parameter.copy_(weight * factors)
            return
        for fixed, factor, out in aligned_chunks(weight, factors, parameter):
            torch.mul(fixed, factor, out=out)

    def verify(self) -> int:
        """Return how many weights of the model are neither 0 nor plus or minus weight x factor, bit for bit.

        The factor is that of this step, one positive number for each layer.
        """
        violations = 0
        for name, weight in self.weights.items():
            effective = self.model.get_parameter(name).detach()
            scaled = (weight * self.layers[name].factors.abs().amax()).to(effective)
            allowed = (effective == 0) | (effective == scaled) | (effective == -scaled)
            violations += int(torch.count_nonzero(~allowed))
        return violations

    @torch.no_grad()
    def finalize(self) -> None:
        """Replace -0.0, the product of a negative weight and zero, by +0.0, which files do not store."""
        torch._foreach_add_([self.model.get_parameter(name).detach() for name in self.weights], 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the scores, the number of masks drawn, and a digest of the weights."""
        scores = {f"scores/{name}": layer.scores.detach() for name, layer in self.layers.items()}
        return {**scores, "draws": torch.tensor(self.draws), "weights": _bytes(digest(self.weights))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the scores and the mask. Raises CheckpointError if the weights are not the same."""
        expected = self.state_dict()
        if expected.keys() != state.keys() or not torch.equal(expected["weights"], state["weights"].cpu()):
            raise CheckpointError(
                "Expected a checkpoint of a mask over these weights, got one over other weights; delete it or restore "
                "the settings."
            )
        for name, layer in self.layers.items():
            layer.scores.data.copy_(state[f"scores/{name}"])
        self.draws = int(state["draws"])
        self._apply_draw(self.draws)


def _bytes(hexadecimal: str) -> Tensor:
    """The bytes of hexadecimal digits, uint8."""
    return torch.frombuffer(bytearray.fromhex(hexadecimal), dtype=torch.uint8)


def masks_of_factors(factors: Params) -> MaskDict:
    """Return the masks of factors: True where a factor is not zero."""
    return {name: (factor != 0).contiguous() for name, factor in factors.items()}
