"""`nn.MultiheadAttention` with its projections as layers."""

from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.pruning.views.linear import linear_of, with_tensors

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_IDENTITIES: WeakValueDictionary[tuple[int, torch.dtype, torch.device], Tensor] = WeakValueDictionary()
"""The identities of the views that exist: a network of many blocks needs one."""


class AttentionView(nn.Module):
    """The function of a MultiheadAttention in evaluation mode, on its tensors.

    Queries, keys and values are projected by a convolution of three groups, or by three Linear layers where they have
    different widths; the attention of these projections is that of a MultiheadAttention that projects by identities.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        size = attention.embed_dim
        self.batch_first, self.num_heads = attention.batch_first, attention.num_heads
        self.in_proj_bias = None  # so that a TransformerEncoderLayer calls this module
        bias = attention.in_proj_bias
        if attention._qkv_same_embed_dim:
            projection = nn.Conv1d(3 * size, 3 * size, 1, groups=3, bias=bias is not None, device="meta")
            weight = attention.in_proj_weight.unsqueeze(-1)
            self.in_proj_weight = with_tensors(projection, weight, bias)
        else:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            for name, part in zip(PROJECTIONS, biases, strict=True):
                self.add_module(name, linear_of(getattr(attention, name), part))
        self.core = _attention_of_projections(attention)
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *arguments: object, **named: object
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`.

        Args:
            query: [L, B, E], or [B, L, E] where batches are first.
            key: [S, B, K].
            value: [S, B, V].
            *arguments: Masks, and whether weights are returned.
            **named: The same by name.

        Returns:
            The output, and the weights of the attention or None.
        """
        projected = self._project(query, key, value)
        output, weights = self.core(*projected, *arguments, **named)
        return self.out_proj(output), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        inputs = (query, key, value)
        if "in_proj_weight" not in self._modules:
            return [self.get_submodule(name)(x) for name, x in zip(PROJECTIONS, inputs, strict=True)]
        dim = 1 if self.batch_first and query.dim() == 3 else 0
        lengths = [x.shape[dim] for x in inputs]
        # Vectors of zeros make the inputs equally long; they add nothing to a sum of products.
        padding = [(0, 0) * (query.dim() - dim - 1) + (0, max(lengths) - length) for length in lengths]
        joined = torch.cat([F.pad(x, pad) for x, pad in zip(inputs, padding, strict=True)], -1)
        outputs = self.in_proj_weight(joined.reshape(-1, joined.shape[-1], 1)).reshape(joined.shape)
        parts = outputs.chunk(3, -1)
        return [part.narrow(dim, 0, length) for part, length in zip(parts, lengths, strict=True)]


@torch.no_grad()
def _attention_of_projections(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """The attention of queries, keys and values that are projected already; its output is not projected."""
    core = nn.MultiheadAttention(
        attention.embed_dim, attention.num_heads, attention.dropout, bias=False,
        add_zero_attn=attention.add_zero_attn, batch_first=attention.batch_first, device="meta",
    )  # fmt: skip
    core._qkv_same_embed_dim = False
    core.register_parameter("in_proj_weight", None)
    core.q_proj_weight = core.k_proj_weight = core.v_proj_weight = core.out_proj.weight = _identity(attention)
    core.bias_k, core.bias_v = attention.bias_k, attention.bias_v
    return core


def _identity(attention: nn.MultiheadAttention) -> nn.Parameter:
    size, weight = attention.embed_dim, attention.out_proj.weight
    key = size, weight.dtype, weight.device
    identity = _IDENTITIES.get(key)
    if identity is None:
        _IDENTITIES[key] = identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
    # Each view has a parameter of its own, which `.double()` changes in place. It refers to the shared tensor, which
    # would else be dropped from the cache while the view exists.
    parameter = nn.Parameter(identity, requires_grad=False)
    parameter.identity = identity  # type: ignore[attr-defined]
    return parameter
