"""Image files in tar archives, read in place: a few large files instead of a million small ones, for shared disks.

    tar cf train.tar -C train . && tar cf val.tar -C val .

Or WebDataset's shards, such as imagenet-train-0000.tar: there the files of a sample share a name, KEY.jpg and KEY.cls,
the number of its class. What is random access in folders stays so (a subset is read without the rest), which the
library WebDataset, made for streams, has not.
"""

import contextlib
import hashlib
import os
import re
import resource
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seam.errors import SeamError
from seam.runtime.progress import progress

_FORMAT = 2  # of the kept index
_BLOCK = 512  # bytes; an archive ends with blocks of zeros
_LABEL = ".cls"
_SPLITS = {"train", "test", "val", "validation"}


def split_archives(base: Path, split: str) -> tuple[Path, ...]:
    """The archives of a split in a folder: SPLIT.tar, or else the shards that end with SPLIT and a number, by name.

    Raises SeamError where there are shards of more than one set.
    """
    whole, pattern = base / f"{split}.tar", re.compile(rf"([^.].*[-_.])?{split}[-_.]?\d+(-of-\d+)?\.tar")
    if whole.is_file() or not base.is_dir():
        return (whole,) if whole.is_file() else ()
    shards = {file: match for file in base.iterdir() if (match := pattern.fullmatch(file.name)) and file.is_file()}
    if len(sets := {match[1]: file.name for file, match in shards.items()}) > 1:
        names = sorted(sets.values())
        raise SeamError(f"{base}: {names[0]} and {names[1]} are of different sets; keep one set in a folder")
    return tuple(sorted(shards))


@dataclass(frozen=True)
class Archive:
    """A tar file as it was when its index was made."""

    path: str
    size: int
    mtime_ns: int


class Member(str):
    """A file in an archive, as text ARCHIVE/NAME; `offset` and `size` say where in the archive its bytes are."""

    __slots__ = ("archive", "offset", "size")

    def __new__(cls, archive: Archive, name: str, offset: int, size: int):
        self = super().__new__(cls, f"{archive.path}/{name}")
        self.archive, self.offset, self.size = archive, offset, size
        return self

    def __getnewargs__(self):
        return self.archive, self[len(self.archive.path) + 1 :], self.offset, self.size

    def __getstate__(self):
        return None  # all is in the arguments

    def read(self) -> bytes:
        """Its bytes. SeamError where the archive is not the one that was indexed."""
        handle = _opened(self.archive)
        return os.pread(handle.number, self.size, self.offset)


class _Handle:
    """An archive, open until no one has it any more; reading at an offset is safe in forks, too."""

    def __init__(self, archive: Archive):
        self.number = os.open(archive.path, os.O_RDONLY)
        about = os.fstat(self.number)
        if (about.st_size, about.st_mtime_ns) != (archive.size, archive.mtime_ns):
            raise SeamError(f"{archive.path}: changed while it was in use; start again")

    def __del__(self):
        if hasattr(self, "number"):  # else it could not be opened
            os.close(self.number)


# Of a thousand shards not all may be open at a time.
_opened = lru_cache(max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)))(_Handle)


class Index(NamedTuple):
    """The images of a split by class and name: classes, and for each image its class's number among them."""

    classes: list[str]
    members: list[Member]
    labels: np.ndarray


class _Image(NamedTuple):
    """An image of an archive. place: what it is sorted by within its class; label: the class's name, or its number."""

    label: str | int
    place: tuple[str, str]
    archive: int
    name: str
    offset: int
    size: int


def read_index(paths: Sequence[Path], kept: Path | None = None) -> Index:
    """The images of a split's archives, sorted as those of folders are.

    Classes are the folders CLASS/..., by name, or in WebDataset's shards 0 to the largest number in a .cls.

    Args:
        kept: file that keeps the index until an archive changes, since reading a million entries takes minutes.

    Raises SeamError for what is no archive, is compressed, holds links, has a class without images or an image without
    a class, or was cut off.
    """
    import torch

    from seam.io import load_tensors, save_tensors

    archives = [Archive(str(path), (about := os.stat(path)).st_size, about.st_mtime_ns) for path in paths]
    state = repr((_FORMAT, [(path.name, a.size, a.mtime_ns) for path, a in zip(paths, archives, strict=True)]))
    stamp, found = _bytes(hashlib.sha256(state.encode()).hexdigest()), None
    if kept is not None and kept.is_file():
        with contextlib.suppress(SeamError, KeyError, ValueError):  # damaged: made again
            tensors = load_tensors(kept)
            if torch.equal(tensors["stamp"], stamp):
                found = [_text(tensors[key]).split("\0") for key in ("classes", "names")]
                found += [tensors["places"].tolist(), tensors["labels"].numpy()]
    if found is None:
        found = _read(paths)
        classes, names, places, labels = found
        tensors = {"classes": _bytes("\0".join(classes)), "names": _bytes("\0".join(names)), "stamp": stamp}
        tensors |= {"places": torch.tensor(places), "labels": torch.from_numpy(labels)}
        with contextlib.suppress(OSError):  # a shared data root may be read-only, or full
            if kept is not None:
                save_tensors(kept, tensors)
    classes, names, places, labels = found
    members = [Member(archives[i], name, *place) for name, (i, *place) in zip(names, places, strict=True)]
    return Index(classes, members, labels)


def _bytes(text: str):
    """Text, of names of any bytes, as a tensor."""
    import torch

    return torch.from_numpy(np.frombuffer(text.encode(errors="surrogateescape"), np.uint8).copy())


def _text(tensor) -> str:
    return tensor.numpy().tobytes().decode(errors="surrogateescape")


def _read(paths: Sequence[Path]) -> tuple[list[str], list[str], list[tuple[int, int, int]], np.ndarray]:
    """Classes; name, (archive, offset, size) and class of each image, by class, then by folder and name."""
    images: list[_Image] = []
    in_folders: dict[int, dict] = {}
    for number, path in enumerate(progress(paths, len(paths), f"index {paths[0].parent.name}")):
        entries, numbers = _entries(path)
        if numbers:
            images += _samples(path, number, entries, numbers)
        else:
            in_folders[number] = entries
    folders: dict[str, Path] = {}
    for number, entries in _unpacked(in_folders).items():
        here, own = _in_folders(number, entries)
        images += here
        folders |= dict.fromkeys(own, paths[number])
    if not images:
        raise SeamError(f"{paths[0]}: no images in class folders (CLASS/NAME), and none with a KEY{_LABEL} beside it")
    numbered = {isinstance(image.label, int) for image in images}
    if len(numbered) > 1:
        where = paths[0].parent
        raise SeamError(f"{where}: some archives hold class folders, others WebDataset's samples; keep one form")
    images.sort(key=lambda image: (image.label, *image.place, image.archive))
    present = {image.label for image in images}
    classes = [*range(images[-1].label + 1)] if numbered == {True} else sorted(present)
    if empty := folders.keys() - present:
        raise SeamError(f"{folders[min(empty)]}: no images in {min(empty)}/; add some or leave the folder out")
    number_of = {name: i for i, name in enumerate(classes)}
    places = [(image.archive, image.offset, image.size) for image in images]
    labels = np.array([number_of[image.label] for image in images], dtype=np.int64)
    return [str(name) for name in classes], [image.name for image in images], places, labels


def _unpacked(archives: dict[int, dict]) -> dict[int, dict]:
    """The entries of archives of class folders, without the split's own folder where all were packed with it."""
    first = {parts[0] for entries in archives.values() for parts in entries}
    deep = (place and len(parts) > 2 for entries in archives.values() for parts, place in entries.items())
    if len(first) == 1 and first <= _SPLITS and any(deep):
        return {i: {parts[1:]: p for parts, p in entries.items() if parts[1:]} for i, entries in archives.items()}
    return archives


def _in_folders(number: int, entries: dict) -> tuple[list[_Image], set[str]]:
    """The images CLASS/... of an archive, and its class folders."""
    classes = {parts[0] for parts, place in entries.items() if (place is None or len(parts) > 1) and parts[0][0] != "."}
    images = [
        _Image(parts[0], os.path.split("/".join(parts)), number, "/".join(parts), *place)
        for parts, place in entries.items()
        if place and len(parts) > 1 and parts[0] in classes and _is_image(parts[-1])
    ]
    return images, classes


def _sample(parts: tuple[str, ...]) -> tuple[str, str]:
    """(key, extension) of a file in a WebDataset shard: its name is cut at the first dot. ("", "") of a hidden file."""
    name, _, extension = parts[-1].partition(".")
    return ("/".join((*parts[:-1], name)), f".{extension.lower()}") if name else ("", "")


def _samples(path: Path, number: int, entries: dict, numbers: dict[str, bytes]) -> list[_Image]:
    """The images of a WebDataset shard; numbers: key -> what its .cls holds."""
    found: dict[str, _Image] = {}
    for parts, place in entries.items():
        key, extension = _sample(parts)
        if not place or extension.count(".") != 1 or not _is_image(extension):
            continue
        name = "/".join(parts)
        if key in found:
            raise SeamError(f"{path}: {found[key].name} and {name} are of one sample; keep one of them")
        if key not in numbers:
            raise SeamError(f"{path}: {name} has no {os.path.basename(key)}{_LABEL} beside it, the number of its class")
        label = numbers.pop(key).strip()
        if not label.isdigit() or len(label) > 6:
            raise SeamError(f"{path}: {key}{_LABEL} must hold the number of a class, from 0 on (found {label[:20]!r})")
        found[key] = _Image(int(label), os.path.split(name), number, name, *place)
    if numbers:
        raise SeamError(f"{path}: {min(numbers)}{_LABEL} has no image of its name; remove it")
    return [*found.values()]


def _is_image(name: str) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return name.lower().endswith(IMG_EXTENSIONS)


def _entries(path: Path) -> tuple[dict[tuple[str, ...], tuple[int, int] | None], dict[str, bytes]]:
    """Parts of a name -> (offset, size) of a file in an archive, the last of that name; None: a folder. And key -> what
    its .cls holds."""
    found: dict[tuple[str, ...], tuple[int, int] | None] = {}
    numbers: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as file:
            for entry in file:
                parts = tuple(part for part in entry.name.split("/") if part not in ("", "."))
                if entry.issym() or entry.islnk():
                    raise SeamError(f"{path}: {entry.name} is a link; pack with tar --dereference --hard-dereference")
                if parts and (entry.isreg() or entry.isdir()):
                    found[parts] = (entry.offset_data, entry.size) if entry.isreg() else None
                    key, extension = _sample(parts)
                    if entry.isreg() and extension == _LABEL:
                        numbers[key] = file.extractfile(entry).read(32)
                file.members = []  # else tarfile keeps all of them
            end = file.offset
    except tarfile.TarError as error:
        raise SeamError(f"{path}: not an uncompressed tar archive, or cut off ({error}); make it with tar cf") from None
    with path.open("rb") as content:  # tarfile takes a damaged header, and the end of the file, for the archive's end
        content.seek(end)
        if content.read(_BLOCK) != bytes(_BLOCK):
            raise SeamError(f"{path}: damaged or cut off at byte {end:,}; copy it again")
    return found, numbers
