"""From a dataset's name to a set of images that gives normalised batches."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seam.data.archives import read_index
from seam.data.datasets import DATASETS
from seam.data.fetch import known, opened, parts
from seam.data.file_sets import FileSet, prepare_as_trained
from seam.data.files import (
    TEST_NAMES,
    UNLABELLED,
    folder_reader,
    list_images,
    place_of,
    subfolders,
    unlabelled_images,
)
from seam.data.image_sets import ImageSet, TensorSet, luma, resize_pixels
from seam.data.readers import Files
from seam.errors import SeamError

IN_MEMORY_BYTES = 512 << 20  # a set that a larger image_size would make larger than this is resized batch by batch

__all__ = ["FileSet", "ImageSet", "TensorSet", "load", "prepare_as_trained"]


def load(
    dataset: str,
    root: str | Path,
    split: str,
    path: str | Path | None = None,
    indices: Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
) -> ImageSet:
    """The images of one split ("train", "test" or "all": train, then test), or those at `indices` of it, in that order.

    image_size: (H, W) or one number for both, in pixels; None: the dataset's own. channels: 1 (luma) or 3 (a gray image
    three times); None: the dataset's own. digits' "all" is in the file's own order.

    Fetches what is missing. SeamError: unknown dataset or split, indices or sizes out of range, bad files.
    """
    info, names = known(dataset), parts(dataset, split)
    manifest, reader = opened(dataset, Path(root), path)
    channels, size = channels or manifest["channels"], _size(dataset, image_size)
    if channels not in (1, 3):
        raise SeamError(f"{dataset}: channels must be 1 or 3 (found {channels})")
    mean, std = manifest["mean"], manifest["std"]
    if channels > len(mean):
        mean, std = mean * 3, std * 3
    elif channels < len(mean):
        mean, std = manifest["luma"]["mean"], manifest["luma"]["std"]

    arrays = [reader.arrays(name) for name in names]
    count = sum(len(a.labels if a else reader.labels(name)) for a, name in zip(arrays, names, strict=True))
    chosen = _positions(dataset, split, indices, count)
    if arrays[0] is None:
        paths = [path for name in names for path in reader.files(name).paths]
        labels = torch.from_numpy(np.concatenate([reader.labels(name) for name in names]))
        images = FileSet(paths, labels, reader.classes, mean, std, size or reader.image_size, info.flip)
        return images if chosen is None else images.subset(chosen)

    pixels, labels = _joined([a.pixels for a in arrays]), _joined([a.labels for a in arrays])
    if chosen is not None:
        pixels, labels = pixels[chosen], labels[chosen]
    if channels < pixels.shape[3]:
        pixels = luma(pixels)
    pixels = torch.from_numpy(np.require(np.repeat(pixels, channels // pixels.shape[3], axis=3), requirements="CW"))
    later = None
    if size and size != tuple(pixels.shape[1:3]):
        if len(pixels) * size[0] * size[1] * channels <= IN_MEMORY_BYTES:
            pixels = resize_pixels(pixels, size)
        else:
            later = size
    return TensorSet(pixels, torch.from_numpy(labels), reader.classes, mean, std, info.flip, later)


def _size(dataset: str, image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(1 <= side <= 4096 for side in size):
        raise SeamError(f"{dataset}: image_size must be 1 to 4096 pixels, one number or (H, W) (found {image_size})")
    return size


def _positions(dataset: str, split: str, indices: Sequence[int] | None, count: int) -> np.ndarray | None:
    if indices is None:
        return None
    chosen = np.asarray(indices, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= count):
        raise SeamError(f"{dataset}: indices must be from 0 to {count - 1}, the images of split {split}")
    return chosen


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def open_folder(base: Path, split: str, size: tuple[int, int], channels: int) -> FileSet:
    """The images of a user's own folder, one folder a class, normalised to mean 0.5 and deviation 0.25.

    Of a folder with train/ and val/ or test/, or archives of them, those of the split; without train/ those of test/ or
    val/, whatever the split; without these all that is there: class folders, or else images without classes, enough for
    calibration, searches and finetuning by a teacher. train/ may hold such ones beside a test/ or val/ with classes.
    Raises SeamError where there are no images, or a class has none.
    """
    train, test = place_of(base, "train"), place_of(base, *TEST_NAMES)
    if split == "test" and (base / "test").is_dir() and (base / "val").is_dir():
        print(f"{base}: has test/ and val/; taking test/", file=sys.stderr)
    if isinstance(train, Path) and not subfolders(train) and unlabelled_images(train).paths:
        base, train, test = (train, None, None) if split == "train" or not test else (base, None, test)
    if isinstance(train, Path) or train and test:
        reader = folder_reader(DATASETS["folder"], base, None)
        files, classes = reader.files(split), reader.classes
    elif archives := train or (test if isinstance(test, tuple) else None):
        index = read_index(archives)
        files, classes = Files(index.members, index.labels), index.classes
    else:
        if test and split == "train":
            print(f"{base}: has no train/; taking {test.name}/", file=sys.stderr)
        folder = test or base
        classes = subfolders(folder)
        files = list_images(folder, classes)
        if not files.paths and (files := unlabelled_images(folder)).paths:
            classes = [UNLABELLED]
        if not files.paths:
            raise SeamError(
                f"{folder}: no images; put them in one folder a class, or in train/ and val/ with one folder a class"
            )
    return FileSet(files.paths, torch.from_numpy(files.labels), classes, [0.5] * channels, [0.25] * channels, size)
