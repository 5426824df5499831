"""torchvision's layouts, written in miniature from digits, and read the whole way: fetch, then load."""

import dataclasses
import hashlib
import json
import pickle
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from digit_images import save
from PIL import Image

from seam.data.datasets import DATASETS
from seam.data.fetch import described, fetch
from seam.data.files import read_image
from seam.data.loaders import FileSet, TensorSet, load
from seam.data.manifest import load_manifest
from seam.data.readers import DigitsReader
from seam.errors import SeamError
from seam.io import save_tensors, write_json

TRAIN, TEST = 40, 20
COUNT = TRAIN + TEST
LABELS = DigitsReader().arrays("all").labels[:COUNT]


def write_images(name_of):
    """Write 60 digits as JPEG files, 90x80 pixels, where `name_of(i, label)` says."""
    for i, pixels in enumerate(DigitsReader().arrays("all").pixels[:COUNT]):
        save(pixels, name_of(i, LABELS[i]), (90, 80), "RGB")


def write_food101(root, monkeypatch):
    base = root / "food-101"
    write_images(lambda i, label: base / f"images/dish{label}/{i}.jpg")
    (base / "meta").mkdir()
    for split, part in (("train", range(TRAIN)), ("test", range(TRAIN, COUNT))):
        listed = {f"dish{c}": [f"dish{c}/{i}" for i in part if LABELS[i] == c] for c in range(10)}
        (base / f"meta/{split}.json").write_text(json.dumps(listed))


def write_oxford_iiit_pet(root, monkeypatch):
    base = root / "oxford-iiit-pet"
    write_images(lambda i, label: base / f"images/Pet_{'abcdefghij'[label]}_{i}.jpg")
    (base / "annotations").mkdir()
    for split, part in (("trainval", range(TRAIN)), ("test", range(TRAIN, COUNT))):
        lines = [f"Pet_{'abcdefghij'[LABELS[i]]}_{i} {LABELS[i] + 1} 1 1\n" for i in part]
        (base / f"annotations/{split}.txt").write_text("".join(lines))


def write_stanford_cars(root, monkeypatch):
    base = root / "stanford_cars"
    write_images(lambda i, label: base / f"cars_{'train' if i < TRAIN else 'test'}/{i:05d}.jpg")
    (base / "devkit").mkdir()
    names = np.array([f"Car {c}" for c in range(10)], dtype=object)
    scipy.io.savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    for path, part in (
        (base / "devkit/cars_train_annos.mat", range(TRAIN)),
        (base / "cars_test_annos_withlabels.mat", range(TRAIN, COUNT)),
    ):
        rows = [(f"{i:05d}.jpg", int(LABELS[i]) + 1) for i in part]
        annotations = np.array(rows, dtype=[("fname", object), ("class", object)])
        scipy.io.savemat(path, {"annotations": annotations})


def write_fgvc_aircraft(root, monkeypatch):
    base = root / "fgvc-aircraft-2013b/data"
    write_images(lambda i, label: base / f"images/{i:07d}.jpg")
    (base / "variants.txt").write_text("".join(f"Plane {c}\n" for c in range(10)))
    for split, part in (("trainval", range(TRAIN)), ("test", range(TRAIN, COUNT))):
        lines = [f"{i:07d} Plane {LABELS[i]}\n" for i in part]
        (base / f"images_variant_{split}.txt").write_text("".join(lines))


def write_flowers102(root, monkeypatch):
    base = root / "flowers-102"
    write_images(lambda i, label: base / f"jpg/image_{i + 1:05d}.jpg")
    ids = np.arange(1, COUNT + 1)
    halves = {"trnid": ids[: TRAIN // 2], "valid": ids[TRAIN // 2 : TRAIN], "tstid": ids[TRAIN:]}
    scipy.io.savemat(base / "setid.mat", halves)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": LABELS + 1})
    digests = {
        key: (name, hashlib.md5((base / name).read_bytes()).hexdigest())
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", digests)


def write_imagenet(root, monkeypatch):
    write_images(lambda i, label: root / f"{'train' if i < TRAIN else 'val'}/n0144{label:04d}/{i}.JPEG")


def write_cifar10(root, monkeypatch):
    write_images(lambda i, label: root / f"{'train' if i < TRAIN else 'test'}/class{label}/{i:03d}.jpg")


def miniature(name, base, monkeypatch):
    """Write a dataset's layout, and let its entry describe the miniature."""
    info = DATASETS[name]
    classes = info.classes if name == "flowers102" else 10  # torchvision knows the flowers' names
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(info, classes=classes, counts=(TRAIN, TEST)))
    globals()[f"write_{name}"](base, monkeypatch)


NAMES = ["food101", "oxford_iiit_pet", "stanford_cars", "fgvc_aircraft", "flowers102", "imagenet", "cifar10"]


@pytest.mark.parametrize("name", NAMES)
def test_a_torchvision_layout_is_read(name, tmp_path, monkeypatch):
    miniature(name, tmp_path / name, monkeypatch)
    manifest = fetch(name, tmp_path)
    assert manifest["source"] == "found on disk" and manifest["channels"] == 3
    for split, part in (("train", slice(TRAIN)), ("test", slice(TRAIN, COUNT))):
        expected = np.bincount(LABELS[part], minlength=len(manifest["classes"]))
        assert manifest[split] == {"count": len(LABELS[part]), "per_class": expected.tolist()}
        images = load(name, tmp_path, split, image_size=(80, 90))
        assert isinstance(images, FileSet) and len(images) == len(LABELS[part])
        # Each label belongs to its image: the number in the file's name is the digit's place in the file of digits.
        places = [int("".join(filter(str.isdigit, path.rsplit("/", 1)[1]))) for path in images.paths]
        places = [p - 1 for p in places] if name == "flowers102" else places
        assert images.labels.tolist() == [LABELS[p] for p in places]
        (x, _), *_ = images.batches(8)
        assert x.shape == (8, 3, 80, 90)


@pytest.mark.parametrize("name", ["food101", "fgvc_aircraft"])
def test_torchvisions_own_place_under_the_root_is_found(name, tmp_path, monkeypatch):
    miniature(name, tmp_path, monkeypatch)
    assert fetch(name, tmp_path)["train"]["count"] == TRAIN


def test_a_dataset_elsewhere_is_read_by_its_path(tmp_path, monkeypatch):
    miniature("imagenet", tmp_path / "disk/ilsvrc", monkeypatch)
    manifest = fetch("imagenet", tmp_path / "root", tmp_path / "disk/ilsvrc")
    assert manifest["path"] == str(tmp_path / "disk/ilsvrc")
    assert manifest["classes"][3] == "n01440003"
    assert len(load("imagenet", tmp_path / "root", "test", tmp_path / "disk/ilsvrc")) == TEST


def test_a_listed_file_that_is_missing_is_named(tmp_path, monkeypatch):
    miniature("fgvc_aircraft", tmp_path / "fgvc_aircraft", monkeypatch)
    missing = tmp_path / "fgvc_aircraft/fgvc-aircraft-2013b/data/images/0000055.jpg"
    missing.unlink()
    with pytest.raises(SeamError, match=f"{missing}: listed by the dataset, but No such file"):
        fetch("fgvc_aircraft", tmp_path)


@pytest.fixture
def cifar_batches(tmp_path, monkeypatch):
    """Five batches and a test batch of digits in cifar10/cifar-10-batches-py, which torchvision takes for whole."""
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = cifar_pixels()
    parts = np.split(np.arange(TRAIN), 5) + [np.arange(TRAIN, COUNT)]
    for name, part in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], parts, strict=True):
        content = {"data": pixels[part].transpose(0, 3, 1, 2).reshape(len(part), -1), "labels": LABELS[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{c}" for c in range(10)]}))
    digests = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    cls = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cls, "train_list", [[f"data_batch_{i}", digests[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(cls, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": digests["batches.meta"]})
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], counts=(TRAIN, TEST)))
    return folder


def cifar_pixels():
    small = DigitsReader().arrays("all").pixels[:COUNT, :, :, 0]
    return np.stack([np.asarray(Image.fromarray(p).resize((32, 32)).convert("RGB")) for p in small])


def test_cifar10_in_torchvisions_batches(tmp_path, cifar_batches):
    manifest = fetch("cifar10", tmp_path)
    assert manifest["source"] == "found on disk"
    assert manifest["classes"] == [f"class{c}" for c in range(10)]
    assert set(manifest["sha256"]) == {*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"}
    images = load("cifar10", tmp_path, "all")
    assert isinstance(images, TensorSet) and np.array_equal(images.pixels.numpy(), cifar_pixels())
    assert images.labels.tolist() == LABELS.tolist()


def test_cifar10s_archive_is_unpacked_without_a_network(tmp_path, cifar_batches, monkeypatch):
    """And a damaged folder that was there is kept aside."""
    archive = tmp_path / "cifar10/cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar_batches, cifar_batches.name)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    (cifar_batches / "data_batch_2").write_bytes(b"damaged")
    (cifar_batches / "notes").write_text("of the user")
    assert fetch("cifar10", tmp_path)["source"] == "torchvision.datasets.CIFAR10"
    assert np.array_equal(load("cifar10", tmp_path, "all").pixels.numpy(), cifar_pixels())
    assert (tmp_path / "cifar10/cifar-10-batches-py.damaged/notes").read_text() == "of the user"
    assert {p.name for p in (tmp_path / "cifar10").iterdir()} == {
        "cifar-10-batches-py",
        "cifar-10-batches-py.damaged",
        "cifar-10-python.tar.gz",
        "manifest.json",
    }


def test_small_images_are_decoded_once_and_cached(write_folder, tmp_path):
    folder = write_folder(side=32, mode="RGB")
    first = load("folder", tmp_path / "root", "train", folder)
    assert isinstance(first, TensorSet) and first.pixels.shape == (60, 32, 32, 3)
    files = sorted((folder / "train").rglob("*.png"))
    assert np.array_equal(first.pixels.numpy(), np.stack([np.asarray(Image.open(f)) for f in files]))

    (cached,) = (tmp_path / "root").rglob("train-*.safetensors")
    written = cached.stat().st_mtime_ns
    again = load("folder", tmp_path / "root", "train", folder)
    assert cached.stat().st_mtime_ns == written
    assert again.pixels.equal(first.pixels)

    cached.write_bytes(cached.read_bytes()[:1000])  # a damaged cache is made again
    assert load("folder", tmp_path / "root", "train", folder).pixels.equal(first.pixels)

    Image.open(files[1]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(files[0])  # another image, another size
    changed = load("folder", tmp_path / "root", "train", folder)
    assert np.array_equal(changed.pixels[0].numpy(), np.asarray(Image.open(files[0])))
    assert changed.mean == pytest.approx((changed.pixels / 255).mean(dim=(0, 1, 2)).tolist(), abs=1e-6)
    assert len(list((tmp_path / "root").rglob("train-*.safetensors"))) == 1


def test_one_image_of_another_size_among_small_ones_is_named(write_folder, tmp_path):
    folder = write_folder(per_class=30)
    odd = sorted((folder / "train/digit5").iterdir())[1]  # not among the images that are looked at first
    save(DigitsReader().arrays("all").pixels[0], odd, (9, 8))
    with pytest.raises(SeamError, match=f"{odd}: 9x8 pixels among images of 8x8"):
        fetch("folder", tmp_path / "root", folder)


def test_gray_and_coloured_decoding(write_folder):
    folder = write_folder(mode="RGB", per_class=1)
    path = str(next((folder / "train/digit0").iterdir()))
    assert read_image(path, 1).mode == "L" and read_image(path, 3).mode == "RGB"


@pytest.mark.parametrize("tensors", [{"x": (12, 8, 8, 1)}, {"pixels": (12, 8, 8, 3)}, {"pixels": (11, 8, 8, 1)}])
def test_a_cache_of_the_wrong_shape_is_made_again(write_folder, tmp_path, tensors):
    folder = write_folder(per_class=6, classes=2)
    whole = load("folder", tmp_path / "data", "train", folder).pixels
    cache = next((tmp_path / "data").rglob("train-*.safetensors"))
    save_tensors(cache, {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in tensors.items()})
    assert torch.equal(load("folder", tmp_path / "data", "train", folder).pixels, whole)


@pytest.mark.parametrize("key", ["classes", "mean", "train", "image_size", "sha256", "channels"])
@pytest.mark.parametrize("value", [None, [], {}, -1])
def test_a_manifest_of_the_wrong_shape_is_made_again(write_folder, tmp_path, key, value):
    folder = write_folder(per_class=2, classes=2)
    manifest = fetch("folder", tmp_path / "data", folder)
    path = next((tmp_path / "data").rglob("manifest.json"))
    write_json(path, {**manifest, key: value})
    with pytest.raises(SeamError, match=f"manifest.json: .*{key}.*run `seam fetch` again"):
        load_manifest(path)
    assert described("folder", tmp_path / "data", folder) == manifest
