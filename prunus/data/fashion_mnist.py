"""Fashion-MNIST: 70,000 articles of clothing, 28 × 28 gray levels, ten classes.

x = (pixel / 255 - 0.2860) / 0.3530, [N, 1, 28, 28]; 55,000 train, 5,000 validation, 10,000 test.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms" (2017), arXiv:1708.07747. Files: named as MNIST's, plain or .gz,
in <data root>/fashion-mnist.
Licence: MIT. Mean and standard deviation are those of the 60,000.
"""

from pathlib import Path

from prunus.data.idx_dataset import IdxSet, load_idx_set
from prunus.types import Dataset

FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    mean=0.2860,
    std=0.3530,
    class_names=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
)


def load(
    root: str | Path | None = None, device: str = "cpu", seed: int = 0, download: bool = True
) -> Dataset:
    """Fashion-MNIST; fetched into the data root if it is not there. Raises DataError."""
    return load_idx_set(FASHION_MNIST, root, device, seed, download)
