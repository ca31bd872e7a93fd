"""Augmentation changes images as described, reproducibly, and in training only."""

import copy

import pytest
import torch
from torch.nn import functional as F

from prunus.errors import DataError, UnknownNameError
from prunus.seeds import make_generator
from prunus.training import Recipe, train
from prunus.training.augmentation import AUGMENTATIONS, flip_crop, shift

PICTURES = torch.arange(500 * 2 * 6 * 5, dtype=torch.float32).reshape(500, 2, 6, 5)


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_function_of_its_draw_that_mutates_nothing(augment):
    before = PICTURES.clone()
    first, again = (
        augment(PICTURES, make_generator(1, "augmentation", 2, 3)),
        augment(PICTURES, make_generator(1, "augmentation", 2, 3)),
    )
    assert torch.equal(first, again)
    assert first.shape == PICTURES.shape
    assert torch.equal(PICTURES, before)
    others = [
        augment(PICTURES, make_generator(key[0], "augmentation", *key[1:]))
        for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))
    ]
    assert all(torch.equal(first, other) == (augment is AUGMENTATIONS["none"]) for other in others)


def places(wide, made, mirrors):
    """For each picture made, which windows of which padded picture it is."""
    height, width = made.shape[2:]
    found = []
    for k in range(len(made)):
        found.append(
            {
                (mirror, y, x)
                for mirror, source in enumerate(mirrors(wide[k]))
                for y in range(wide.shape[2] - height + 1)
                for x in range(wide.shape[3] - width + 1)
                if torch.equal(source[:, y : y + height, x : x + width], made[k])
            }
        )
    return found


def test_a_shift_is_a_window_of_the_picture_with_its_edge_repeated():
    wide = F.pad(PICTURES, (2, 2, 2, 2), mode="replicate")
    found = places(wide, shift(PICTURES, make_generator(0, "augmentation", 0, 0)), lambda picture: [picture])
    assert all(len(windows) == 1 for windows in found)
    counts = [sum((0, y, x) in windows for windows in found) for y in range(5) for x in range(5)]
    assert sum(counts) == 500
    assert min(counts) > 5  # 20 expected of each of 25


def test_flip_crop_is_a_window_of_the_padded_picture_or_of_its_mirror():
    pictures = PICTURES + 1
    wide = F.pad(pictures, (4, 4, 4, 4))
    found = places(
        wide,
        flip_crop(pictures, make_generator(0, "augmentation", 0, 0)),
        lambda picture: [picture, picture.flip(2)],
    )
    assert all(windows for windows in found)
    clear = [next(iter(windows)) for windows in found if len(windows) == 1]
    mirrored = sum(mirror for mirror, _, _ in clear)
    assert 0.4 < mirrored / len(clear) < 0.6
    assert {y for _, y, _ in clear} == set(range(9))


def test_training_sees_them_and_evaluation_does_not(mlp, few):
    plain = Recipe(epochs=1, learning_rate=0.01, batch_size=32)
    runs = {name: copy.deepcopy(mlp) for name in AUGMENTATIONS}
    last = {name: train(runs[name], few, plain.replace(augmentation=name))[-1] for name in AUGMENTATIONS}
    assert len({epoch.training_loss for epoch in last.values()}) == len(AUGMENTATIONS)


def test_what_is_no_picture_or_has_no_name_is_refused(mlp, few):
    with pytest.raises(DataError, match="shape"):
        shift(torch.zeros(3, 10), make_generator(0, "augmentation", 0, 0))
    with pytest.raises(UnknownNameError, match="augmentation"):
        train(mlp, few, Recipe(1, 0.1, 32, augmentation="cutout"))
