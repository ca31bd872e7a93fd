"""Pre-activation ResNets for CIFAR (He et al. 2016, "Identity mappings in deep residual networks", section 5).

A block applies BatchNorm and ReLU before each convolution, and nothing after the sum. Its first 3 × 3 convolution has
the stride; where the shape changes, the shortcut is a 1 × 1 convolution of the activated input. Depths up to 110 have
two 3 × 3 convolutions in a block; 164 has a 1 × 1, a 3 × 3 and a 1 × 1 one with four times the channels.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from prunus.models.initialization import BuiltIn, scaled


class PreActivationBlock(nn.Module):
    """Normalization, ReLU, convolution, twice or three times. [B, I, S, S] -> [B, O, S / stride, S / stride]."""

    def __init__(self, inputs: int, hidden: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = hidden * 4 if bottleneck else hidden
        widths = [inputs, hidden, hidden, outputs] if bottleneck else [inputs, hidden, outputs]
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(i) for i in widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, size, stride if number == len(sizes) - 2 else 1, size // 2, bias=False)
            for number, (i, o, size) in enumerate(zip(widths, widths[1:], sizes, strict=False))
        )
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch."""
        shortcut = x
        for number, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            x = F.relu(norm(x))
            if number == 0 and self.shortcut is not None:
                shortcut = self.shortcut(x)
            x = convolution(x)
        return x + shortcut


class PreResNet(nn.Module):
    """Three stages of `blocks` pre-activation blocks. [B, 3, 32, 32] -> [B, classes]."""

    def __init__(self, blocks: int, bottleneck: bool, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for stage in range(3):
            hidden = scaled(16 * 2**stage, width)
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                self.blocks.append(PreActivationBlock(channels, hidden, stride, bottleneck))
                channels = hidden * 4 if bottleneck else hidden
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


PRERESNETS = tuple(
    BuiltIn(f"preresnet-{depth}", f"PreResNet-{depth}: {text}.", partial(PreResNet, blocks, bottleneck))
    for depth, text, blocks, bottleneck in (
        (56, "855,578 parameters", 9, False),
        (110, "1,730,522 parameters", 18, False),
        (164, "1,703,258 parameters", 18, True),
    )
)
