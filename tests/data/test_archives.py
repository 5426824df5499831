"""Tar archives of image files are read as the folders that they were made of."""

import gzip
import os
import pickle
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from seam.data import archives
from seam.data.archives import Archive, Member, read_index
from seam.data.fetch import fetch
from seam.data.loaders import load
from seam.errors import SeamError

LONG = "b/" + "long" * 40 + ".jpg"
NAMES = ("a/1.jpg", "a/sub/0.png", "a-b/1.JPG", LONG, "b/10.jpg", "b/9.jpg", "b/.hidden.jpg", "train/1.jpg")


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
        for name in ("a/notes.txt", "README.jpg", ".hidden/1.jpg"):
            (base / split / name).parent.mkdir(exist_ok=True)
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
    packed = pack(folder, tmp_path / "packed", way)
    one, other = fetch("folder", tmp_path / "data", folder), fetch("folder", tmp_path / "data", packed)
    for key in ("classes", "train", "test", "mean", "std", "channels", "image_size"):
        assert one[key] == other[key]
    for split in ("train", "test", "all"):
        (x, labels, classes), (y, others, names) = (
            batches(b, tmp_path / "data", split=split) for b in (folder, packed)
        )
        assert torch.equal(x, y) and torch.equal(labels, others) and classes == names == ["a", "a-b", "b", "train"]
    assert one["train"]["per_class"] == [2, 1, 4, 1]


def test_parts_are_read_alone_and_by_workers(folder, tmp_path):
    packed, root = pack(folder, tmp_path / "packed"), tmp_path / "data"
    whole = batches(packed, root)[0]
    images = load("folder", root, "train", packed, indices=[4, 1], image_size=(24, 32))
    found = torch.cat([x for x, _ in images.batches(1, workers=2)])
    assert torch.equal(found, whole[[4, 1]])


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_an_epoch_goes_on_in_its_middle_with_the_same_crops(folder, tmp_path, skip):
    wholes = []
    for base in (folder, pack(folder, tmp_path / "packed")):
        images = load("folder", tmp_path / "data", "train", base, image_size=(24, 32))
        whole = [*images.batches(2, seed=3, augment=True)]
        rest = [*images.batches(2, seed=3, augment=True, skip=skip)]
        assert len(rest) == 4 - skip
        for (x, y), (other, label) in zip(whole[skip:], rest, strict=True):
            assert torch.equal(x, other) and torch.equal(y, label)
        wholes.append(torch.cat([x for x, _ in whole]))
    assert torch.equal(*wholes)
    assert not torch.equal(wholes[0], torch.cat([x for x, _ in images.batches(2, seed=3)]))  # the crops are drawn


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
        file.add(folder / "train/b/9.jpg", "./a/1.jpg")  # again: the last one counts, as in unpacking
    changed = read_index(packed / "train.tar", cache)
    assert changed.classes == ["a", "a-b", "b", "c", "train"] and len(changed.members) == len(first.members) + 1
    assert changed.members[0].read() == (folder / "train/b/9.jpg").read_bytes()
    with pytest.raises(SeamError, match="train.tar: changed while it was in use"):
        Member(Archive(changed.members[0].archive.path, 1, 1), "a/1.jpg", 0, 1).read()
    (cache / "train.tar.index.safetensors").write_bytes(b"damaged")
    assert read_index(packed / "train.tar", cache).members == changed.members


def test_a_member_survives_pickling(tmp_path):
    member = pickle.loads(pickle.dumps(Member(archive := Archive("x.tar", 1, 2), "a/1.jpg", 512, 7)))
    assert (member, member.archive, member.offset, member.size) == ("x.tar/a/1.jpg", archive, 512, 7)


def test_damage_is_named(folder, tmp_path):
    packed, root = pack(folder, tmp_path / "packed"), tmp_path / "data"
    archive = packed / "train.tar"
    content = archive.read_bytes()
    member = read_index(archive, tmp_path).members[0]
    archive.write_bytes(content[: member.offset] + bytes(member.size) + content[member.offset + member.size :])
    with pytest.raises(SeamError, match=r"train\.tar/a/1\.jpg: corrupt, or not an image"):
        fetch("folder", root, packed)
    second = read_index(packed / "val.tar", tmp_path).members[1]
    cuts = {
        len(content) // 2,
        second.offset - 512,
        second.offset - 100,
        second.offset + 1,
    }  # before, in, after a header
    for cut in cuts:
        archive.write_bytes(content[:cut])
        with pytest.raises(SeamError, match=r"train\.tar: .*cut off"):
            fetch("folder", root, packed)
    overwritten = bytearray(content)
    overwritten[second.offset - 512 : second.offset - 400] = b"x" * 112
    archive.write_bytes(overwritten)
    with pytest.raises(SeamError, match=r"train\.tar: damaged or cut off at byte"):
        fetch("folder", root, packed)
    archive.write_bytes(gzip.compress(content))
    with pytest.raises(SeamError, match=r"train\.tar: not an uncompressed tar archive"):
        fetch("folder", root, packed)
    archive.write_bytes(content)
    (packed / "val.tar").unlink()
    with pytest.raises(SeamError, match="must have the folders train/ and val/"):
        fetch("folder", root, packed)


def test_what_folders_would_show_otherwise_is_refused(folder, tmp_path):
    (folder / "train/empty").mkdir()
    packed, root = pack(folder, tmp_path / "packed"), tmp_path / "data"
    with pytest.raises(SeamError, match=r"train\.tar: no images in empty/; add some"):
        fetch("folder", root, packed)
    (folder / "train/empty").rmdir()
    (folder / "train/a/link.jpg").symlink_to("1.jpg")
    packed = pack(folder, tmp_path / "links")
    with pytest.raises(SeamError, match=r"train\.tar: \./a/link\.jpg is a link; pack with tar --dereference"):
        fetch("folder", root, packed)


def test_folders_come_before_archives_and_names_may_be_of_any_bytes(folder, tmp_path):
    (folder / "test.tar").write_bytes(b"something else")
    assert fetch("folder", tmp_path / "data", folder)["test"]["count"] == len(NAMES)
    odd = os.fsencode(folder / "train/a") + b"/\xff.jpg"
    shutil.copy(folder / "train/a/1.jpg", odd)
    packed = pack(folder, tmp_path / "packed")
    for _ in range(2):
        assert len(read_index(packed / "train.tar", tmp_path).members) == len(NAMES) + 1
