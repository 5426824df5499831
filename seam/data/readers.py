"""Reading the datasets' own formats from disk, checksums verified: a `Reader` a format."""

import gzip
import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seam.data.datasets import DatasetInfo
from seam.errors import SeamError

SPLITS = ("train", "test")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Arrays(NamedTuple):
    """Images in memory: uint8 [N, H, W, C] and their labels, int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray


class Files(NamedTuple):
    """Image files and their labels, int64 [N]."""

    paths: list[str]
    labels: np.ndarray


class Reader(ABC):
    """One dataset on disk. Making a Reader raises SeamError if the dataset is not there."""

    classes: list[str]
    channels: int
    image_size: tuple[int, int]

    @abstractmethod
    def digests(self) -> dict[str, str]:
        """sha256 by file name (or of the listing, for many files). SeamError names a corrupt or missing file."""

    @abstractmethod
    def labels(self, split: str) -> np.ndarray:
        """int64 [N]."""

    def arrays(self, split: str) -> Arrays | None:
        """The split in memory, or None when it must be read file by file."""
        return None

    def files(self, split: str) -> Files:
        raise NotImplementedError


class DigitsReader(Reader):
    """scikit-learn's digits. They have no split of their own: each class gives a fixed fifth to test."""

    channels, image_size = 1, (8, 8)
    classes = [str(digit) for digit in range(10)]

    def __init__(self):
        from importlib.util import find_spec

        # Found without importing scikit-learn, which would take a second.
        spec = find_spec("sklearn")
        places = spec.submodule_search_locations if spec else None
        self.path = Path(places[0]) / "datasets/data/digits.csv.gz" if places else None
        if self.path is None or not self.path.is_file():
            raise SeamError("digits: scikit-learn's datasets/data/digits.csv.gz is missing; install scikit-learn again")

    def digests(self):
        return {"digits.csv": hashlib.sha256(content(self.path)).hexdigest()}

    def labels(self, split):
        return self.arrays(split).labels

    def arrays(self, split):
        table = np.loadtxt(BytesIO(content(self.path)), delimiter=",", dtype=np.float32)
        pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = table[:, -1].astype(np.int64)
        if split == "all":
            return Arrays(pixels, labels)
        draw = np.random.default_rng(0)
        test = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            members = draw.permutation(np.flatnonzero(labels == label))
            test[members[: round(0.2 * len(members))]] = True
        chosen = test if split == "test" else ~test
        return Arrays(pixels[chosen], labels[chosen])


class IdxReader(Reader):
    """MNIST's format, files compressed or not. The sha256 are of the uncompressed content."""

    classes = list(FASHION)

    def __init__(self, info: DatasetInfo, base: Path):
        raw = f"{info.torchvision}/raw"  # where torchvision puts them
        places = [base, base / raw, base.parent / raw]
        self.expected, self.channels, self.image_size = info.files, info.channels, info.image_size
        self.paths = {name: find_idx(name, places) for name in info.files}
        missing = [f"{name}.gz" for name, path in self.paths.items() if path is None]
        if missing:
            raise SeamError(f"{base}: no {', '.join(missing)}")

    def digests(self):
        for name, digest in self.expected.items():
            content(self.paths[name], digest)
        return dict(self.expected)

    def _read(self, name: str) -> np.ndarray:
        return parse_idx(content(self.paths[name], self.expected[name]), self.paths[name])

    def labels(self, split):
        return self._read(f"{'train' if split == 'train' else 't10k'}-labels-idx1-ubyte").astype(np.int64)

    def arrays(self, split):
        images = self._read(f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte")
        return Arrays(images[..., None], self.labels(split))


class CifarReader(Reader):
    """CIFAR-10/100 as torchvision keeps them; torchvision reads them, once their checksums are found right."""

    def __init__(self, info: DatasetInfo, base: Path):
        import torchvision.datasets

        self.channels, self.image_size = info.channels, info.image_size
        self.cls = getattr(torchvision.datasets, info.torchvision)
        folder = self.cls.base_folder
        self.root = next((place for place in (base, base.parent) if (place / folder).is_dir()), None)
        if self.root is None:
            raise SeamError(f"{base}: neither {folder}/ nor train/ and test/ with one folder a class")
        meta = (self.cls.meta["filename"], self.cls.meta["md5"])
        for name, digest in (*self.cls.train_list, *self.cls.test_list, meta):
            path = self.root / folder / name
            if not path.is_file():
                raise SeamError(f"{path}: no such file")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "md5").hexdigest() != digest:
                    raise SeamError(f"{path}: corrupt or truncated (md5 is not {digest}); delete it and fetch again")
        self.classes = self.cls(self.root, train=False).classes

    def digests(self):
        from seam.io import sha256

        names = [name for name, _ in (*self.cls.train_list, *self.cls.test_list)]
        return {name: sha256(self.root / self.cls.base_folder / name) for name in names}

    def labels(self, split):
        return self.arrays(split).labels

    def arrays(self, split):
        data = self.cls(self.root, train=split == "train")
        return Arrays(data.data, np.asarray(data.targets, dtype=np.int64))


def content(path: Path, digest: str | None = None) -> bytes:
    """A file's bytes, uncompressed if it ends in .gz. SeamError if truncated, or of another sha256 than `digest`."""
    try:
        data = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SeamError(f"{path}: corrupt or truncated ({error}); delete it and fetch again") from None
    if digest is not None and (found := hashlib.sha256(data).hexdigest()) != digest:
        raise SeamError(
            f"{path}: corrupt or truncated (sha256 of its content is {found[:12]}..., expected {digest[:12]}...); "
            "delete it and fetch again"
        )
    return data


def find_idx(name: str, places: Sequence[Path]) -> Path | None:
    """The file `name`, compressed or not, in the first of `places` that has it."""
    candidates = (place / file for place in places for file in (f"{name}.gz", name))
    return next((path for path in candidates if path.is_file()), None)


def parse_idx(data: bytes, path: Path) -> np.ndarray:
    """An array of unsigned bytes in MNIST's idx format; `path` is for messages."""
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise SeamError(f"{path}: not an idx file of unsigned bytes; delete it and fetch again")
    dims = np.frombuffer(data, ">i4", count=data[3], offset=4)
    array = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if array.size != dims.prod():
        raise SeamError(f"{path}: truncated: {array.size} of {dims.prod()} bytes; delete it and fetch again")
    return array.reshape(dims)
