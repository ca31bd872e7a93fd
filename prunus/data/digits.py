"""Digits: 1,797 handwritten digits, 8 × 8 pictures with 17 gray levels, ten classes; embedded.

x = (pixel / 16 - 0.3053) / 0.3760, [N, 1, 8, 8]; 1,297 train, 200 validation, 300 test.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository (1998), doi:10.24432/C50P49, its test file; also known as scikit-learn's `load_digits`.
Licence: CC BY 4.0.
Where we depart: the source has no further division, so the last 300 pictures, by writers that come late in
the file, are the test split whatever the seed.
"""

from pathlib import Path

import numpy as np
import torch

from prunus.data.normalization import normalize
from prunus.data.splits import split_indices
from prunus.types import Dataset, Split

TOP, MEAN, STD = 16, 0.3053, 0.3760
TEST, VALIDATION = 300, 200


def load(
    root: str | Path | None = None, device: str = "cpu", seed: int = 0, download: bool = True
) -> Dataset:
    """The digits, from the package itself: `root` and `download` change nothing here.

    >>> digits = load()
    >>> digits.train.inputs.shape, len(digits.validation), len(digits.test)
    (torch.Size([1297, 1, 8, 8]), 200, 300)
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    inputs, labels = normalize(images.unsqueeze(1), TOP, [MEAN], [STD]), labels.to(torch.int64)
    train, validation = split_indices(len(labels) - TEST, VALIDATION, seed)
    test = torch.arange(len(labels) - TEST, len(labels))
    splits = [Split(inputs[part], labels[part]) for part in (train, validation, test)]
    provenance = "embedded copy of UCI's optical digits, test file"
    return Dataset("digits", splits[0], splits[1], splits[2], tuple("0123456789"), provenance).to(device)
