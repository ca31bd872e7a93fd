"""Folders of images: read as Pillow and the formulas say, trained and evaluated from files, and bad folders named."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import prunus
from prunus.data import image_folder
from prunus.data.batches import iter_batches
from prunus.data.examples import as_examples, sample_examples
from prunus.data.image_folder import MEAN, STD, load_image_folder, read_image, window
from prunus.errors import DataError, SpecError

COLORS = {"blue": (20, 40, 220), "red": (220, 40, 20), "white": (240, 240, 240)}
COUNTS = {"train": 10, "val": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """JPEG files of noisy colors, of several sizes; one PNG file with transparency, and a file that is no image."""
    root = tmp_path_factory.mktemp("colors")
    random = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for name, color in COLORS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(40, 90, 2)
                noise = random.normal(0, 20, (height, width, 3))
                pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.JPEG")
    Image.new("RGBA", (50, 60), (20, 40, 220, 128)).save(root / "train" / "blue" / "transparent.png")
    (root / "train" / "red" / "notes.txt").write_text("no image")
    return root


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


def test_splits_have_every_image_once(folder):
    data = prunus.load_data(folder)
    assert prunus.load_data(str(folder)).train.paths == data.train.paths
    assert data.class_names == ("blue", "red", "white")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [28, 3, 9]
    parts = [(path.parent.name, label) for path, label in zip(data.test.paths, data.test.labels, strict=True)]
    assert all(data.class_names[label] == name for name, label in parts)
    validation_paths, train_paths = set(data.validation.paths), set(data.train.paths)
    assert len(validation_paths | train_paths) == 31
    assert len(set(data.train.labels[:6].tolist())) == 3  # in random order
    assert data.test.take(2).inputs.shape == (2, 3, 224, 224)
    assert "28 images" in repr(data)


def test_test_folder_makes_val_the_validation_split(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    shutil.copytree(folder / "val", tmp_path / "data" / "test")
    data = load_image_folder(tmp_path / "data", size=32)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [31, 9, 9]
    assert data.validation.paths[0].parts[-3] == "val"


def test_test_folder_without_classes_is_not_used(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    shutil.copytree(folder / "val" / "red", tmp_path / "data" / "test")  # as ImageNet is packed at Kaggle
    data = load_image_folder(tmp_path / "data", size=32)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [28, 3, 9]


def test_calibration_images_depend_on_the_seed_and_are_read_once(folder, monkeypatch):
    data, read = load_image_folder(folder, size=16), []
    train_split = prunus.Split(data.train.inputs, data.train.labels)
    monkeypatch.setattr(
        image_folder, "read_image", lambda path, *rest: read.append(path) or read_image(path, *rest)
    )
    paths_read = []
    for seed in (0, 0, 1):
        read.clear()
        examples = sample_examples(data if seed else data.train, 6, seed)
        paths_read.append(set(read))
        assert len(paths_read[-1]) == len(read) == 6
        expected = sample_examples(train_split, 6, seed)
        assert torch.equal(examples.inputs, expected.inputs)
        assert torch.equal(examples.labels, expected.labels)
    assert paths_read[0] == paths_read[1] != paths_read[2]
    read.clear()
    assert len(as_examples(data, 5)) == len(read) == 5


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
def test_gray_images_of_16_bits_keep_their_upper_8(dtype, suffix, tmp_path):
    ramp = (np.arange(256)[None, :] * np.ones((256, 1))).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(dtype) * 256 + 200).save(tmp_path / f"16.{suffix}")
    assert torch.equal(read_image(tmp_path / f"16.{suffix}", 32), read_image(tmp_path / "8.png", 32))


def test_central_window_is_that_of_pillow(folder):
    """At full size of the JPEG file, where nothing is decoded smaller."""
    path = folder / "val" / "red" / "0.JPEG"
    with Image.open(path) as image:
        side = 7 / 8 * min(image.size)
        left, upper = ((edge - side) / 2 for edge in image.size)
        resized = image.resize(
            (32, 32), Image.Resampling.BILINEAR, box=(left, upper, left + side, upper + side)
        )
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert torch.equal(read_image(path, 32), expected)
    data = load_image_folder(folder, size=32)
    index = data.test.paths.index(path)
    pixels = (
        data.test.inputs[index] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    ) * 255
    assert torch.equal(pixels.round().byte(), expected)


def test_random_window_is_inside_and_mirrored_half_of_the_time():
    draw = torch.rand(500, 5, generator=torch.Generator().manual_seed(0)).tolist()
    areas = []
    for crop in draw:
        left, upper, right, lower = window((300, 200), crop)
        assert 0 <= left < right <= 300
        assert 0 <= upper < lower <= 200
        assert right - left <= 4 / 3 * (lower - upper) + 1e-6 or right - left == 300 or lower - upper == 200
        areas.append((right - left) * (lower - upper) / 60_000)
    assert min(areas) > 0.08
    assert 0.45 < np.mean(areas) < 0.54  # a window that does not fit is cut


def test_decoding_at_a_smaller_size_is_close_to_decoding_all(tmp_path):
    ramp = np.linspace(0, 255, 640)[None, :, None] * np.ones((480, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.jpg", quality=95)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.png")
    for crop in (None, (0.9, 0.5, 0.2, 0.3, 0.9), (0.0, 0.5, 0.5, 0.5, 0.1)):
        small, full = (read_image(tmp_path / name, 48, crop).float() for name in ("ramp.jpg", "ramp.png"))
        assert (small - full).abs().max() < 4


def test_training_reads_other_windows_in_each_epoch_and_the_same_for_each_seed(folder):
    train = load_image_folder(folder, size=32).train
    read = lambda *key, **part: [inputs for inputs, _ in iter_batches(train, 10, *key, **part)]  # noqa: E731
    first, again, other = read(0, 0), read(0, 0), read(0, 1)
    assert [len(inputs) for inputs in first] == [10, 10, 8]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(read(0, 0, skip=2)[0], first[2])
    parts = [read(0, 0, rank=rank, processes=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([parts[0][1], parts[1][1]]), first[1])


def test_network_is_trained_pruned_and_resumed_from_files(folder, tmp_path):
    data = load_image_folder(folder, size=32)
    recipe = prunus.Recipe(4, 0.02, 8, channels_last=True)
    model, masked = make_model(), make_model()
    history = prunus.train(model, data, recipe)
    assert history[-1].training_loss < 0.7 * history[0].training_loss
    assert history[-1].backend == "dense (the images are read from files)"
    assert prunus.evaluate(model, data.test).accuracy > 60
    masks = prunus.prune(masked, 0.5, criterion="snip", calibration=data).masks
    start = copy.deepcopy(masked)

    def stop(_):
        raise KeyboardInterrupt

    expected = prunus.train(masked, data, recipe, masks=masks)
    for report in (stop, None):
        model = copy.deepcopy(start)
        options = {"masks": masks.bind(model), "checkpoint": tmp_path / "checkpoint", "report": report}
        try:
            assert prunus.train(model, data, recipe, **options) == expected
        except KeyboardInterrupt:
            assert report is stop
    assert all(torch.equal(a, b) for a, b in zip(masked.parameters(), model.parameters(), strict=True))
    with pytest.raises(SpecError, match="but the images are read from files; choose"):
        prunus.train(make_model(), data, recipe, backend="sparse")


def remove_class(root):
    shutil.rmtree(root / "val" / "red")


def empty_class(root):
    for path in (root / "train" / "red").iterdir():
        path.unlink()


def remove_part(root):
    shutil.rmtree(root / "val")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_class, "but 'red' is in one of them only"),
        (empty_class, "images of the class 'red', but .* has none"),
        (remove_part, "val to have one folder of images per class, which does not exist"),
        (shutil.rmtree, "which is not a folder; correct the path"),
    ],
)
def test_damaged_folder_is_named(damage, message, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        prunus.load_data(f"{tmp_path}/data")


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_damaged_image_is_named_when_it_is_read(content, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / "train" / "white" / "3.JPEG"
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    data = load_image_folder(tmp_path / "data", size=32, seed=1)
    assert path in data.train.paths
    with pytest.raises(DataError, match=r"Expected an image in .*white/3\.JPEG, which cannot be read"):
        prunus.train(make_model(), data, prunus.Recipe(1, 0.01, 8))


def test_benchmark_reads_the_same_windows_with_both_readers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import image_folder as benchmark

    split = benchmark.write_images(tmp_path, "500 x 375", 3)
    for readers in benchmark.READERS.values():
        ours, plain = (torch.cat(list(read(split))) for read in readers.values())
        assert ours.shape == plain.shape == (3, 3, 224, 224)
        assert (ours - plain).abs().mean() < 0.2 * ours.std()  # the windows are fractions of a pixel apart
        assert (ours - plain.flip(3)).abs().mean() > 0.5 * ours.std()
    monkeypatch.setattr(benchmark, "IMAGES", {"300 x 200": 2})
    table = benchmark.run(rounds=1)
    assert "300 x 200, training" in table
    assert "300 x 200, evaluation" in table
