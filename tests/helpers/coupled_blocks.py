"""Small networks with one pattern of coupled channels each, among them the failing patterns of Torch-Pruning's issues.

`BLOCKS` has for each name the class, example inputs, the number of channels that can be removed exactly, and the
operators that are refused (other than for the inputs and outputs of the model).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
WORDS = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Block:
    network: type[nn.Module]
    inputs: torch.Tensor
    channels: int
    refused: tuple[str, ...]


BLOCKS: dict[str, Block] = {}


def block(inputs, channels, *refused):
    def register(network):
        BLOCKS[network.__name__] = Block(network, inputs, channels, refused)
        return network

    return register


def make(name):
    """The network of a block, with weights and statistics that are all different."""
    torch.manual_seed(0)
    network = BLOCKS[name].network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in network.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network


def conv(inputs, outputs, size=1, **kwargs):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **kwargs)


# --- products and elementwise operators -------------------------------------------------------------------------


@block(IMAGES, 20)
class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 16, 3), conv(16, 5)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x):
        x = F.relu(self.first(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.head(x * scale[:, :, None, None])


@block(IMAGES, 16)
class GatedUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(8, 16), conv(8, 5)

    def forward(self, x):
        a, b = self.first(x).chunk(2, 1)
        return self.head(F.glu(self.second(a * torch.sigmoid(b)), 1))


@block(IMAGES, 8)
class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.head = conv(3, 8), conv(8, 8, 3), conv(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.shared(F.relu(self.shared(self.first(x))))))


@block(TOKENS, 22)
class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.weight, self.head = (
            nn.Linear(16, 12),
            nn.Parameter(torch.randn(12, 10)),
            nn.Linear(10, 3),
        )

    def forward(self, x):
        return self.head(torch.einsum("btc,cd->btd", self.first(x), self.weight))


@block(TOKENS, 12)
class TiedFunctional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.first(F.linear(self.first(x), self.first.weight.t())))


@block(WORDS, 28, "embedding", "add")
class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 6, 16))
        self.hidden, self.back = nn.Linear(16, 12), nn.Linear(12, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words):
        x = self.embed(words) + self.positions[:, : words.size(1)]
        return self.head(x + self.back(F.relu(self.hidden(x))))


@block(IMAGES, 8)
class Frozen(nn.Module):
    """Torch-Pruning #211: frozen parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = conv(3, 8, 3), nn.BatchNorm2d(8), conv(8, 4)
        self.requires_grad_(False)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x))))


@block(IMAGES, 8)
class Buffers(nn.Module):
    """Torch-Pruning #211: buffers and constants of the size of the channels."""

    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 8), conv(8, 4)
        self.register_buffer("mask", torch.rand(1, 8, 1, 1))
        self.scale = torch.linspace(1, 2, 8).reshape(8, 1, 1)

    def forward(self, x):
        x = self.first(x)
        return self.head(x * self.mask * self.scale * torch.full((1, x.size(1), 1, 1), 2.0))


@block(IMAGES, 4, "full")
class LiteralConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 4), conv(4, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x) * torch.full((1, 8, 1, 1), 2.0)))


@block(IMAGES, 16)
class ImplicitAddAndMultiply(nn.Module):
    """Torch-Pruning #184: raw parameters that are added and multiplied."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), conv(8, 3)
        self.added, self.factor = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x):
        return self.head(self.factor * self.second(self.first(x) + self.added))


@block(IMAGES, 8, "select")
class WeightedFusion(nn.Module):
    """Torch-Pruning #364: fast normalized fusion of BiFPN."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = conv(3, 8), conv(3, 8), conv(8, 3)
        self.weights = nn.Parameter(torch.rand(2))

    def forward(self, x):
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        return self.head(F.silu(weights[0] * self.left(x) + weights[1] * self.right(x)))


@block(IMAGES, 16)
class LayerScale(nn.Module):
    """Torch-Pruning #356, #167: a ConvNeXt block with layer scale; its residual stream is inexact."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise, self.head = conv(3, 8), conv(8, 8, 3, groups=8), conv(8, 3)
        self.norm, self.wide, self.back = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x):
        x = self.stem(x)
        y = self.back(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return self.head(x + (self.scale * y).permute(0, 3, 1, 2))


@block(IMAGES, 8)
class RawWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias, self.head = (
            nn.Parameter(torch.randn(8, 3, 3, 3)),
            nn.Parameter(torch.randn(8)),
            conv(8, 4),
        )

    def forward(self, x):
        return self.head(F.relu(F.conv2d(x, self.weight, self.bias)))


@block(IMAGES, 8)
class SumOverChannels(nn.Module):
    """The sum of ReLU(0) is exact, that of sigmoid(0) is not."""

    def __init__(self):
        super().__init__()
        self.exact, self.inexact = conv(3, 8), conv(3, 8)

    def forward(self, x):
        return F.relu(self.exact(x)).sum(1) + torch.sigmoid(self.inexact(x)).sum(1)


@block(IMAGES, 0)
class SpatialAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.map, self.head = conv(3, 8), conv(2, 1, 3), conv(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(x * torch.sigmoid(self.map(torch.cat([x.mean(1, True), x.amax(1, True)], 1))))


@block(IMAGES, 8)
class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 8), conv(8, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.head(x)


@block(IMAGES, 18)
class UnusedResult(nn.Module):
    """The forward computes something that no output depends on: the shapes of these layers must fit all the same."""

    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 8), conv(8, 3)
        self.features, self.last = conv(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x)
        self.last(self.features(x).mean((2, 3)))
        return self.head(x)


@block(IMAGES, 6, "sort")
class NoRule(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 6), conv(6, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).sort(1)[0]))


# --- convolutions and normalization -----------------------------------------------------------------------------


@block(IMAGES, 17)
class TransposedConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 8), conv(12, 4)
        self.up, self.grouped = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 12, 2, groups=2)

    def forward(self, x):
        return self.head(F.relu(self.grouped(F.relu(self.up(self.first(x))))))


@block(IMAGES, 12, "conv2d")
class GroupedConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 16), conv(16, 3)
        self.narrow, self.wide = conv(16, 32, 3, groups=8), conv(32, 16, groups=2)

    def forward(self, x):
        return self.head(F.relu(self.wide(F.relu(self.narrow(F.relu(self.first(x)))))))


@block(IMAGES, 10)
class Normalizations(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.grouped, self.head = conv(3, 16), conv(16, 16, 3, groups=2), conv(16, 3)
        self.group_norm, self.instance_norm = nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True)

    def forward(self, x):
        x = F.relu(self.group_norm(self.first(x)))
        return self.head(F.relu(self.instance_norm(self.grouped(x))))


@block(IMAGES, 6, "_weight_norm", "conv2d")
class WeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.normed, self.head = nn.utils.parametrizations.weight_norm(conv(3, 8)), conv(8, 3)
        self.plain, self.other_head = conv(3, 6), conv(6, 3)

    def forward(self, x):
        return self.head(F.relu(self.normed(x))) + self.other_head(self.plain(x))


# --- shapes -----------------------------------------------------------------------------------------------------


@block(IMAGES, 18)
class Flatten(nn.Module):
    """Torch-Pruning #125: flattened positions of a channel."""

    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.head = conv(3, 8), nn.Linear(8 * 64, 10), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(F.relu(self.hidden(self.first(x).view(x.size(0), -1))))


@block(IMAGES, 8)
class ChannelsLastFlatten(nn.Module):
    """Torch-Pruning #188, #397: flattened with the channels last."""

    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 8), nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.head(self.first(x).permute(0, 2, 3, 1).flatten(1))


@block(IMAGES, 0, "view")
class LiteralMaxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 16), conv(8, 4)

    def forward(self, x):
        x = self.first(x)
        return self.head(x.view(x.size(0), 8, 2, *x.shape[2:]).max(2)[0])


@block(IMAGES, 8)
class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 16), conv(8, 4)

    def forward(self, x):
        x = self.first(x)
        return self.head(x.view(x.size(0), x.size(1) // 2, 2, *x.shape[2:]).amax(2))


@block(IMAGES, 8)
class ChannelShuffle(nn.Module):
    """Torch-Pruning #14."""

    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 16), conv(16, 4)

    def forward(self, x):
        x = self.first(x)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


@block(IMAGES, 8)
class ChannelShuffleModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shuffle, self.head = conv(3, 16), nn.ChannelShuffle(2), conv(16, 4)

    def forward(self, x):
        return self.head(self.shuffle(self.first(x)))


@block(IMAGES, 10)
class PixelShuffle(nn.Module):
    """Torch-Pruning #420."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(4, 6), conv(24, 3)
        self.up, self.down = nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def forward(self, x):
        return self.head(self.down(self.second(self.up(self.first(x)))))


@block(IMAGES, 24, "pad")
class ZeroPaddedShortcut(nn.Module):
    """Option A of He et al. 2016: the padded channels have a width that is written out."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = conv(3, 8), nn.Conv2d(8, 16, 3, 2, 1)
        self.second, self.head = conv(16, 16, 3), conv(16, 4)

    def forward(self, x):
        x = self.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(self.second(F.relu(self.first(x))) + shortcut))


@block(IMAGES, 8)
class ZeroConcatenatedShortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.first, self.head = conv(3, 8), nn.Conv2d(8, 16, 3, 2, 1), conv(16, 4)

    def forward(self, x):
        x = self.stem(x)
        shortcut = x[:, :, ::2, ::2]
        return self.head(F.relu(self.first(x)) + torch.cat([shortcut, torch.zeros_like(shortcut)], 1))


@block(IMAGES, 10, "slice")
class LiteralSlices(nn.Module):
    """Torch-Pruning #415: slices at literal positions; only the channels after the last one can be removed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(4, 6), conv(10, 4)

    def forward(self, x):
        x = self.first(x)
        return self.head(torch.cat([self.second(x[:, :4]), x[:, 4:]], 1))


@block(IMAGES, 6, "slice")
class HalfSlices(nn.Module):
    """Both halves would have to lose equally many channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(4, 6), conv(10, 4)

    def forward(self, x):
        x = self.first(x)
        half = x.size(1) // 2
        return self.head(torch.cat([self.second(x[:, :half]), x[:, half:]], 1))


@block(IMAGES, 10)
class SplitConcatenate(nn.Module):
    """Torch-Pruning #393, #415: the block of YOLO networks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(4, 6), conv(14, 4)

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        parts.append(self.second(parts[-1]))
        return self.head(torch.cat(parts, 1))


@block(IMAGES, 12)
class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(3, 8), conv(8, 3)
        self.c, self.d, self.other_head = conv(3, 4), conv(3, 4), conv(8, 3)

    def forward(self, x):
        mean = torch.stack([self.a(x), self.b(x)], 1).mean(1)
        return self.head(mean) + self.other_head(torch.stack([self.c(x), self.d(x)], 2).flatten(1, 2))


@block(IMAGES, 4, "slice")
class InPlaceSlice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(3, 4), conv(8, 3)

    def forward(self, x):
        y = self.first(x)
        y[:, :4] += self.second(x)
        return self.head(F.relu(y, inplace=True))


# --- recurrent networks -----------------------------------------------------------------------------------------


@block(TOKENS, 18)
class Lstm(nn.Module):
    """Torch-Pruning #44, #276: two layers, two directions."""

    def __init__(self):
        super().__init__()
        self.first, self.lstm = nn.Linear(16, 10), nn.LSTM(10, 8, 2, batch_first=True, bidirectional=True)
        self.head, self.state_head = nn.Linear(16, 3), nn.Linear(8, 2)

    def forward(self, x):
        outputs, (hidden, _) = self.lstm(self.first(x))
        return self.head(outputs), self.state_head(hidden[-1])


@block(TOKENS, 18)
class Gru(nn.Module):
    """Torch-Pruning #404."""

    def __init__(self):
        super().__init__()
        self.first, self.gru, self.head = nn.Linear(16, 10), nn.GRU(10, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.gru(self.first(x))[0])


@block(TOKENS, 14, "lstm_cell")
class RecurrentCells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(16, 8), nn.GRUCell(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        state = cell = x.new_zeros(x.size(0), self.lstm.hidden_size)
        other = x.new_zeros(x.size(0), self.gru.hidden_size)
        for step in range(3):
            state, cell = self.lstm(x[:, step], (state, cell))
            other = self.gru(state, other)
        return self.head(other)


# --- attention --------------------------------------------------------------------------------------------------


@block(TOKENS, 36)
class MultiheadAttention(nn.Module):
    """Torch-Pruning #86: `nn.MultiheadAttention`."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(16, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(self.attention(x, x, x)[0])


@block(TOKENS, 36, "add", "layer_norm")
class TransformerEncoderLayer(nn.Module):
    """The residual stream meets the input of the model, so that it is fixed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, x):
        return self.layer(x)


@block(TOKENS, 20)
class HeadsInAttributes(nn.Module):
    """Torch-Pruning #43: the number of heads equals the head size, and only a run tells the attributes apart."""

    def __init__(self):
        super().__init__()
        self.head_dim, self.num_heads = 4, 4
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (
            p(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.out(x.transpose(1, 2).reshape(b, t, -1)))


@block(TOKENS, 4)
class FusedProjection(nn.Module):
    """Torch-Pruning #340, #357, #507: one projection of query, key and value, and products written out.

    With its literal -1, `reshape` runs with the old number of heads too, with a wrong result.
    """

    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@block(TOKENS, 4)
class FusedFlashAttention(nn.Module):
    """Torch-Pruning #411: the same with the fused operator."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.qkv, self.out = 4, 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        b, t, _ = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(b, t, -1))


class GroupedQueries(nn.Module):
    def __init__(self):
        super().__init__()
        self.size = 8
        self.q, self.k, self.v, self.out = (
            nn.Linear(16, 32),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(32, 16),
        )

    def project(self, x):
        b, t, _ = x.shape
        return (p(x).view(b, t, -1, self.size).transpose(1, 2) for p in (self.q, self.k, self.v))

    def join(self, x):
        return self.out(x.transpose(1, 2).reshape(x.size(0), x.size(2), -1))


@block(TOKENS, 2)
class RepeatedKeys(GroupedQueries):
    """Torch-Pruning #516, #461, #519: keys and values of two heads for four heads of queries."""

    def forward(self, x):
        q, k, v = self.project(x)
        b, h, t, d = k.shape
        k = k[:, :, None].expand(b, h, 2, t, d).reshape(b, h * 2, t, d)
        return self.join(F.scaled_dot_product_attention(q, k, v.repeat_interleave(2, 1)))


@block(TOKENS, 2, "mul")
class RotaryPositions(GroupedQueries):
    """Torch-Pruning #527, #525, #456, #430: grouped queries with rotary positions, as in Qwen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.rand(4))

    def rotate(self, x):
        angles = torch.arange(x.size(2)).float()[:, None] * self.frequencies
        angles, half = torch.cat([angles, angles], -1), x.size(-1) // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def forward(self, x):
        q, k, v = self.project(x)
        return self.join(F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, enable_gqa=True))


@block(TOKENS, 0, "view")
class LiteralHeads(GroupedQueries):
    def forward(self, x):
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 8).transpose(1, 2)
        k, v = (p(x).view(b, t, 2, 8).transpose(1, 2).repeat_interleave(2, 1) for p in (self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 32))


@block(TOKENS, 4, "scaled_dot_product_attention")
class SharedKey(nn.Module):
    """One head of keys and values for all heads of queries: it cannot be removed."""

    def __init__(self):
        super().__init__()
        self.heads, self.size, self.project, self.out = 4, 8, nn.Linear(16, 48), nn.Linear(32, 16)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.project(x).split([self.heads * self.size, self.size, self.size], -1)
        q = q.view(b, t, self.heads, self.size).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k[:, None], v[:, None])
        return self.out(x.transpose(1, 2).reshape(b, t, -1))


@block(TOKENS, 20, "layer_norm", "cat", "scaled_dot_product_attention")
class JointAttention(nn.Module):
    """The block of CogVideo: text and video are concatenated, and positions are rotated in the video part only."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.norm, self.q, self.k, self.v = nn.LayerNorm(16), *(nn.Linear(16, 16) for _ in range(3))
        self.q_norm, self.k_norm, self.out = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(16, 16)
        self.head, self.register = nn.Linear(16, 3), nn.Parameter(torch.randn(1, 2, 16))

    def forward(self, x):
        x = self.norm(torch.cat([self.register.expand(x.size(0), -1, -1), x], 1))
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, self.num_heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        q[:, :, 2:] = q[:, :, 2:] * 0.5
        k[:, :, 2:] = k[:, :, 2:] * 0.5
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.head(self.out(x))


@block(IMAGES, 16)
class MaskedByTorch(nn.Module):
    """Weights that `torch.nn.utils.prune` computes from a parameter and a mask before every call."""

    def __init__(self):
        super().__init__()
        self.first, self.head = conv(3, 8), conv(8, 3)
        self.depthwise, self.second = conv(8, 8, 3, groups=8), conv(8, 8)
        for layer in (self.first, self.depthwise):
            prune.l1_unstructured(layer, "weight", 0.5)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.depthwise(self.first(x))))))
