"""Tar archives of image files are read as the folders that they were made of."""

import gzip
import pickle
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from seam.data import archives
from seam.data.archives import Member, read_index
from seam.data.fetch import fetch
from seam.data.loaders import load
from seam.errors import SeamError

NAMES = ("a/1.jpg", "a/sub/0.png", "a-b/1.JPG", "b/" + "long" * 40 + ".jpg", "b/10.jpg", "b/9.jpg")


@pytest.fixture
def folder(tmp_path):
    """Photographs of several sizes in train/ and val/, with files that are none."""
    base, draw = tmp_path / "folder", np.random.default_rng(0)
    for split in ("train", "val"):
        for i, name in enumerate(NAMES):
            path = base / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((90 + i, 80)).save(path)
        for name in ("a/notes.txt", "README.jpg", "b/.hidden.jpg"):
            (base / split / name).write_bytes((base / split / "a/1.jpg").read_bytes())
    return base


def pack(folder, base, way="plain"):
    """Archives of a folder's splits, as `tar` makes them in several ways."""
    base.mkdir()
    for split in ("train", "val"):
        source = {"plain": ["-C", folder / split, "."], "named": ["-C", folder, split]}[way.split()[0]]
        kind = ["--format=posix"] if "posix" in way else []
        subprocess.run(["tar", *kind, "-cf", base / f"{split}.tar", *source], check=True)
    return base


def batches(base, root, **more):
    images = load("folder", root, more.pop("split", "train"), base, image_size=(24, 32), **more)
    pixels = [x for x, _ in images.batches(4, workers=more.get("workers", 0))]
    return torch.cat(pixels), images.labels, list(images.classes)


@pytest.mark.parametrize("way", ["plain", "named", "plain posix"])
def test_archives_are_read_as_their_folders(folder, tmp_path, way):
    (folder / "train/b/.hidden.jpg").unlink()  # torchvision's lister takes it; archives leave hidden files out
    (folder / "val/b/.hidden.jpg").unlink()
    packed = pack(folder, tmp_path / "packed", way)
    one, other = fetch("folder", tmp_path / "data", folder), fetch("folder", tmp_path / "data", packed)
    for key in ("classes", "train", "test", "mean", "std", "channels", "image_size"):
        assert one[key] == other[key]
    for split in ("train", "test", "all"):
        (x, labels, classes), (y, others, names) = (
            batches(b, tmp_path / "data", split=split) for b in (folder, packed)
        )
        assert torch.equal(x, y) and torch.equal(labels, others) and classes == names == ["a", "a-b", "b"]
    assert one["train"]["per_class"] == [2, 1, 3]


def test_parts_are_read_alone_and_by_workers(folder, tmp_path):
    packed, root = pack(folder, tmp_path / "packed"), tmp_path / "data"
    whole = batches(packed, root)[0]
    images = load("folder", root, "train", packed, indices=[4, 1], image_size=(24, 32))
    found = torch.cat([x for x, _ in images.batches(1, workers=2)])
    assert torch.equal(found, whole[[4, 1]])


def test_the_index_is_kept_until_the_archive_changes(folder, tmp_path, monkeypatch):
    packed, cache = pack(folder, tmp_path / "packed"), tmp_path / "cache"
    cache.mkdir()
    first = read_index(packed / "train.tar", cache)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_entries", lambda _: pytest.fail("read again"))
        again = read_index(packed / "train.tar", cache)
    assert again.members == first.members and again.classes == first.classes
    assert [(m.offset, m.size) for m in again.members] == [(m.offset, m.size) for m in first.members]
    with tarfile.open(packed / "train.tar", "a") as file:
        file.add(folder / "train/a/1.jpg", "c/new.jpg")
    assert read_index(packed / "train.tar", cache).classes == ["a", "a-b", "b", "c"]
    (cache / "train.tar.index.safetensors").write_bytes(b"damaged")
    assert len(read_index(packed / "train.tar", cache).members) == len(first.members) + 1


def test_a_member_survives_pickling(tmp_path):
    member = pickle.loads(pickle.dumps(Member("x.tar", "a/1.jpg", 512, 7)))
    assert (member, member.archive, member.offset, member.size) == ("x.tar/a/1.jpg", "x.tar", 512, 7)


def test_damage_is_named(folder, tmp_path):
    packed, root = pack(folder, tmp_path / "packed"), tmp_path / "data"
    archive = packed / "train.tar"
    content = archive.read_bytes()
    member = read_index(archive, tmp_path).members[0]
    archive.write_bytes(content[: member.offset] + bytes(member.size) + content[member.offset + member.size :])
    with pytest.raises(SeamError, match=r"train\.tar/a/1\.jpg: corrupt, or not an image"):
        fetch("folder", root, packed)
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(SeamError, match=r"train\.tar: .*cut off"):
        fetch("folder", root, packed)
    archive.write_bytes(gzip.compress(content))
    with pytest.raises(SeamError, match=r"train\.tar: not an uncompressed tar archive"):
        fetch("folder", root, packed)
    archive.write_bytes(content)
    (packed / "val.tar").unlink()
    with pytest.raises(SeamError, match="must have the folders train/ and val/"):
        fetch("folder", root, packed)
