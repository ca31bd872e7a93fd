"""LeNet-300-100 and LeNet-5 (LeCun et al. 1998), as Han et al. 2015 and 2016 prune them.

Parameters: LeNet-300-100 has 266,610 (266,200 weights + 410 biases); LeNet-5 as in Caffe's example
(20-50-500-10, 5 x 5 kernels, ReLU after the first fully connected layer only) has 431,080 (430,500 + 580).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunus.models.initialization import build_model


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 with ReLU. [B, 1, 28, 28] or [B, 784] -> [B, 10]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.dropout1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(300, 100)
        self.dropout2 = nn.Dropout(dropout)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        x = self.dropout1(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout2(F.relu(self.fc2(x)))
        return self.fc3(x)  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """Two convolutions with max-pooling, two fully connected layers. [B, 1, 28, 28] -> [B, 10]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.dropout1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = self.dropout1(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)  # type: ignore[no-any-return]


def lenet_300_100(*, seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """LeNet-300-100 with Glorot-normal weights and zero biases; 266,610 parameters.

    Args:
        seed: Seed of the initial weights.
        dropout: Probability of dropout after each hidden layer.

    Returns:
        The model, [B, 1, 28, 28] or [B, 784] -> [B, 10].

    Example:
        >>> sum(p.numel() for p in lenet_300_100().parameters())
        266610
    """
    return build_model("lenet-300-100", LeNet300100(dropout), seed, dropout=dropout)


def lenet_5(*, seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """LeNet-5 as in Caffe, with Glorot-normal weights and zero biases; 431,080 parameters.

    Args:
        seed: Seed of the initial weights.
        dropout: Probability of dropout after the hidden fully connected layer.

    Returns:
        The model, [B, 1, 28, 28] -> [B, 10].

    Example:
        >>> sum(p.numel() for p in lenet_5().parameters())
        431080
    """
    return build_model("lenet-5", LeNet5(dropout), seed, dropout=dropout)
