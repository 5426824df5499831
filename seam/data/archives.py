"""Image files in tar archives, read in place: one large file instead of a million small ones, for shared disks.

    tar cf train.tar -C train . && tar cf val.tar -C val .

What is random access in folders stays so (a subset is read without the rest), which formats that are streamed have not.
"""

import contextlib
import os
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seam.errors import SeamError
from seam.runtime.progress import phase

_FORMAT = 1  # of the kept index
_BLOCK = 512  # bytes; an archive ends with blocks of zeros


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
        return os.pread(_descriptor(self.archive), self.size, self.offset)


@cache
def _descriptor(archive: Archive) -> int:
    """Of an archive, open as long as the process; reading at an offset is safe in forks, too."""
    file = os.open(archive.path, os.O_RDONLY)
    about = os.fstat(file)
    if (about.st_size, about.st_mtime_ns) != (archive.size, archive.mtime_ns):
        os.close(file)
        raise SeamError(f"{archive.path}: changed while it was in use; start again")
    return file


class Index(NamedTuple):
    """The images of an archive by class and name: classes, and for each image its class's number."""

    classes: list[str]
    members: list[Member]
    labels: np.ndarray


def read_index(path: Path, cache: Path) -> Index:
    """The images CLASS/... of an archive, sorted as those of folders are.

    Reading a million entries takes minutes, so the index is kept in the folder `cache`, until the archive changes.
    Raises SeamError for what is no archive, is compressed, holds links, has a class without images, or was cut off.
    """
    import torch

    from seam.io import load_tensors, save_tensors

    about = os.stat(path)
    archive = Archive(str(path), about.st_size, about.st_mtime_ns)
    stamp = torch.tensor([_FORMAT, archive.size, archive.mtime_ns])
    kept, found = cache / f"{path.name}.index.safetensors", None
    with contextlib.suppress(SeamError, KeyError, ValueError):  # damaged: made again
        tensors = load_tensors(kept) if kept.is_file() else {}
        if tensors and torch.equal(tensors["stamp"], stamp):
            names = tensors["names"].numpy().tobytes().decode(errors="surrogateescape").split("\0")
            found = [(name, *place) for name, place in zip(names, tensors["places"].tolist(), strict=True)]
    if found is None:
        with phase(f"index {path.name}"):
            found = _images(path)
        text = "\0".join(name for name, *_ in found).encode(errors="surrogateescape")
        tensors = {"names": torch.from_numpy(np.frombuffer(text, np.uint8).copy())}
        tensors |= {"places": torch.tensor([place for _, *place in found]), "stamp": stamp}
        with contextlib.suppress(OSError):  # a shared data root may be read-only, or full
            save_tensors(kept, tensors)
    of_images = [name.split("/", 1)[0] for name, *_ in found]
    classes = sorted({*of_images})
    numbers = {name: i for i, name in enumerate(classes)}
    return Index(classes, [Member(archive, *one) for one in found], np.array([numbers[c] for c in of_images], np.int64))


def _images(path: Path) -> list[tuple[str, int, int]]:
    """(CLASS/..., offset, size) of an archive's images, by class, then by folder and name in it."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    entries = _entries(path)
    own = path.name.removesuffix(".tar")
    if all(parts[0] == own for parts in entries) and any(place and len(parts) > 2 for parts, place in entries.items()):
        entries = {parts[1:]: place for parts, place in entries.items() if parts[1:]}  # packed with its folder
    classes = {parts[0] for parts, place in entries.items() if (place is None or len(parts) > 1) and parts[0][0] != "."}
    images = [
        ("/".join(parts), *place)
        for parts, place in entries.items()
        if place and len(parts) > 1 and parts[0] in classes and parts[-1].lower().endswith(IMG_EXTENSIONS)
    ]
    if not images:
        raise SeamError(f"{path}: no images in class folders (CLASS/NAME)")
    if empty := classes - {name.split("/", 1)[0] for name, *_ in images}:
        raise SeamError(f"{path}: no images in {min(empty)}/; add some or leave the folder out")
    return sorted(images, key=lambda image: (image[0].split("/", 1)[0], *os.path.split(image[0])))


def _entries(path: Path) -> dict[tuple[str, ...], tuple[int, int] | None]:
    """Parts of a name -> (offset, size) of a file in an archive, the last of that name; None: a folder."""
    found: dict[tuple[str, ...], tuple[int, int] | None] = {}
    try:
        with tarfile.open(path, "r:") as file:
            for entry in file:
                parts = tuple(part for part in entry.name.split("/") if part not in ("", "."))
                if entry.issym() or entry.islnk():
                    raise SeamError(f"{path}: {entry.name} is a link; pack with tar --dereference --hard-dereference")
                if parts and (entry.isreg() or entry.isdir()):
                    found[parts] = (entry.offset_data, entry.size) if entry.isreg() else None
                file.members = []  # else tarfile keeps all of them
            end = file.offset
    except tarfile.TarError as error:
        raise SeamError(f"{path}: not an uncompressed tar archive, or cut off ({error}); make it with tar cf") from None
    with path.open("rb") as content:  # tarfile takes a damaged header, and the end of the file, for the archive's end
        content.seek(end)
        if content.read(_BLOCK) != bytes(_BLOCK):
            raise SeamError(f"{path}: damaged or cut off at byte {end:,}; copy it again")
    return found
