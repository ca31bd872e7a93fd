"""Fine-tune the centroids of codebooks: every weight moves with its centroid.

    ∂L/∂C_k = Σ_i ∂L/∂w_i · 1(a_i = k)

Source: Han et al. 2016, section 3.3, eq. 3. Codes and the positions of pruned weights do not change. Any optimizer may
step the codebooks; the paper subtracts the gradient times a learning rate.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.compression.quantization.codebook import CodebookTensor, dequantize
from prunus.errors import CheckpointError, DivergenceError, ModelError
from prunus.masks import pack_mask
from prunus.modules import trainable_parameters


class CodebookConstraint:
    """A constraint of the training loop: quantized weights equal their centroids after every step.

    Biases and every parameter that is not quantized train as usual. The parameters of the model are looked up at every
    step, as in `prunus.masks.Masks`.
    """

    def __init__(self, model: nn.Module, quantized: Mapping[str, CodebookTensor]) -> None:
        self.model = model
        self.quantized = dict(quantized)
        self.codebooks = {name: s.codebook.clone().requires_grad_() for name, s in quantized.items()}

    def trainable_tensors(self) -> dict[str, Tensor]:
        """The codebooks that hold a value, and the trainable parameters that are not quantized."""
        free = {n: p for n, p in trainable_parameters(self.model).items() if n not in self.quantized}
        return {**free, **{name: book for name, book in self.codebooks.items() if len(book)}}

    def before_optimizer_step(self) -> None:
        """Sum the gradients of the weights of each centroid, and set those of pruned weights to zero."""
        for name, weight in self._weights().items():
            quantized = self.quantized[name]
            self.codebooks[name].grad = centroid_gradient(weight.grad, quantized)
            if weight.grad is not None:
                flat = weight.grad.flatten()
                remaining = torch.zeros_like(flat).scatter_(0, quantized.indices, flat[quantized.indices])
                weight.grad = remaining.reshape(quantized.shape)

    @torch.no_grad()
    def apply(self) -> None:
        """Set every quantized weight to its centroid and every pruned weight to zero."""
        for name, weight in self._weights().items():
            weight.copy_(dequantize(self.codebooks[name], self.quantized[name]))

    @torch.no_grad()
    def finalize(self) -> None:
        """Read the codebooks from the weights: early stopping may have restored the weights of an earlier epoch.

        Raises:
            DivergenceError: A centroid is NaN or infinite.
        """
        for name, weight in self._weights().items():
            quantized = self.quantized[name]
            codebook = self.codebooks[name]
            codebook[quantized.codes] = weight.flatten()[quantized.indices].to(codebook.dtype)
            bad = int((~torch.isfinite(codebook)).sum())
            if bad:
                raise DivergenceError(
                    f"Expected finite centroids of {name!r} after training, got {bad} of {len(codebook)} "
                    "that are NaN or infinite; train the centroids with a lower learning rate."
                )

    def state_dict(self) -> dict[str, Tensor]:
        """The codebooks, with their codes and the masks, one bit per weight."""
        state = {f"{name}/codebook": book.detach() for name, book in self.codebooks.items()}
        for name, quantized in self.quantized.items():
            remaining = torch.zeros(quantized.shape.numel(), dtype=torch.bool)
            remaining[quantized.indices.cpu()] = True
            state |= {f"{name}/codes": quantized.codes.to(torch.uint8), f"{name}/mask": pack_mask(remaining)}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the codebooks. Raises CheckpointError unless the codes and the masks are the same."""
        current = self.state_dict()
        fixed = [key for key in current if not key.endswith("/codebook")]
        if current.keys() != state.keys() or not all(
            torch.equal(current[key].cpu(), state[key].cpu()) for key in fixed
        ):
            raise CheckpointError(
                "The checkpoint was made with other codes or masks than this run's; delete it or name another."
            )
        for name, book in self.codebooks.items():
            book.data.copy_(state[f"{name}/codebook"])

    def result(self) -> dict[str, CodebookTensor]:
        """The quantized tensors with their trained codebooks."""
        return {
            name: CodebookTensor(self.codebooks[name].detach().clone(), s.codes, s.indices, s.shape)
            for name, s in self.quantized.items()
        }

    def _weights(self) -> dict[str, nn.Parameter]:
        """The quantized parameters that the model has now, by name, in the order of the model."""
        weights = {name: p for name, p in self.model.named_parameters() if name in self.quantized}
        for name, quantized in self.quantized.items():
            if name not in weights or weights[name].shape != quantized.shape:
                raise ModelError(
                    f"Expected the model to have a parameter {name!r} of shape {list(quantized.shape)}, which is "
                    "quantized, got none; quantize the model as it is now."
                )
        return weights


def centroid_gradient(gradient: Tensor | None, quantized: CodebookTensor) -> Tensor | None:
    """The gradient of a codebook: the sum of the gradients of the weights of each centroid.

    Args:
        gradient: The gradient of the weights, of the tensor's shape; None: there is none.
        quantized: The quantized tensor.

    Returns:
        The gradient [k] of the centroids, or None.
    """
    if gradient is None:
        return None
    total = torch.zeros_like(quantized.codebook)
    return total.index_add_(0, quantized.codes, gradient.reshape(-1)[quantized.indices].to(total.dtype))
