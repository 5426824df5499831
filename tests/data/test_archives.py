"""Tar archives of image files are read as the folders that they were made of."""

import gzip
import io
import os
import pickle
import resource
import shutil
import subprocess
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from seam.data import archives
from seam.data.archives import Archive, Member, read_index, split_archives
from seam.data.fetch import fetch
from seam.data.loaders import load, open_folder
from seam.errors import SeamError
from seam.models.build import build
from seam.settings import Model
from seam.tool.images import held_out

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


def shards(folder, base, train="set-train", val="set-val"):
    """WebDataset's shards of a folder's splits, as its own writer makes them, of four samples in a mixed order."""
    for split, name in (("train", train), ("val", val)):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        files = [file for file in sorted((folder / split).rglob("*/*.*")) if not file.name.endswith("txt")]
        classes = ["a", "a-b", "b", "train"]
        np.random.default_rng(1).shuffle(files)
        with webdataset.ShardWriter(str(base / f"{name}-%04d.tar"), maxcount=4, verbose=0) as writer:
            for file in files:
                key = file.relative_to(folder / split).with_suffix("")
                sample = {"__key__": str(key), "cls": classes.index(key.parts[0]), "json": {"key": str(key)}}
                writer.write({**sample, file.suffix[1:].lower(): file.read_bytes()})
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
    packed, kept = pack(folder, tmp_path / "packed"), tmp_path / "index.safetensors"
    first = read_index([packed / "train.tar"], kept)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_entries", lambda _: pytest.fail("read again"))
        again = read_index([packed / "train.tar"], kept)
    assert again.members == first.members and again.classes == first.classes
    assert again.labels.tolist() == first.labels.tolist()
    assert [(m.offset, m.size) for m in again.members] == [(m.offset, m.size) for m in first.members]
    with tarfile.open(packed / "train.tar", "a") as file:
        file.add(folder / "train/a/1.jpg", "c/new.jpg")
        file.add(folder / "train/b/9.jpg", "./a/1.jpg")  # again: the last one counts, as in unpacking
    changed = read_index([packed / "train.tar"], kept)
    assert changed.classes == ["a", "a-b", "b", "c", "train"] and len(changed.members) == len(first.members) + 1
    assert changed.members[0].read() == (folder / "train/b/9.jpg").read_bytes()
    with pytest.raises(SeamError, match="train.tar: changed while it was in use"):
        Member(Archive(changed.members[0].archive.path, 1, 1), "a/1.jpg", 0, 1).read()
    kept.write_bytes(b"damaged")
    assert read_index([packed / "train.tar"], kept).members == changed.members


def test_a_member_survives_pickling(tmp_path):
    member = pickle.loads(pickle.dumps(Member(archive := Archive("x.tar", 1, 2), "a/1.jpg", 512, 7)))
    assert (member, member.archive, member.offset, member.size) == ("x.tar/a/1.jpg", archive, 512, 7)


def test_damage_is_named(folder, tmp_path):
    packed, root = pack(folder, tmp_path / "packed"), tmp_path / "data"
    archive = packed / "train.tar"
    content = archive.read_bytes()
    member = read_index([archive]).members[0]
    archive.write_bytes(content[: member.offset] + bytes(member.size) + content[member.offset + member.size :])
    with pytest.raises(SeamError, match=r"train\.tar/a/1\.jpg: corrupt, or not an image"):
        fetch("folder", root, packed)
    second = read_index([packed / "val.tar"]).members[1]
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
        assert len(read_index([packed / "train.tar"], tmp_path / "kept").members) == len(NAMES) + 1


@pytest.fixture
def visible(folder):
    """As `folder`, without hidden files: WebDataset knows none."""
    for split in ("train", "val"):
        (folder / split / "b/.hidden.jpg").unlink()
        shutil.rmtree(folder / split / ".hidden")
    return folder


@pytest.mark.parametrize("names", [("set-train", "set-val"), ("train/a", "validation/a")])
def test_shards_of_webdataset_are_read_as_the_folders_that_they_were_made_of(visible, tmp_path, names):
    packed, root = shards(visible, tmp_path / "packed", *names), tmp_path / "data"
    one, other = fetch("folder", root, visible), fetch("folder", root, packed)
    for key in ("train", "test", "mean", "std", "channels", "image_size"):
        assert one[key] == other[key]
    assert other["classes"] == ["0", "1", "2", "3"] and other["train"]["per_class"] == [2, 1, 3, 1]
    for _ in range(2):  # the second time from the kept index
        for split in ("train", "test", "all"):
            (x, labels, _), (y, others, _) = (batches(b, root, split=split) for b in (visible, packed))
            assert torch.equal(x, y) and torch.equal(labels, others)
    paths = sorted(map(str, packed.glob(f"{names[0]}-*.tar")))
    assert len(paths) == 2
    read = {sample["__key__"]: sample for sample in webdataset.WebDataset(paths, shardshuffle=False)}
    for member, label in zip(*(index := read_index([*map(Path, paths)]))[1:], strict=True):
        key = os.path.relpath(member, packed).split(".tar/")[1].partition(".")[0]
        assert member.read() in read[key].values() and int(read[key]["cls"]) == label
    assert index.classes == ["0", "1", "2", "3"]


def test_the_tool_reads_archives_and_leaves_nothing_beside_them(visible, tmp_path):
    packed = shards(visible, tmp_path / "packed")
    there = sorted(packed.iterdir())
    for split in ("train", "test"):
        one, other = (open_folder(base, split, (24, 32), 3) for base in (visible, packed))
        (x, labels), (y, others) = (next(iter(images.batches(len(one)))) for images in (one, other))
        assert torch.equal(x, y) and torch.equal(labels, others) and len(one) == len(other) == 7
    assert sorted(packed.iterdir()) == there


def test_class_folders_may_lie_in_several_archives(visible, tmp_path):
    packed, root = tmp_path / "packed", tmp_path / "data"
    packed.mkdir()
    for split in ("train", "val"):
        for i, classes in enumerate([["a", "train"], ["b", "a-b"]]):
            file = packed / f"{split}-{i}-of-2.tar"
            subprocess.run(["tar", "-cf", file, "-C", visible / split, *classes], check=True)
    (x, labels, classes), (y, others, names) = (batches(b, root) for b in (visible, packed))
    assert torch.equal(x, y) and torch.equal(labels, others) and classes == names


def test_which_archives_belong_to_a_split(tmp_path):
    others = ("train.tar.gz", "trainer-0.tar", "ILSVRC2012_img_train.tar", "mytrain-0.tar", "val-0.tar", "train-x.tar")
    others += ("._set-train-0.tar", ".train-0.tar")
    found = ("set-train-00.tar", "set-train-1.tar", "set-train_00003-of-00004.tar", "set-train5.tar")
    for name in (*others, *found):
        (tmp_path / name).touch()
    (tmp_path / "set-train-9.tar").mkdir()
    assert split_archives(tmp_path, "train") == tuple(tmp_path / name for name in sorted(found))
    (tmp_path / "other-train-0.tar").touch()
    with pytest.raises(SeamError, match="other-train-0.tar and set-train.*tar are of different sets; keep one set"):
        split_archives(tmp_path, "train")
    (tmp_path / "train.tar").touch()
    assert split_archives(tmp_path, "train") == (tmp_path / "train.tar",)
    assert split_archives(tmp_path / "none", "train") == ()


def test_of_many_shards_few_are_open(visible, tmp_path, monkeypatch):
    assert archives._opened.cache_parameters()["maxsize"] <= max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] / 2)
    paths = [*shards(visible, tmp_path / "packed").glob("*-train-*.tar")]
    monkeypatch.setattr(archives, "_opened", few := lru_cache(1)(archives._opened.__wrapped__))
    opened = len(os.listdir("/proc/self/fd"))
    members = read_index(paths).members
    assert [len(member.read()) for member in members] == [member.size for member in members]
    assert len(os.listdir("/proc/self/fd")) == opened + 1 and few.cache_info().misses > 1


def tar(path, names, content=None):
    """An archive with files of these names, each of one random image, or of the given bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i, name in enumerate(names):
            data = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(data, "png")
            data = data.getvalue() if content is None or content[name] is None else content[name]
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_an_archive_a_class_keeps_its_class_and_the_split_s_own_folder_is_none(tmp_path):
    for split in ("train", "val"):
        tar(tmp_path / f"a/{split}/cat.tar", ["cat/indoor/1.png", "cat/outdoor/2.png"])
        tar(tmp_path / f"a/{split}/dog.tar", ["dog/indoor/3.png"])
        tar(tmp_path / f"b/{split}/0.tar", [f"{split}/cat/1.png", f"{split}/cat/2.png"])
        tar(tmp_path / f"b/{split}/1.tar", [f"{split}/dog/3.png"])
        tar(tmp_path / f"c/{split}.tar", ["cat/indoor/1.png", "cat/outdoor/2.png"])
    for name, classes, counts in (("a", ["cat", "dog"], [2, 1]), ("b", ["cat", "dog"], [2, 1]), ("c", ["cat"], [2])):
        manifest = fetch("folder", tmp_path / "data", tmp_path / name)
        assert (manifest["classes"], manifest["train"]["per_class"]) == (classes, counts)


def test_hidden_files_and_others_of_a_sample_are_not_looked_at(tmp_path):
    names = ["x.PNG", "x.CLS", "x.seg.png", "._x.png", "._x.cls", "x.json"]
    content = {name: b"0" if name.lower().endswith("cls") else None for name in names}
    for split in ("train", "val"):
        tar(tmp_path / f"{split}-0.tar", names, content)
    (tmp_path / "._train-0.tar").write_bytes(b"of another system")
    assert fetch("folder", tmp_path / "data", tmp_path)["train"]["count"] == 1


def test_one_split_alone_is_enough_for_the_tool_and_both_hold_images_out(visible, tmp_path):
    packed = shards(visible, tmp_path / "packed")
    model = build(Model(name="test_resnet"), 4, 3)
    assert len(held_out(packed, model)) == 7
    for file in packed.glob("*-train-*"):
        file.unlink()
    assert held_out(packed, model) is None
    assert len(open_folder(packed, "train", (24, 32), 3)) == 7
    (packed / "train/a").mkdir(parents=True)
    shutil.copy(next(packed.glob("*.tar")), packed / "train/0.tar")
    with pytest.raises(SeamError, match=r"train: holds archives \(0.tar\) and class folders; keep one form"):
        fetch("folder", tmp_path / "data", packed)


WRONG = {
    "x.jpg has no x.cls beside it, the number of its class": {"x.jpg": b"", "y.cls": b"1"},
    "y.cls has no image of its name; remove it": {"x.jpg": b"", "x.cls": b"1", "y.cls": b"1", "y.txt": b""},
    "x.jpg and x.png are of one sample; keep one of them": {"x.jpg": b"", "x.png": b"", "x.cls": b"1"},
    r"x.cls must hold the number of a class, from 0 on \(found b'tench'\)": {"x.jpg": b"", "x.cls": b"tench\n"},
    r"x.cls must hold the number of a class, from 0 on \(found b'20000000'\)": {"x.jpg": b"", "x.cls": b"20000000"},
    "some archives hold class folders, others WebDataset's samples": {"a/x.jpg": b""},
    r"no images in class folders \(CLASS/NAME\), and none with a KEY.cls beside it": {"x.jpg": b""},
    "no images of class 1 of 0 to 2; classes count from 0, and all shards must be there": {"x.jpg": b"", "x.cls": b"2"},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_a_shard_lacks_is_named(tmp_path, message):
    good = {"0.jpg": b"", "0.cls": b"0"}
    for name, files in (("train-0", good), ("train-1", WRONG[message]), ("val-0", good)):
        tar(tmp_path / f"{name}.tar", files, files)
    if "KEY" in message:
        (tmp_path / "train-0.tar").unlink()
    with pytest.raises(SeamError, match=rf"(train-[01]\.tar|{tmp_path}): .*{message}"):
        fetch("folder", tmp_path / "data", tmp_path)
