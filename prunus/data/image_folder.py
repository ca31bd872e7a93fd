"""Images in one folder per class, such as ImageNet, which are read while a network is trained.

    FOLDER/train/CLASS/*.jpg
    FOLDER/val/CLASS/*.jpg
    FOLDER/test/CLASS/*.jpg      may be missing, or have images without classes, which are not used

Training images are cropped and mirrored at random when they are read (Szegedy et al. 2015, section 6): a window of 8 to
100 % of the area, with sides in a ratio of 3/4 to 4/3, is resized to the input size. Other images are the central
window whose side is 7/8 of the shorter side. Pillow reads the images in threads, which run in parallel because it
releases the lock of the interpreter; JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where that is enough.
Needs `pip install "prunus[images]"`.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.data.preprocessing import normalize, split_indices
from prunus.errors import DataError
from prunus.seeds import make_generator
from prunus.types import Dataset, Split

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Means and standard deviations of the channels of ImageNet, for values in [0, 1]."""
SIZE = 224
SMALLEST_AREA, LARGEST_RATIO, CENTRAL_SIDE = 0.08, 4 / 3, 7 / 8
"""Fractions: the smallest area of a training window relative to its image, the largest ratio of its sides, and the
side of the central window relative to the shorter side of the image."""
MAX_VALIDATION_IMAGES = 10_000
"""The most training images that are held out where there is no test folder; at most a tenth of them all."""
READ_AHEAD = 2
"""The number of batches that are read while another one is used."""


class ImageFiles(Split):
    """A split whose images are read when they are used.

    `inputs` reads all of them at once, which is meant for the few of `take(n)`.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, *, size: int = SIZE, is_augmented: bool = False
    ) -> None:
        """Store the paths; nothing is read.

        Args:
            paths: The files of N images.
            labels: [N] int64, on the device where the inputs are put.
            size: The side of the inputs in pixels.
            is_augmented: Whether the images of training batches are cropped and mirrored at random.
        """
        self.__dict__.update(labels=labels, paths=tuple(paths), size=size, is_augmented=is_augmented)

    paths: tuple[Path, ...]
    size: int
    is_augmented: bool

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} images, {self.size} pixels)"

    @property
    def inputs(self) -> Tensor:
        """All images [N, 3, S, S], read now."""
        order = torch.arange(len(self))
        return torch.cat([inputs for inputs, _ in self.batches(torch.split(order, 1000))])

    def take(self, n: int) -> "ImageFiles":
        """The first `n` images; none is read."""
        return self._with_settings(self.paths[:n], self.labels[:n])

    def select(self, indices: Tensor) -> "ImageFiles":
        """The images of these indices [n], in their order; none is read."""
        return self._with_settings(
            [self.paths[i] for i in indices.tolist()], self.labels[indices.to(self.labels.device)]
        )

    def to(self, device: str) -> "ImageFiles":
        """The same images with inputs and labels on another device."""
        return self._with_settings(self.paths, self.labels.to(device))

    def description(self) -> str:
        """What the inputs depend on: the names and sizes in bytes of the files, and the settings."""
        files = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in self.paths]
        return "\n".join([f"{self.size} {self.is_augmented}", *files])

    def batches(
        self,
        batches: Iterable[Tensor],
        crops: Iterable[torch.Generator] = (),
        rank: int = 0,
        processes: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches, each while those before it are used.

        Args:
            batches: The indices of the images of each batch.
            crops: For each batch the generator of its crops; empty: images are not cropped at random.
            rank, processes: The part of each batch that is read, of several.

        Yields:
            The inputs of this part [B, 3, S, S], and the labels of the whole batch [B].

        Raises:
            DataError: A file cannot be read as an image.
        """
        generators = iter(crops)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
            try:
                for indices in batches:
                    numbers = self._crops(len(indices), next(generators, None))
                    part = torch.arange(len(indices)).tensor_split(processes)[rank].tolist()
                    jobs = [(self.paths[indices[i]], self.size, numbers[i]) for i in part]
                    waiting.append((indices, [pool.submit(read_image, *job) for job in jobs]))
                    if len(waiting) > READ_AHEAD:
                        yield self._collect(*waiting.popleft())
                while waiting:
                    yield self._collect(*waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _crops(self, count: int, generator: torch.Generator | None) -> list[list[float]] | list[None]:
        """Five random numbers for each image that is cropped at random; None for others."""
        if generator is None or not self.is_augmented:
            return [None] * count
        numbers: list[list[float]] = torch.rand(count, 5, generator=generator).tolist()
        return numbers

    def _collect(self, indices: Tensor, images: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
        pixels = torch.stack([image.result() for image in images])
        device = self.labels.device
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        inputs = normalize(pixels.to(device, non_blocking=True), 255, MEAN, STD)
        return inputs, self.labels[indices.to(device)]

    def _with_settings(self, paths: Sequence[Path], labels: Tensor) -> "ImageFiles":
        return ImageFiles(paths, labels, size=self.size, is_augmented=self.is_augmented)


def load_image_folder(folder: str | Path, *, seed: int = 0, size: int = SIZE) -> Dataset:
    """A data set of the images below a folder, without reading them.

    Args:
        folder: The folder with `train` and `val`. Without `test`, or without classes in it, `val` is the test split,
            and a tenth of the training images, but at most 10,000, is the validation split; with it, `val` is the
            validation split.
        seed: The seed of the validation split, and of the order of all images.
        size: The side of the inputs in pixels.

    Returns:
        The data set, with the names of the folders below `train` as class names.

    Raises:
        DataError: A folder is missing, a class has no image, or the classes of a part are not those of `train`.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(
            f"Expected the folder of a data set, got {root}, which is not a folder; correct the path."
        )
    _import_pillow()
    classes = tuple(sorted(path.name for path in _folders(root / "train")))
    train = _split(root / "train", classes, seed, size)
    validation = test = _split(root / "val", classes, seed, size)
    if (root / "test").is_dir() and any(path.is_dir() for path in (root / "test").iterdir()):
        test = _split(root / "test", classes, seed, size)
    else:
        num_held_out = min(MAX_VALIDATION_IMAGES, max(1, len(train) // 10))
        train_indices, validation_indices = split_indices(len(train), num_held_out, seed)
        validation, train = train.select(validation_indices), train.select(train_indices)
    augmented = ImageFiles(train.paths, train.labels, size=size, is_augmented=True)
    provenance = f"{root.name}, a folder of images"
    return Dataset(root.name, augmented, validation, test, classes, provenance)


def read_image(path: Path, size: int, crop: Sequence[float] | None = None) -> Tensor:
    """Read one image.

    Args:
        path: The file.
        size: The side S in pixels.
        crop: Five numbers in [0, 1) that choose the window and whether it is mirrored; None: the central window.

    Returns:
        uint8 [3, S, S].

    Raises:
        DataError: The file cannot be read as an image.
    """
    Image = _import_pillow()
    try:
        with Image.open(path) as image:
            box = window(image.size, crop)
            scales = [
                size * full / (high - low)
                for full, low, high in zip(image.size, box[:2], box[2:], strict=True)
            ]
            full_size = image.size
            image.draft("RGB", tuple(math.ceil(scale) for scale in scales))
            factors = [decoded / full for decoded, full in zip(image.size, full_size, strict=True)] * 2
            scaled = tuple(edge * factor for edge, factor in zip(box, factors, strict=True))
            colored = _with_8_bits(image).convert("RGB")
            resized = colored.resize((size, size), Image.Resampling.BILINEAR, box=scaled)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Expected an image in {path}, which cannot be read ({error}); remove or replace the file."
        ) from error
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return pixels.flip(2) if crop is not None and crop[4] < 0.5 else pixels.contiguous()


def window(size: tuple[int, int], crop: Sequence[float] | None = None) -> tuple[float, float, float, float]:
    """The window of an image that is resized to the input size.

    Args:
        size: The width and height of the image in pixels.
        crop: Numbers in [0, 1) that choose the area, the ratio of the sides and the position; None: the center. A
            window that is wider or higher than the image is cut to it.

    Returns:
        The left, upper, right and lower edge in pixels.

    >>> window((400, 200)), window((400, 200), (0.5, 0.5, 0.0, 1.0))
    ((112.5, 12.5, 287.5, 187.5), (0.0, 0.0, 207.84609690826528, 200.0))
    """
    width, height = size
    if crop is None:
        w = h = CENTRAL_SIDE * min(size)
        x, y = 0.5, 0.5
    else:
        area = (SMALLEST_AREA + (1 - SMALLEST_AREA) * crop[0]) * width * height
        ratio = LARGEST_RATIO ** (2 * crop[1] - 1)
        w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        x, y = crop[2:4]
    left, upper = x * (width - w), y * (height - h)
    return left, upper, left + w, upper + h


def _split(folder: Path, classes: Sequence[str], seed: int, size: int) -> ImageFiles:
    """The images of a part in random order, so that the first ones are of many classes."""
    folders = {path.name: path for path in _folders(folder)}
    if folders.keys() != set(classes):
        name = min(folders.keys() ^ set(classes))
        raise DataError(
            f"Expected the classes of {folder} to be those of its folder train, but {name!r} is in one of them only; "
            "add the folder of this class, or remove it."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in folders[name].iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(
                f"Expected images of the class {name!r}, but {folders[name]} has none; add some, or remove the folder."
            )
        paths += files
        labels += [label] * len(files)
    order = torch.randperm(len(paths), generator=make_generator(seed, "files"))
    return ImageFiles(paths, torch.tensor(labels), size=size).select(order)


def _folders(folder: Path) -> list[Path]:
    """The folders of the classes below the folder of a part."""
    folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if not folders:
        raise DataError(
            f"Expected {folder} to have one folder of images per class, "
            f"{'but it has none' if folder.is_dir() else 'which does not exist'}; see docs/training.md."
        )
    return folders


def _with_8_bits(image: Any) -> Any:
    """A gray image of 16 bits with the upper 8 of them, since Pillow makes all values above 255 white; others as is."""
    if not image.mode.startswith("I"):
        return image
    return _import_pillow().fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            'Images are read by Pillow, which is missing; run pip install "prunus[images]".'
        ) from error
    return Image
