"""Image files in tar archives, read in place: one large file instead of a million small ones, for shared disks.

    tar cf train.tar -C train . && tar cf val.tar -C val .

What is random access in folders stays so (a subset is read without the rest), which formats that are streamed have not.
"""

import contextlib
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seam.errors import SeamError
from seam.runtime.progress import phase


class Member(str):
    """A file in an archive, as text ARCHIVE/NAME; `offset` and `size` say where in the archive its bytes are."""

    archive: str
    offset: int
    size: int

    def __new__(cls, archive: str, name: str, offset: int, size: int):
        self = super().__new__(cls, f"{archive}/{name}")
        self.archive, self.offset, self.size = archive, offset, size
        return self

    def __getnewargs__(self):
        return self.archive, self[len(self.archive) + 1 :], self.offset, self.size

    def read(self) -> bytes:
        """Its bytes; fewer than `size` where the archive has been cut off."""
        return os.pread(_descriptor(self.archive), self.size, self.offset)


@lru_cache(maxsize=8)
def _descriptor(archive: str) -> int:
    """Of an archive, open as long as the process; reading at an offset is safe in forks, too."""
    return os.open(archive, os.O_RDONLY)


class Index(NamedTuple):
    """The files of an archive by class and name: classes, and for each file its class's number."""

    classes: list[str]
    members: list[Member]
    labels: np.ndarray


def read_index(archive: Path, cache: Path) -> Index:
    """The images CLASS/... of an archive, sorted as those of folders are.

    Reading a million entries takes a minute, so the index is kept in the folder `cache`, until the archive changes.
    Raises SeamError for what is no archive, is compressed, or has been cut off.
    """
    import torch
    from torchvision.datasets.folder import IMG_EXTENSIONS

    from seam.io import load_tensors, save_tensors

    about = os.stat(archive)
    stamp = torch.tensor([about.st_size, about.st_mtime_ns])
    kept = cache / f"{archive.name}.index.safetensors"
    found: list[tuple[str, int, int]] | None = None
    with contextlib.suppress(SeamError, KeyError, ValueError):  # damaged: made again
        tensors = load_tensors(kept) if kept.is_file() else {}
        if tensors and torch.equal(tensors["stamp"], stamp):
            names = tensors["names"].numpy().tobytes().decode().split("\0")
            found = [(name, *place) for name, place in zip(names, tensors["places"].tolist(), strict=True)]
    if found is None:
        with phase(f"index {archive.name}"):
            found = sorted(_entries(archive), key=lambda entry: os.path.split(entry[0]))
        if found:
            text = np.frombuffer("\0".join(name for name, *_ in found).encode(), np.uint8).copy()
            places = torch.tensor([place for _, *place in found])
            with contextlib.suppress(OSError):  # a shared data root may be read-only, or full
                save_tensors(kept, {"stamp": stamp, "names": torch.from_numpy(text), "places": places})
    found = [entry for entry in found if entry[0].lower().endswith(IMG_EXTENSIONS) and "/" in entry[0]]
    of_files = [name.split("/", 1)[0] for name, *_ in found]
    classes = sorted({*of_files})
    numbers = {name: i for i, name in enumerate(classes)}
    order = sorted(range(len(found)), key=lambda i: numbers[of_files[i]])  # stable: names stay sorted in a class
    members = [Member(str(archive), *found[i]) for i in order]
    return Index(classes, members, np.array([numbers[of_files[i]] for i in order], dtype=np.int64))


def _entries(archive: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of an archive's files, ./ and a first folder of the archive's own name left out."""
    own, size = archive.name.removesuffix(".tar"), archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as file:
            for entry in file:
                parts = [part for part in entry.name.split("/") if part not in ("", ".")]
                parts = parts[1:] if parts[:1] == [own] else parts
                if entry.isreg() and not any(part.startswith(".") for part in parts):
                    if entry.offset_data + entry.size > size:
                        raise SeamError(f"{archive}: cut off in {entry.name}; copy it again")
                    yield "/".join(parts), entry.offset_data, entry.size
                file.members = []  # else tarfile keeps all of them
    except tarfile.TarError as error:
        raise SeamError(
            f"{archive}: not an uncompressed tar archive, or cut off ({error}); make it with tar cf"
        ) from None
