"""ViT-Small/16 (Touvron et al. 2021, "Training data-efficient image transformers", Table 1, DeiT-S).

Patches of 16 × 16 pixels, 12 blocks of attention and a two-layer network, 384 channels in heads of 64 channels; the
layer norms come first. The names of the parameters are those of timm and of the authors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import ModelError
from prunus.models.initialization import IMAGENET_SHAPE, BuiltIn, glorot_normal, scaled

HEAD_SIZE = 64
MAX_BLOCKS = 100


class PatchEmbedding(nn.Module):
    """[B, 3, S, S] -> [B, (S / patch)², channels]."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """The channels of each patch of a batch."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Attention of all positions to all, queries, keys and values from one matrix. [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = channels // HEAD_SIZE
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=HEAD_SIZE**-0.5)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two layers with GELU between. [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention, then two layers, each after a layer norm and added to its input. [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = SelfAttention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A class token and patches through transformer blocks. [B, 3, image_size, image_size] -> [B, classes]."""

    def __init__(
        self,
        classes: int = 1000,
        width: float = 1.0,
        image_size: int = 224,
        patch: int = 16,
        blocks: int = 12,
    ) -> None:
        super().__init__()
        if not (patch > 0 and image_size % patch == 0 and image_size > 0):
            raise ModelError(
                f"Expected an image size that is a multiple of the patch, got {image_size} and {patch}."
            )
        if not 1 <= blocks <= MAX_BLOCKS:  # a file may name any number
            raise ModelError(f"Expected 1 to {MAX_BLOCKS} blocks, got {blocks}.")
        channels = scaled(384, width, HEAD_SIZE)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, channels))
        self.patch_embed = PatchEmbedding(channels, patch)
        self.blocks = nn.Sequential(*(TransformerBlock(channels) for _ in range(blocks)))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        patches = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


VIT_SMALL = BuiltIn(
    "vit-small",
    "ViT-Small/16: 22,050,664 parameters, 4.61 G multiply-accumulates for ImageNet.",
    VisionTransformer,
    glorot_normal,
    IMAGENET_SHAPE,
)
