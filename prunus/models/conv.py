"""Conv-2, Conv-4 and Conv-6: small variants of VGG (Frankle & Carbin 2019, Figure 2).

Blocks of two 3 x 3 'same' convolutions and a 2 x 2 max-pooling with 64, 128, 256 channels, then 256, 256 and
10 fully connected units; ReLU, no BatchNorm, no dropout. Input 3 x 32 x 32.

Weights (without biases) as published: Conv-2 4,300,992; Conv-4 2,425,024; Conv-6 2,261,184 (as
Zhou et al. 2019 build it; Frankle & Carbin print 1.7M for it, which three poolings of 32 x 32 do not give).
"""

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from prunus.models.initialization import BuiltIn, glorot_normal, scaled


class Conv(nn.Module):
    """`blocks` convolutional blocks and three fully connected layers. [B, 3, 32, 32] -> [B, 10]."""

    def __init__(self, blocks: int, width: float = 1.0) -> None:
        super().__init__()
        channels = [3] + [scaled(64 * 2**block, width) for block in range(blocks) for _ in range(2)]
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(channels))
        side, hidden = 32 // 2**blocks, scaled(256, width)
        self.fc1 = nn.Linear(channels[-1] * side * side, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        for index, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            if index % 2:
                x = F.max_pool2d(x, 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


CONVS = tuple(
    BuiltIn(f"conv-{2 * blocks}", f"Conv-{2 * blocks}: {text}.", partial(Conv, blocks), glorot_normal)
    for blocks, text in (
        (1, "4,300,992 weights, 4,301,642 parameters"),
        (2, "2,425,024 weights, 2,425,930 parameters"),
        (3, "2,261,184 weights, 2,262,602 parameters"),
    )
)
