"""Augmentation changes images as described, reproducibly, and in training only."""

import copy

import pytest
import torch
from torch.nn import functional as F

from prunus.errors import DataError, UnknownNameError
from prunus.seeds import make_generator
from prunus.training import Recipe, train
from prunus.training.augmentation import AUGMENTATIONS, augment_batch, flip_crop, shift

IMAGES = torch.arange(500 * 2 * 6 * 5, dtype=torch.float32).reshape(500, 2, 6, 5)


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_function_of_its_draw_that_mutates_nothing(augment):
    before = IMAGES.clone()
    first, again = (
        augment(IMAGES, make_generator(1, "augmentation", 2, 3)),
        augment(IMAGES, make_generator(1, "augmentation", 2, 3)),
    )
    assert torch.equal(first, again)
    assert first.shape == IMAGES.shape
    assert torch.equal(IMAGES, before)
    others = [
        augment(IMAGES, make_generator(key[0], "augmentation", *key[1:]))
        for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))
    ]
    assert all(torch.equal(first, other) == (augment is AUGMENTATIONS["none"]) for other in others)


def test_parts_of_a_batch_are_augmented_differently():
    images = torch.randn(8, 3, 6, 6)
    complete = augment_batch(flip_crop, images, 1, 2, 3)
    assert torch.equal(complete, flip_crop(images, make_generator(1, "augmentation", 2, 3)))
    assert torch.equal(augment_batch(flip_crop, images, 1, 2, 3, part=0), complete)
    assert not torch.equal(augment_batch(flip_crop, images, 1, 2, 3, part=1), complete)


def places(wide, made, mirrors):
    """For each augmented image, which windows of which padded image it is."""
    height, width = made.shape[2:]
    windows_of_images = []
    for k in range(len(made)):
        windows_of_images.append(
            {
                (mirror, y, x)
                for mirror, source in enumerate(mirrors(wide[k]))
                for y in range(wide.shape[2] - height + 1)
                for x in range(wide.shape[3] - width + 1)
                if torch.equal(source[:, y : y + height, x : x + width], made[k])
            }
        )
    return windows_of_images


def test_a_shift_is_a_window_of_the_image_with_its_edge_repeated():
    wide = F.pad(IMAGES, (2, 2, 2, 2), mode="replicate")
    windows_of_images = places(
        wide, shift(IMAGES, make_generator(0, "augmentation", 0, 0)), lambda image: [image]
    )
    assert all(len(windows) == 1 for windows in windows_of_images)
    counts = [sum((0, y, x) in windows for windows in windows_of_images) for y in range(5) for x in range(5)]
    assert sum(counts) == 500
    assert min(counts) > 5  # 20 expected of each of 25


def test_flip_crop_is_a_window_of_the_padded_image_or_of_its_mirror():
    images = IMAGES + 1
    wide = F.pad(images, (4, 4, 4, 4))
    windows_of_images = places(
        wide,
        flip_crop(images, make_generator(0, "augmentation", 0, 0)),
        lambda image: [image, image.flip(2)],
    )
    assert all(windows for windows in windows_of_images)
    clear = [next(iter(windows)) for windows in windows_of_images if len(windows) == 1]
    mirrored = sum(mirror for mirror, _, _ in clear)
    assert 0.4 < mirrored / len(clear) < 0.6
    assert {y for _, y, _ in clear} == set(range(9))


def test_training_sees_them_and_evaluation_does_not(mlp, small_data):
    plain = Recipe(epochs=1, learning_rate=0.01, batch_size=32)
    runs = {name: copy.deepcopy(mlp) for name in AUGMENTATIONS}
    last = {
        name: train(runs[name], small_data, plain.replace(augmentation=name))[-1] for name in AUGMENTATIONS
    }
    assert len({epoch.training_loss for epoch in last.values()}) == len(AUGMENTATIONS)


def test_inputs_without_images_and_unknown_names_are_refused(mlp, small_data):
    with pytest.raises(DataError, match="shape"):
        shift(torch.zeros(3, 10), make_generator(0, "augmentation", 0, 0))
    with pytest.raises(UnknownNameError, match="augmentation"):
        train(mlp, small_data, Recipe(1, 0.1, 32, augmentation="cutout"))
