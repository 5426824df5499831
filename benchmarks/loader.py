"""How fast images arrive, from folders, tar archives and WebDataset's shards, against the library WebDataset and what
decoding alone allows; whether memory stays flat over an epoch of 1,000 classes, and an epoch that is resumed in its
middle goes on with the same images.

    python benchmarks/loader.py PHOTOS [--copies 10] [--csv benchmarks/loader.csv]

PHOTOS: a folder with one photograph for each of 1,000 classes (for example
https://github.com/EliSchwartz/imagenet-sample-images). A tree of train/CLASS/ and val/CLASS/ is made of random parts of
them, `--copies` a class, and packed into train.tar and val.tar, and with WebDataset's writer into shards. Images are
taken as training takes them: a random resized crop to 224x224, and a flip. Images a core: per second of processor time,
of all processes. Memory: what all processes hold that is theirs (proportional set size), after the first tenth of an
epoch and at its end.
"""

import argparse
import csv
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

from seam.runtime.cores import limit_threads

REPEATS = 3  # of which the median counts
CLASSES = 1000
COLUMNS = ("from", "classes", "workers", "images", "images_per_second", "images_a_core", "mb_first_tenth", "mb_end")
COLUMNS += ("machine",)


def tree(photos: Path, base: Path, copies: int) -> None:
    """Write train/CLASS/ with `copies` images a photograph and val/CLASS/ with one."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    names = sorted(p for p in photos.iterdir() if p.suffix.lower() in (".jpeg", ".jpg"))
    for photo in names:
        image = Image.open(photo).convert("RGB")
        for split, count in (("train", copies), ("val", 1)):
            folder = base / split / photo.stem
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                share = draw.uniform(0.7, 1)
                w, h = int(image.width * share), int(image.height * share)
                x, y = draw.integers(0, image.width - w + 1), draw.integers(0, image.height - h + 1)
                image.crop((x, y, x + w, y + h)).save(folder / f"{i}.jpg", quality=90)


def pack(base: Path, packed: Path) -> None:
    packed.mkdir(exist_ok=True)
    for split in ("train", "val"):
        with tarfile.open(packed / f"{split}.tar", "w:") as file:
            file.add(base / split, ".")


def shard(base: Path, packed: Path) -> None:
    """Shards of 500 samples in a drawn order, as the library WebDataset writes them."""
    import numpy as np
    import webdataset

    packed.mkdir(exist_ok=True)
    for split in ("train", "val"):
        classes = {name: i for i, name in enumerate(sorted(os.listdir(base / split)))}
        files = [file for name in classes for file in sorted((base / split / name).iterdir())]
        with webdataset.ShardWriter(f"{packed}/{split}-%04d.tar", maxcount=500, verbose=0) as writer:
            for i in np.random.default_rng(0).permutation(len(files)):
                name = files[i].parent.name
                sample = {"__key__": f"{name}_{files[i].stem}", "jpg": files[i].read_bytes(), "cls": classes[name]}
                writer.write(sample)


def held() -> float:
    """MB of this process and its children."""
    total = 0
    for process in Path("/proc").iterdir():
        try:
            mine = process.name == str(os.getpid()) or f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text()
            if process.name.isdigit() and mine:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total / 1024


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def epoch(images, workers: int) -> tuple[float, float, float, float]:
    """(seconds, processor seconds, MB after a tenth, MB at the end) of an epoch."""
    start, used, seen, first, last = time.perf_counter(), processor_seconds(), 0, 0.0, 0.0
    for x, _ in images.batches(64, seed=0, augment=True, workers=workers):
        seen += len(x)
        if seen >= len(images) / 10 and not first:
            first = held()
        if seen >= len(images) - 64 and not last:
            last = held()
    return time.perf_counter() - start, processor_seconds() - used, first, last


class Streamed:
    """Shards as the library WebDataset streams them: in their order, which a buffer of 1,000 samples mixes."""

    def __init__(self, shards: list[Path], count: int):
        self.shards, self.count = [str(path) for path in shards], count

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, seed: int, augment: bool, workers: int):
        import webdataset
        from torchvision.transforms import v2

        crop = v2.Compose([v2.RandomResizedCrop((224, 224)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        streams = webdataset.WebDataset(self.shards, shardshuffle=len(self.shards), seed=seed).shuffle(1000)
        samples = streams.decode("pil").to_tuple("jpg", "cls").map_tuple(crop, int)
        for x, y in webdataset.WebLoader(samples, batch_size=size, num_workers=workers):
            yield x.float(), y


def resumes(images) -> bool:
    """Whether an epoch that is resumed in its middle gives the images and labels of the rest of a whole one."""

    def sums(skip: int) -> list[int]:
        epoch = images.batches(64, seed=0, augment=True, skip=skip)
        return [zlib.crc32(part.contiguous().numpy()) for batch in epoch for part in batch]

    middle = len(images) // 64 // 2
    return sums(middle) == sums(0)[2 * middle :]


def decoding(paths: list[str]) -> tuple[float, float]:
    """(seconds, processor seconds) of decoding and cropping what is in memory already."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    torch.manual_seed(0)
    contents = [Path(path).read_bytes() for path in paths]
    transform = v2.Compose([v2.RandomResizedCrop((224, 224)), v2.RandomHorizontalFlip()])
    start, used = time.perf_counter(), processor_seconds()
    for content in contents:
        transform(Image.open(io.BytesIO(content)).convert("RGB"))
    return time.perf_counter() - start, processor_seconds() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/loader.csv"))
    options = parser.parse_args()
    limit_threads(1)

    from seam.data.loaders import load
    from seam.runtime.meter import processor_name

    with tempfile.TemporaryDirectory() as place:
        folders = {kind: Path(place, kind) for kind in ("folder", "tar", "shards")}
        tree(options.photos, folders["folder"], options.copies)
        pack(folders["folder"], folders["tar"])
        shard(folders["folder"], folders["shards"])
        rows = []
        sets = {kind: load("folder", place, "train", folder) for kind, folder in folders.items()}
        assert all(len(images.classes) == CLASSES == len(images.labels.unique()) for images in sets.values())
        assert all(resumes(images) for images in sets.values())
        paths = sets["folder"].paths
        sets["WebDataset"] = Streamed(sorted(folders["shards"].glob("train-*.tar")), len(paths))
        alone = decoding(paths[:: max(1, len(paths) // 2000)])
        for workers in (0, 1, 2):
            taken = {kind: [] for kind in sets}
            for kind in [*sets] * REPEATS:  # in turns
                taken[kind].append(epoch(sets[kind], workers))
            for kind, images in sets.items():
                medians = [statistics.median(values) for values in zip(*taken[kind], strict=True)]
                rows.append((kind, workers, len(images), *medians[:2], round(medians[2]), round(medians[3])))
        some = len(paths[:: max(1, len(paths) // 2000)])
        rows.append(("decoding alone", 0, some, *alone, "", ""))
    with options.csv.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for kind, workers, images, seconds, used, first, last in rows:
            values = (kind, CLASSES, workers, images, round(images / seconds, 1), round(images / used, 1), first, last)
            print(*values)
            writer.writerow((*values, processor_name()))


if __name__ == "__main__":
    main()
