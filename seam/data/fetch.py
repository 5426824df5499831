"""Getting a dataset, and the manifest that says what was got."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from seam import io
from seam.data.datasets import DATASETS, DatasetInfo
from seam.data.files import FilesReader, class_folders, folder_reader, torchvision_reader
from seam.data.manifest import load_manifest
from seam.data.readers import SPLITS, CifarReader, DigitsReader, IdxReader, Reader
from seam.data.sources import from_debian, from_torchvision, say
from seam.errors import SeamError, unknown

MOMENT_IMAGES = 2000  # of a set that is read file by file: mean and std come from this many training images


def known(dataset: str) -> DatasetInfo:
    """What is known of a dataset; SeamError lists close names."""
    if dataset not in DATASETS:
        raise unknown("dataset", str(dataset), DATASETS)
    return DATASETS[dataset]


def fetch(dataset: str, root: str | Path, path: str | Path | None = None) -> dict:
    """Make sure that a dataset is there and unharmed; return its manifest.

    Tries in order: what is under `root`/<dataset>/ (or where torchvision puts it under `root`), torchvision's download,
    the dataset's Debian package; says on stderr what it tries. With `path`, only that folder. Verifies checksums every
    time. Idempotent; safe when several processes fetch at once; a killed fetch leaves nothing that counts as present.

    The manifest (also written beside the data, or under `root` if `path` is given): dataset, path, source, classes,
    channels, image_size [H, W], train and test {count, per_class}, mean and std (of the training images, on the scale
    0..1, a number a channel), luma {mean, std} (the same after conversion to gray; coloured sets only), sha256.

    Raises SeamError: unknown dataset; or nothing worked, with each thing tried, its reason, and what to put where.
    """
    info = known(dataset)
    if info.layout == "folder" and path is None:
        raise SeamError("dataset 'folder' needs a path: a folder with train/ and val/, each with one folder a class")
    root = Path(root)
    base, cache = places(info, root, path)
    try:
        manifest = _unchanged(info, base, cache)
        if manifest is not None:
            return manifest
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{info.name}.lock", info):
            # Another process may have done it in the meantime.
            return _unchanged(info, base, cache) or _obtain(info, base, cache, path)
    except OSError as error:
        where = error.filename or root
        raise SeamError(f"{where}: {error.strerror or error}; is data_root a folder you can write to?") from None


def described(dataset: str, root: str | Path, path: str | Path | None = None) -> dict:
    """The manifest of an earlier fetch, not compared with the data (readers do that); `fetch` if there is none."""
    info = known(dataset)
    if info.layout == "folder" and path is None:
        return fetch(dataset, root, path)
    return read_manifest(info, places(info, Path(root), path)[1]) or fetch(dataset, root, path)


def opened(dataset: str, root: Path, path: str | Path | None) -> tuple[dict, Reader]:
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


def parts(dataset: str, split: str) -> tuple[str, ...]:
    """The reader's splits that make up "train", "test" or "all": train, then test; digits' in the file's own order."""
    if split not in (*SPLITS, "all"):
        raise SeamError(f"{dataset}: unknown split '{split}'; known: train, test, all")
    if split != "all":
        return (split,)
    return ("all",) if known(dataset).layout == "digits" else SPLITS


def labels(dataset: str, root: str | Path, split: str, path: str | Path | None = None) -> np.ndarray:
    """int64 [N]: labels of the images that `seam.data.loaders.load` gives, in the same order; loads no image."""
    reader = opened(dataset, Path(root), path)[1]
    return np.concatenate([reader.labels(name) for name in parts(dataset, split)])


def places(info: DatasetInfo, root: Path, path: str | Path | None) -> tuple[Path, Path]:
    """(folder of the dataset's files, folder of its manifest and of what is derived from it)."""
    if path is None:
        return root / info.name, root / info.name
    folder = Path(path).expanduser()
    resolved = str(folder.resolve())
    return folder, root / info.name / hashlib.sha256(resolved.encode()).hexdigest()[:12]


def read_manifest(info: DatasetInfo, cache: Path) -> dict | None:
    """The manifest of an earlier fetch, not compared with the data; None if there is none (or it is damaged)."""
    try:
        manifest = load_manifest(cache / "manifest.json")
        return manifest if manifest["dataset"] == info.name else None
    except SeamError:
        return None


def _unchanged(info: DatasetInfo, base: Path, cache: Path) -> dict | None:
    """The manifest of an earlier fetch if the data is still what it says."""
    manifest = read_manifest(info, cache)
    if manifest is None:
        return None
    try:
        return manifest if open_reader(info, base, cache).digests() == manifest["sha256"] else None
    except SeamError:
        return None  # fetched again, or explained, by _obtain


@contextlib.contextmanager
def _locked(path: Path, info: DatasetInfo) -> Iterator[None]:
    """Hold a dataset's lock; the system frees it when its holder dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"{info.name}: waiting for another process that fetches it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _obtain(info: DatasetInfo, base: Path, cache: Path, path: str | Path | None) -> dict:
    tried: list[str] = []
    ways: list[tuple[str, Callable[[], str | None]]] = [(f"what is in {base}", lambda: None)]
    # Never beside the user's own class folders: those would still be read first.
    if path is None and not class_folders(base):
        if info.torchvision:
            ways.append(("torchvision's download", lambda: from_torchvision(info, base)))
        if info.debian:
            ways.append((f"the Debian package {info.debian[0]}", lambda: from_debian(info, base)))
    for name, get in ways:
        if tried:
            say(f"{info.name}: {tried[-1]}; trying {name}")
        try:
            source = get()
            reader = open_reader(info, base, cache)
            manifest = _manifest(info, reader, path, source or _given(info))
        except SeamError as error:
            tried.append(f"{name}: {error}")
            continue
        io.write_json(cache / "manifest.json", manifest)
        return manifest
    listed = "\n".join(f"  - {line}" for line in tried)
    way_out = info.hint if info.layout == "digits" else f"put under {base}/: {info.hint}"
    raise SeamError(f"could not get {info.name} ({info.title}). Tried:\n{listed}\nWay out: {way_out}")


def _given(info: DatasetInfo) -> str:
    return "scikit-learn's bundled data" if info.layout == "digits" else "found on disk"


def _manifest(info: DatasetInfo, reader: Reader, path: str | Path | None, source: str) -> dict:
    digests = reader.digests()
    counts = {}
    for split, expected in zip(SPLITS, info.counts or (None, None), strict=True):
        labels = reader.labels(split)
        if expected is not None and len(labels) != expected:
            raise SeamError(
                f"incomplete: {len(labels)} images in {split}, {info.title} has {expected} "
                "(a part of it can be used as dataset 'folder')"
            )
        per_class = np.bincount(labels, minlength=len(reader.classes))
        counts[split] = {"count": len(labels), "per_class": per_class.tolist()}
    pixels = _train_pixels(reader)
    mean, std = moments(pixels)
    gray = {}
    if reader.channels == 3:
        from seam.data.image_sets import luma

        luma_mean, luma_std = moments(luma(pixels))
        gray = {"luma": {"mean": luma_mean, "std": luma_std}}
    return {
        "dataset": info.name,
        "path": None if path is None else str(path),
        "source": source,
        "classes": reader.classes,
        "channels": reader.channels,
        "image_size": list(reader.image_size),
        **counts,
        "mean": mean,
        "std": std,
        **gray,
        "sha256": digests,
    }


def _train_pixels(reader: Reader) -> np.ndarray:
    """uint8 [N, H, W, C]: the training images, or an even sample of them where they are read file by file."""
    arrays = reader.arrays("train")
    if arrays is not None:
        return arrays.pixels
    from seam.data.file_sets import read_sample

    return read_sample(reader.files("train"), reader.image_size, reader.channels, MOMENT_IMAGES)


def moments(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 [N, H, W, C], on the scale 0..1: exact, from histograms."""
    mean, std = [], []
    values = np.arange(256) / 255
    for channel in range(pixels.shape[3]):
        histogram = np.zeros(256, dtype=np.int64)
        # In parts: bincount works on a copy eight times the size.
        for part in np.array_split(pixels, len(pixels) // 2000 + 1):
            histogram += np.bincount(part[..., channel].reshape(-1), minlength=256)
        share = histogram / histogram.sum()
        centre = float(share @ values)
        mean.append(round(centre, 6))
        std.append(round(float(np.sqrt(share @ (values - centre) ** 2)), 6))
    return mean, std


def open_reader(info: DatasetInfo, base: Path, cache: Path) -> Reader:
    """The reader of whatever form of the dataset is in the folder `base`.

    cache: folder for what is derived from many small files. SeamError says what is missing, incomplete or corrupt.
    """
    if info.layout == "digits":
        reader: Reader = DigitsReader()
    elif info.layout == "idx":
        reader = IdxReader(info, base)
    elif info.layout == "folder" or class_folders(base):
        reader = folder_reader(info, base, cache)
    elif info.layout == "cifar":
        reader = CifarReader(info, base)
    else:
        reader = torchvision_reader(info, base, cache)
    if info.classes is not None and len(reader.classes) != info.classes:
        raise SeamError(f"{base}: {info.name} has {info.classes} classes, found {len(reader.classes)}")
    return reader
