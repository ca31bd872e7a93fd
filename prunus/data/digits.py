"""Digits: 1,797 handwritten digits, 8 × 8 images with 17 gray levels, ten classes; included in the package.

x = (pixel / 16 - 0.3053) / 0.3760, [N, 1, 8, 8]; 1,297 training, 200 validation and 300 test examples.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998),
doi:10.24432/C50P49, its test file; also known as scikit-learn's `load_digits`. License: CC BY 4.0.
Differences from the source: it has no division into training and test examples. Here the last 300 images, by writers
that come late in the file, are the test split for every seed.
"""

from pathlib import Path

import numpy as np
import torch

from prunus.data.preprocessing import divide, normalize
from prunus.types import Dataset, Split

TOP, MEAN, STD = 16, 0.3053, 0.3760
NUM_TEST, NUM_VALIDATION = 300, 200


def load_digits(root: str | Path | None = None, seed: int = 0, download: bool = True) -> Dataset:
    """Digits: 1,797 handwritten digits, 8 × 8 images with 17 gray levels; included in the package.

    Args:
        root: Has no effect.
        seed: Seed of the validation split.
        download: Has no effect.

    Returns:
        The data set.

    Example:
        >>> digits = load_digits()
        >>> digits.train.inputs.shape, len(digits.validation), len(digits.test)
        (torch.Size([1297, 1, 8, 8]), 200, 300)
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    inputs, labels = normalize(images.unsqueeze(1), TOP, [MEAN], [STD]), labels.to(torch.int64)
    train, validation = divide(inputs[:-NUM_TEST], labels[:-NUM_TEST], NUM_VALIDATION, seed)
    test = Split(inputs[-NUM_TEST:].clone(), labels[-NUM_TEST:].clone())
    provenance = "embedded copy of UCI's optical digits, test file"
    return Dataset("digits", train, validation, test, tuple("0123456789"), provenance)
