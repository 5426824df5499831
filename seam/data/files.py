"""Datasets of image files: listing them, and holding small ones in memory."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seam.data.archives import Index, read_index, split_archives
from seam.data.datasets import DatasetInfo
from seam.data.decode import file_size, is_deep, open_image, read_image, unreadable
from seam.data.readers import SPLITS, Arrays, Files, Reader
from seam.errors import SeamError
from seam.runtime.progress import progress

SMALL = 64  # pixels: sets whose images all have one size of at most this live in memory ...
SMALL_BYTES = 2 << 30  # ... if they fit in this
TEST_NAMES = ("test", "val", "validation")  # of a folder; the first that is there counts
UNLABELLED = "unlabelled"  # the class of images that lie in no class's folder
LARGE_SIZE = (224, 224)  # what images of many sizes are cropped to unless told otherwise


def place_of(base: Path, *names: str) -> Path | tuple[Path, ...] | None:
    """The folder of a split that has one of the names, or the archives of it, in `base` or in that folder; or None."""
    for folder in (base / name for name in names):
        if folder.is_dir():
            shards = tuple(sorted(e for e in folder.glob("[!.]*.tar") if e.is_file()))
            if shards and subfolders(folder):
                raise SeamError(f"{folder}: holds archives ({shards[0].name}) and class folders; keep one form")
            return shards or folder
    return next((found for name in names if (found := split_archives(base, name))), None)


def class_folders(base: Path) -> dict[str, Path | tuple[Path, ...]] | None:
    """The folders of the two splits if `base` has train/ and test/ (or val/), or the archives of them, else None."""
    train, test = place_of(base, "train"), place_of(base, *TEST_NAMES)
    return {"train": train, "test": test} if train and test else None


class FilesReader(Reader):
    """Image files with their labels.

    Where all images have one small size, they are decoded once and kept as uint8 in `cache` (safetensors), under a name
    that holds the hash of the listing: a changed folder is decoded anew. Without a `cache` they are read as they are
    asked for.
    """

    def __init__(self, base: Path, cache: Path | None, splits: dict[str, Files], classes: list[str], info: DatasetInfo):
        self.base, self.cache, self.splits, self.classes = base, cache, splits, classes
        self._lines: dict[str, list[str]] = {}
        size, self.channels, self.deep = _inspect(splits["train"].paths, info.channels)
        count = sum(len(files.paths) for files in splits.values())
        self.small = size is not None and max(size) <= SMALL and count * size[0] * size[1] * self.channels < SMALL_BYTES
        self.image_size = size if self.small else (info.image_size or LARGE_SIZE)

    def files(self, split):
        return self.splits[split]

    def labels(self, split):
        return self.splits[split].labels

    def listing(self, splits: Iterable[str] = SPLITS) -> str:
        """sha256 over the sorted (relative path, size) of the splits' files.

        Sets with 16-bit images have another one than they had while these were clipped to white, so that no cache or
        manifest of that time is taken.
        """
        for split in set(splits) - set(self._lines):
            try:
                self._lines[split] = [
                    f"{os.path.relpath(path, self.base)}\t{file_size(path)}\n" for path in self.splits[split].paths
                ]
            except OSError as error:
                raise SeamError(f"{error.filename}: listed by the dataset, but {error.strerror}") from None
        lines = sorted(line for split in splits for line in self._lines[split])
        return hashlib.sha256("".join(["16 bits\n"] * self.deep + lines).encode()).hexdigest()

    def digests(self):
        return {"listing": self.listing()}

    def arrays(self, split):
        import torch

        from seam.io import load_tensors, save_tensors

        if not self.small or self.cache is None:
            return None
        path = self.cache / f"{split}-{self.listing([split])[:16]}.safetensors"
        labels = self.splits[split].labels
        if path.is_file():
            with contextlib.suppress(SeamError):  # damaged: made again
                pixels = load_tensors(path).get("pixels")
                shape = (len(labels), *self.image_size, self.channels)
                if pixels is not None and pixels.dtype == torch.uint8 and pixels.shape == shape:
                    return Arrays(pixels.numpy(), labels)

        pixels = np.empty((len(labels), *self.image_size, self.channels), dtype=np.uint8)
        files = self.splits[split].paths
        for i, file in enumerate(progress(files, len(files), f"decode {self.base.name}/{split}")):
            image = read_image(file, self.channels)
            if image.size != self.image_size[::-1]:
                raise SeamError(
                    f"{file}: {image.width}x{image.height} pixels among images of "
                    f"{self.image_size[1]}x{self.image_size[0]}; give all images of a small set one size"
                )
            pixels[i] = np.asarray(image).reshape(pixels.shape[1:])
        with contextlib.suppress(OSError):  # a shared data root may be read-only, or full
            save_tensors(path, {"pixels": torch.from_numpy(pixels)}, {"listing": self.listing([split])})
            for old in set(self.cache.glob(f"{split}-*.safetensors")) - {path}:
                old.unlink(missing_ok=True)
        return Arrays(pixels, labels)


def folder_reader(info: DatasetInfo, base: Path, cache: Path | None) -> FilesReader:
    """Reader of train/ and val/ (or test/), one folder a class, or of archives of them; labels go by train/'s folders,
    sorted by name, or by the numbers that WebDataset's shards give.

    cache: folder for the archives' indexes and decoded images; None: they are not kept.
    """
    folders = class_folders(base)
    if folders is None:
        raise SeamError(f"{base}: must have the folders train/ and val/ (or test/), each with one folder a class")
    indexes, own = {}, {}
    for split, place in folders.items():
        if isinstance(place, tuple):
            indexes[split] = read_index(place, cache and cache / f"{split}.index.safetensors")
            own[split] = indexes[split].classes
        else:
            own[split] = subfolders(place)
    classes = own["train"]
    if not classes:
        raise SeamError(f"{folders['train']}: no class folders; put each class's images in a folder of its name")
    names = {split: place if isinstance(place, Path) else place[0] for split, place in folders.items()}
    strangers = sorted(set(own["test"]) - set(classes))
    if strangers:
        raise SeamError(f"{names['test']}: classes that train/ has not: {', '.join(strangers[:10])}")
    splits = {
        split: _packed(indexes[split], classes) if split in indexes else list_images(names[split], classes)
        for split in SPLITS
    }
    if not splits["test"].paths:
        raise SeamError(f"{names['test']}: no images in its class folders")
    counts = np.bincount(splits["train"].labels, minlength=len(classes))
    if not counts.all():  # of numbered classes; a folder without images is refused before
        raise SeamError(
            f"{names['train']}: no images of class {classes[counts.argmin()]} of 0 to {classes[-1]}; classes count "
            "from 0, and all shards must be there"
        )
    return FilesReader(base, cache, splits, classes, info)


def _packed(index: Index, classes: list[str]) -> Files:
    """The images of an archive, with labels among `classes`."""
    numbers = np.array([classes.index(name) for name in index.classes], dtype=np.int64)
    return Files(index.members, numbers[index.labels])


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones apart: its classes."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def list_images(folder: Path, classes: list[str]) -> Files:
    """The images in the classes' folders; a class may have none, but not an empty one: is it a class or a mistake?"""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    present = {name: i for i, name in enumerate(classes) if (folder / name).is_dir()}
    samples = make_dataset(str(folder), present, extensions=IMG_EXTENSIONS, allow_empty=True) if present else []
    if empty := set(present.values()) - {label for _, label in samples}:
        raise SeamError(f"{folder / classes[min(empty)]}: no images; add some or delete the folder")
    return Files([path for path, _ in samples], np.array([label for _, label in samples], dtype=np.int64))


def unlabelled_images(folder: Path) -> Files:
    """The images that lie in a folder itself, sorted by name, all of the one class `UNLABELLED`."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = (e for e in os.scandir(folder) if e.is_file() and not e.name.startswith("."))
    paths = sorted(e.path for e in found if e.name.lower().endswith(IMG_EXTENSIONS))
    return Files(paths, np.zeros(len(paths), dtype=np.int64))


def torchvision_reader(info: DatasetInfo, base: Path, cache: Path) -> FilesReader:
    """Reader of the files that a torchvision dataset lists, under `base` or torchvision's place beside it."""
    import torchvision.datasets

    if info.torchvision == "ImageNet":
        raise SeamError(f"{base}: no train/ and val/ with one folder a class")
    cls = getattr(torchvision.datasets, info.torchvision)
    reasons = []
    for root in (base, base.parent):
        try:
            parts = {"train": [cls(root, split=s) for s in info.train], "test": [cls(root, split=info.test)]}
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            reasons.append(f"{root}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        splits = {}
        for split, datasets in parts.items():
            samples = [sample for dataset in datasets for sample in _samples(dataset)]
            splits[split] = Files([p for p, _ in samples], np.array([y for _, y in samples], dtype=np.int64))
        return FilesReader(root, cache, splits, [str(name) for name in parts["train"][0].classes], info)
    raise SeamError("; ".join(reasons))


def _samples(dataset) -> list[tuple[str, int]]:
    """(path, label) of each image; torchvision's classes keep them under one of these names."""
    if hasattr(dataset, "_samples"):
        pairs = dataset._samples
    else:
        files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
        pairs = zip(files, dataset._labels, strict=True)
    return [(str(path), int(label)) for path, label in pairs]


def _inspect(paths: list[str], channels: int | None) -> tuple[tuple[int, int] | None, int, bool]:
    """What a sample of the images shows: their common (H, W), or None; channels, 1 if all are gray, else 3; whether
    any has 16 bits.

    Raises SeamError when any cannot be brought to 8 bits: the first, why, and how many of the sample are alike.
    """
    sizes, modes, deep = set(), set(), False
    looked_at, refused = paths[:: max(1, len(paths) // 100)], []
    for path in looked_at:
        with open_image(path) as image:
            sizes.add(image.size)
            modes.add(image.mode)
            deep |= is_deep(image)
            if problem := unreadable(image):
                refused.append(f"{path}: {problem}")
    if refused:
        raise SeamError(f"{refused[0]} (so {len(refused)} of {len(looked_at)} images looked at)")
    gray = all(mode in ("1", "L", "I") or mode.startswith("I;16") for mode in modes)
    return (sizes.pop()[::-1] if len(sizes) == 1 else None), channels or (1 if gray else 3), deep
