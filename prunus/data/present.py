"""Which of the data sets that are fetched are in the data root; file names are looked at, and no file is read."""

from pathlib import Path

from prunus.data import cifar10, idx_dataset
from prunus.data.fashion_mnist import FASHION_MNIST
from prunus.data.mnist import MNIST


def present_data_sets(root: Path) -> dict[str, bool]:
    """Whether each data set that prunus fetches has its files below `root`; damaged ones are found on loading.

    >>> present_data_sets(Path("no such folder"))
    {'mnist': False, 'fashion-mnist': False, 'cifar-10': False}
    """
    found = {
        description.name: idx_dataset.is_present(root, description) for description in (MNIST, FASHION_MNIST)
    }
    return {**found, "cifar-10": cifar10.is_present(root)}
