"""Fine-tune the centroids of codebooks: every weight moves with its centroid.

    ∂L/∂C_k = Σ_i ∂L/∂w_i · 1(a_i = k)

Source: Han et al. 2016, section 3.3, eq. 3. Codes and the positions of pruned weights do not change. Any optimizer may
step the codebooks; the paper subtracts the gradient times a learning rate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.compression.quantization.codebook import CodebookTensor, dequantize
from prunus.errors import CheckpointError, DivergenceError, ModelError
from prunus.masks import pack_mask, unpack_mask
from prunus.modules import find_parameter, trainable_parameters
from prunus.optimizer_hooks import OptimizerHooks


class CodebookConstraint:
    """A constraint of training: quantized weights equal their centroids after every step, pruned weights are zero.

    `prunus.train` steps the codebooks in place of the weights; in a training loop of your own, `attach` makes the
    optimizer train the centroids. Biases and every parameter that is not quantized train as usual. The parameters of
    the model are looked up at every step, as in `prunus.masks.Masks`.

    Example:
        >>> import prunus
        >>> model = nn.Linear(4, 4)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> quantized = prunus.quantize(model, bits=2).attach(optimizer)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> quantized.verify(), len(model.weight.unique())
        (0, 4)
    """

    def __init__(self, model: nn.Module, quantized: Mapping[str, CodebookTensor]) -> None:
        """Bind quantized tensors to a model; the model is not changed until `apply` or `attach`.

        Args:
            model: The model.
            quantized: Its quantized weights, by parameter name.
        """
        self.model = model
        self.quantized = dict(quantized)
        self.codebooks = {name: s.codebook.clone().requires_grad_() for name, s in quantized.items()}
        self._firsts = {name: _first_weights(tensor) for name, tensor in quantized.items()}
        self._hooks = OptimizerHooks(model, list(quantized), self._constrain_gradient, self._after_step)

    def __repr__(self) -> str:
        centroids = sum(codebook.numel() for codebook in self.codebooks.values())
        return f"CodebookConstraint(tensors={len(self.quantized)}, centroids={centroids})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "CodebookConstraint":
        """The model is copied only where it is copied in the same call, as for `Masks`."""
        return CodebookConstraint(memo.get(id(self.model), self.model), self.result())

    @classmethod
    def from_state_dict(cls, model: nn.Module, state: Mapping[str, Tensor]) -> "CodebookConstraint":
        """The constraint of `model` from what `state_dict` returned, to resume a training.

        Args:
            model: The model that the constraint is bound to; it is not changed until `apply` or `attach`.
            state: The tensors by name.

        Returns:
            The constraint.

        Raises:
            ModelError: The model has no parameter of one of the names.
            CheckpointError: Codes, codebook and mask of a name do not fit each other and the parameter.
        """
        quantized = {}
        for name in dict.fromkeys(key.rpartition("/")[0] for key in state):
            weight = find_parameter(model, name)
            parts = [state.get(f"{name}/{part}") for part in ("codebook", "codes", "mask")]
            codebook, codes, bits = (
                torch.empty(0) if part is None else part.to(weight.device) for part in parts
            )
            kinds = [(part.dtype, part.ndim) for part in (codebook, codes, bits)]
            fits = kinds == [(torch.float32, 1), (torch.uint8, 1), (torch.uint8, 1)]
            fits = fits and bits.numel() == -(-weight.numel() // 8)
            mask = unpack_mask(bits, weight.shape) if fits else torch.zeros(())
            indices = mask.flatten().nonzero().squeeze(1)
            if not fits or len(codes) != len(indices) or bool((codes >= len(codebook)).any()):
                raise CheckpointError(
                    f"Expected the codebook, codes and mask of {name!r} as state_dict returned them for this model, "
                    "got others; load the checkpoint of this model."
                )
            quantized[name] = CodebookTensor(codebook, codes.long(), indices.to(weight.device), weight.shape)
        return cls(model, quantized)

    def attach(self, optimizer: torch.optim.Optimizer) -> "CodebookConstraint":
        """Train the centroids by `optimizer`, in any training loop, and set the weights to them now.

        The gradient of a centroid is at the position of the first weight of its cluster as soon as it is computed, and
        the gradients of all other quantized and pruned weights are zero: the optimizer steps that weight as it would
        step the centroid, and after the step all weights of the cluster are set to it. The norm of the gradients is
        that of the codebooks. An optimizer that does not step every weight by itself, but by statistics of the tensor
        (LAMB, Adafactor), sees the zeros too.

        Args:
            optimizer: An optimizer of the parameters of the model; it may have been made before or after.

        Returns:
            This constraint.

        Raises:
            ModelError: The optimizer steps none of the quantized parameters, or it is LBFGS and computes several losses
                in one step, between which the weights are not their centroids; or the model was changed and does not
                have the parameters any more.
        """
        if isinstance(optimizer, torch.optim.LBFGS) and optimizer.param_groups[0]["max_iter"] > 1:
            raise ModelError(
                "Expected an optimizer that computes one loss per step, because weights are set to their centroids "
                f"after it, got LBFGS with max_iter={optimizer.param_groups[0]['max_iter']}; pass max_iter=1."
            )
        self._weights()
        self._hooks.attach(optimizer)
        self.apply()
        return self

    def detach(self) -> None:
        """Remove every hook that `attach` has set; the weights are not changed."""
        self._hooks.detach()

    def verify(self) -> int:
        """The number of weights of the model that are not their centroid, or not zero where they are pruned."""
        expected = {name: tensor.dense() for name, tensor in self.result().items()}
        return sum(int((w != expected[name].to(w)).sum()) for name, w in self._weights().items())

    def trainable_tensors(self) -> dict[str, Tensor]:
        """The codebooks that hold a value, and the trainable parameters that are not quantized."""
        free = {n: p for n, p in trainable_parameters(self.model).items() if n not in self.quantized}
        return {**free, **{name: book for name, book in self.codebooks.items() if len(book)}}

    def before_optimizer_step(self) -> None:
        """Sum the gradients of the weights of each centroid."""
        for name, weight in self._weights().items():
            self.codebooks[name].grad = centroid_gradient(weight.grad, self.quantized[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Set every quantized weight to its centroid and every pruned weight to zero."""
        for name, weight in self._weights().items():
            weight.copy_(dequantize(self.codebooks[name], self.quantized[name]))

    @torch.no_grad()
    def finalize(self) -> None:
        """Raise DivergenceError if a centroid is NaN or infinite."""
        for name, codebook in self.codebooks.items():
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
        """Restore the codebooks. Raises CheckpointError unless codes, masks and numbers of centroids are the same."""
        current = self.state_dict()
        if current.keys() != state.keys() or not all(
            tensor.shape == state[key].shape
            if key.endswith("/codebook")
            else torch.equal(tensor.cpu(), state[key].cpu())
            for key, tensor in current.items()
        ):
            raise CheckpointError(
                "Expected a checkpoint with the codes and masks of this training, got one with others; delete it, or "
                "name another file."
            )
        for name, book in self.codebooks.items():
            book.data.copy_(state[f"{name}/codebook"])

    def result(self) -> dict[str, CodebookTensor]:
        """The quantized tensors with their trained codebooks."""
        return {
            name: CodebookTensor(self.codebooks[name].detach().clone(), s.codes, s.indices, s.shape)
            for name, s in self.quantized.items()
        }

    def _constrain_gradient(self, name: str, parameter: Tensor) -> None:
        """Put the gradient of each centroid at the position of the first weight of its cluster, and zero elsewhere."""
        self._check_shape(name, parameter)
        gradient = parameter.grad
        total = centroid_gradient(gradient, self.quantized[name])
        if gradient is None or total is None:
            return
        centroids, indices = self._firsts[name]
        flat = total.new_zeros(gradient.numel()).scatter_(0, indices, total[centroids])
        if gradient.is_sparse:
            parameter.grad = flat.to(gradient.dtype).reshape(gradient.shape).to_sparse(gradient.sparse_dim())
        else:
            gradient.copy_(flat.reshape(gradient.shape))

    @torch.no_grad()
    def _after_step(self) -> None:
        for name, weight in self._weights().items():
            centroids, indices = self._firsts[name]
            codebook = self.codebooks[name]
            codebook[centroids] = weight.flatten()[indices].to(codebook)
        self.apply()

    def _weights(self) -> dict[str, Tensor]:
        """The quantized parameters that the model has now, by name."""
        weights = {}
        for name in self.quantized:
            weights[name] = find_parameter(self.model, name)
            self._check_shape(name, weights[name])
        return weights

    def _check_shape(self, name: str, weight: Tensor) -> None:
        shape = self.quantized[name].shape
        if weight.shape != shape:
            raise ModelError(
                f"Expected the model to have a parameter {name!r} of shape {list(shape)}, which is quantized, got "
                f"{list(weight.shape)}; quantize the model as it is now."
            )


def _first_weights(tensor: CodebookTensor) -> tuple[Tensor, Tensor]:
    """The centroids that are used, and the flat index of the first weight of each."""
    centroids, first = np.unique(tensor.codes.cpu().numpy(), return_index=True)
    device = tensor.codes.device
    return torch.from_numpy(centroids).to(device), tensor.indices[torch.from_numpy(first).to(device)]


def centroid_gradient(gradient: Tensor | None, quantized: CodebookTensor) -> Tensor | None:
    """The gradient of a codebook: the sum of the gradients of the weights of each centroid.

    Args:
        gradient: The gradient of the weights, of the tensor's shape, dense or sparse; None: there is none.
        quantized: The quantized tensor.

    Returns:
        The gradient [k] of the centroids, or None.
    """
    if gradient is None:
        return None
    if gradient.is_sparse:  # of an embedding
        gradient = gradient.to_dense()
    total = torch.zeros_like(quantized.codebook)
    return total.index_add_(0, quantized.codes, gradient.reshape(-1)[quantized.indices].to(total))
