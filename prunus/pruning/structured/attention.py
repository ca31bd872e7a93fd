"""`nn.MultiheadAttention` with fewer heads than the size of its input divided by the head size."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention whose number of heads times head size is not the size of its input.

    Removing heads changes the class of a module to this one: the forward of `nn.MultiheadAttention` requires that heads
    times head size is the size of the input. Parameters, their names and the call are the same; a mask with an
    entry for each head needs one for each remaining head.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` to `key` and `value`.

        Args:
            query: [B, T, I], or [T, B, I] if not `batch_first`, or [T, I].
            key: Of the same form.
            value: Of the same form.
            key_padding_mask: [B, S] of entries of `key` to ignore.
            need_weights: Whether the weights are returned.
            attn_mask: [T, S] or [B x heads, T, S], boolean (True: ignored) or added to the scores.
            average_attn_weights: Whether the weights are averaged over the heads.
            is_causal: Unused, as `attn_mask` says it.

        Returns:
            The output, and the weights or None.
        """
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._merge_masks(q, k, key_padding_mask, attn_mask)
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            dropped = F.dropout(weights, self.dropout, self.training)
            result = dropped @ v
        else:
            rate = self.dropout if self.training else 0.0
            result = F.scaled_dot_product_attention(q, k, v, mask, rate)
        result = self.out_proj(result.transpose(1, 2).flatten(2))
        if not is_batched:
            result = result.squeeze(0)
        elif not self.batch_first:
            result = result.transpose(0, 1)
        if not need_weights:
            return result, None
        weights = weights.mean(1) if average_attn_weights else weights
        return result, weights if is_batched else weights.squeeze(0)

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        """Query, key and value of each head, [B, heads, T, head size]."""
        joint: Tensor | None = self.in_proj_weight
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if joint is None else joint.chunk(3)
        biases: Any = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        return [x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in projected]

    def _merge_masks(
        self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> Tensor | None:
        """One mask to add to the scores, [B or 1, heads or 1, T, S]; None: no mask."""
        total = None
        if attn_mask is not None:
            mask = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(len(q), -1, *attn_mask.shape[1:])
            total = _additive(mask, q) if attn_mask.dim() == 3 else _additive(mask, q)[None, None]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask.reshape(len(k), 1, 1, -1), q)
            total = padding if total is None else total + padding
        return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def can_lose_heads(module: Any) -> bool:
    """Whether a module is multi-head attention that can be changed to `PrunedMultiheadAttention`."""
    is_attention = type(module) in (nn.MultiheadAttention, PrunedMultiheadAttention)
    return is_attention and module.bias_k is module.bias_v is None and not module.add_zero_attn


def attention_sizes(module: Any) -> dict[str, Any]:
    """The attributes of multi-head attention that follow from the shapes of its tensors."""
    joint = module.in_proj_weight is not None
    query = module.in_proj_weight if joint else module.q_proj_weight
    key = query if joint else module.k_proj_weight
    value = query if joint else module.v_proj_weight
    inner = len(query) // 3 if joint else len(query)
    return {
        "num_heads": inner // module.head_dim,
        "embed_dim": query.shape[1],
        "kdim": key.shape[1],
        "vdim": value.shape[1],
    }
