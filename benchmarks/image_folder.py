"""Images of a folder per CPU second, read by prunus and by plain Pillow at full resolution, as torchvision does.

The plain reader has the steps of `ImageFolder` of torchvision with `RandomResizedCrop` and `RandomHorizontalFlip`, or
with `Resize(256)` and `CenterCrop(224)`, then `ToTensor` and `Normalize`, and reads the same windows in the same order.
The images are noise whose spectrum falls as that of photographs, in sizes that are common in ImageNet, and larger.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import Timed, interleaved, spread, table
from prunus.data.batches import batch_indices, iter_batches
from prunus.data.image_folder import MEAN, SIZE, STD, ImageFiles, window
from prunus.seeds import make_generator

IMAGES = {"500 x 375": 400, "1600 x 1200": 40}
"""The number of images of each kind; the first also has other sizes that are common in ImageNet."""
SIZES = {"500 x 375": ((500, 375),) * 4 + ((500, 333),) * 2 + ((375, 500),) * 2 + ((333, 500), (500, 400))}
QUALITY, ROUNDS, BATCH_SIZE = 90, 9, 100


def run(rounds: int = ROUNDS) -> str:
    rows: list[list[object]] = []
    for kind, count in IMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            split = write_images(Path(folder), kind, count)
            kilobytes = mean(path.stat().st_size for path in split.paths) / 1000
            for use, readers in READERS.items():
                timed = interleaved(
                    {k: partial(_read_all, reader, split) for k, reader in readers.items()}, rounds
                )
                speeds = [_speed(timed, name, count) for name in readers]
                rows.append(
                    [f"{kind}, {use}", count, f"{kilobytes:.0f}", *speeds, timed.ratio("Pillow", "prunus")]
                )
    header = [
        f"one thread, n = {rounds}",
        "images",
        "kB per image",
        "prunus, images per CPU s",
        "plain Pillow, images per CPU s",
        "times the speed of Pillow",
    ]
    return table(header, rows)


def write_images(folder: Path, kind: str, count: int) -> ImageFiles:
    """Write JPEG files of noise with detail of all sizes.

    Args:
        folder: Where the files are written.
        kind: A key of IMAGES.
        count: The number of files.

    Returns:
        The files as a training split, with labels 0.
    """
    draw, paths = np.random.default_rng(0), []
    width, height = map(int, kind.split(" x "))
    sizes = SIZES.get(kind, ((width, height),))
    for i in range(count):
        paths.append(folder / f"{i}.JPEG")
        Image.fromarray(photograph(*sizes[i % len(sizes)], draw)).save(paths[-1], quality=QUALITY)
    return ImageFiles(paths, torch.zeros(count, dtype=torch.int64), is_augmented=True)


def photograph(width: int, height: int, draw: np.random.Generator) -> np.ndarray:
    """Noise whose amplitudes fall with the frequency as those of photographs do: brightness, and smoother colors.

    Args:
        width, height: In pixels.
        draw: Random numbers.

    Returns:
        uint8 [height, width, 3].
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    channels = []
    for exponent in (1.2, 2.0, 2.0, 2.0):
        phases = np.exp(2j * np.pi * draw.random(frequency.shape))
        noise = np.fft.irfft2(phases / frequency**exponent, (height, width))
        channels.append(noise / noise.std())
    pixels = 120 + 45 * channels[0][..., None] + 20 * np.stack(channels[1:], axis=-1)
    return pixels.clip(0, 255).astype(np.uint8)


def read_training(split: ImageFiles) -> Iterator[Tensor]:
    """The batches of an epoch, as prunus reads them."""
    return (inputs for inputs, _ in iter_batches(split, BATCH_SIZE, seed=0, epoch=0))


def read_evaluation(split: ImageFiles) -> Iterator[Tensor]:
    """The central windows, as prunus reads them."""
    return (inputs for inputs, _ in split.batches(torch.arange(len(split)).split(BATCH_SIZE)))


def read_training_plainly(split: ImageFiles) -> Iterator[Tensor]:
    """The same windows of the same images as `read_training`, in whole pixels."""
    for i, indices in enumerate(batch_indices(len(split), BATCH_SIZE, seed=0, epoch=0)):
        crops = torch.rand(len(indices), 5, generator=make_generator(0, "crop", 0, i)).tolist()
        images = []
        for index, crop in zip(indices.tolist(), crops, strict=True):
            image = _decode(split.paths[index])
            image = image.crop(tuple(round(edge) for edge in window(image.size, crop)))
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            images.append(
                _as_input(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop[4] < 0.5 else image)
            )
        yield torch.stack(images)


def read_evaluation_plainly(split: ImageFiles) -> Iterator[Tensor]:
    """The images with a shorter side of 256 pixels, cropped to the center."""
    for indices in torch.arange(len(split)).split(BATCH_SIZE):
        images = []
        for index in indices.tolist():
            image = _decode(split.paths[index])
            shorter = min(image.size)
            width, height = (int(side * 256 / shorter) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, upper = round((width - SIZE) / 2), round((height - SIZE) / 2)
            images.append(_as_input(image.crop((left, upper, left + SIZE, upper + SIZE))))
        yield torch.stack(images)


def _decode(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _as_input(image: Image.Image) -> Tensor:
    channels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return channels.sub_(torch.tensor(MEAN).view(-1, 1, 1)).div_(torch.tensor(STD).view(-1, 1, 1))


def _read_all(reader: Callable[[ImageFiles], Iterator[Tensor]], split: ImageFiles) -> None:
    for _ in reader(split):
        pass


def _speed(timed: Timed, name: str, count: int) -> str:
    return spread([count / seconds for seconds in timed.seconds[name]])


READERS = {
    "training": {"prunus": read_training, "Pillow": read_training_plainly},
    "evaluation": {"prunus": read_evaluation, "Pillow": read_evaluation_plainly},
}
