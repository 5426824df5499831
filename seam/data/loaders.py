"""From a dataset's name to a set of images that gives normalised batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seam.data.fetch import fetch, known, places, read_manifest
from seam.data.files import FilesReader
from seam.data.readers import SPLITS, Reader, open_reader
from seam.data.sets import FileSet, ImageSet, TensorSet, luma, resize_pixels
from seam.errors import SeamError

IN_MEMORY_BYTES = 512 << 20  # a set that a larger image_size would make larger than this is resized batch by batch

__all__ = ["FileSet", "ImageSet", "TensorSet", "load"]


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
    info = known(dataset)
    if split not in (*SPLITS, "all"):
        raise SeamError(f"{dataset}: unknown split '{split}'; known: train, test, all")
    manifest, reader = _opened(dataset, Path(root), path)
    channels, size = channels or manifest["channels"], _size(dataset, image_size)
    if channels not in (1, 3):
        raise SeamError(f"{dataset}: channels must be 1 or 3 (found {channels})")
    mean, std = manifest["mean"], manifest["std"]
    if channels > len(mean):
        mean, std = mean * 3, std * 3
    elif channels < len(mean):
        mean, std = manifest["luma"]["mean"], manifest["luma"]["std"]

    parts = ("all",) if split == "all" and info.layout == "digits" else SPLITS if split == "all" else (split,)
    arrays = [reader.arrays(part) for part in parts]
    count = sum(len(a.labels if a else reader.labels(part)) for a, part in zip(arrays, parts, strict=True))
    chosen = _positions(dataset, split, indices, count)
    if arrays[0] is None:
        paths = [path for part in parts for path in reader.files(part).paths]
        labels = torch.from_numpy(np.concatenate([reader.labels(part) for part in parts]))
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


def _opened(dataset: str, root: Path, path: str | Path | None) -> tuple[dict, Reader]:
    """The manifest and the reader of a dataset; fetched if it is missing or is not what the manifest says."""
    info = known(dataset)
    base, cache = places(info, root, path)
    manifest = read_manifest(info, cache)
    if manifest is not None:
        try:
            reader = open_reader(info, base, cache)
            if _agree(manifest, reader):
                return manifest, reader
        except SeamError:
            pass  # fetch gets it again or says why it cannot
    return fetch(dataset, root, path), open_reader(info, base, cache)


def _agree(manifest: dict, reader: Reader) -> bool:
    """Whether a set of files is the one of the manifest (other formats verify their checksums as they are read)."""
    if not isinstance(reader, FilesReader):
        return True
    if reader.small:
        return reader.digests() == manifest["sha256"]
    # Without the files' sizes: asking for a million of them takes minutes on a network disk. `fetch` compares them.
    counts = [len(reader.labels(split)) for split in SPLITS]
    return reader.classes == manifest["classes"] and counts == [manifest[split]["count"] for split in SPLITS]


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
