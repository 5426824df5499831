import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from sklearn.datasets import load_digits

from seam.data import sources
from seam.data.datasets import DATASETS
from seam.data.fetch import fetch
from seam.data.sources import from_debian, from_torchvision
from seam.errors import SeamError

FASHION = DATASETS["fashion_mnist"]
FETCH = """
import sys
from seam.data.fetch import fetch
from seam.errors import SeamError
root, *names = sys.argv[1:]
failed = False
for name in names:
    try:
        print(fetch(name, root)["source"])
    except SeamError as error:
        print(error)
        failed = True
sys.exit(2 if failed else 0)
"""
AS_NOBODY = """
import os, sys
from pathlib import Path
from seam.data.datasets import DATASETS
from seam.data.sources import from_debian
base = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(base, 65534, 65534)
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
print(from_debian(DATASETS["fashion_mnist"], base), os.geteuid())
"""


def shrunk(monkeypatch, name, classes, counts):
    """Let a dataset's entry describe a miniature of it."""
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], classes=classes, counts=counts))


def test_digits_manifest_says_what_the_data_says(tmp_path):
    manifest = fetch("digits", tmp_path)
    labels = load_digits().target
    both = np.add(manifest["train"]["per_class"], manifest["test"]["per_class"])
    assert both.tolist() == np.bincount(labels).tolist()
    assert (manifest["train"]["count"], manifest["test"]["count"]) == (1438, 359)
    assert np.allclose(manifest["test"]["per_class"], 0.2 * np.bincount(labels), atol=0.5)
    assert (manifest["channels"], manifest["image_size"]) == (1, [8, 8])
    assert manifest["mean"] == pytest.approx([load_digits().data.mean() / 16], abs=0.01)
    assert manifest["path"] is None and "luma" not in manifest
    assert json.loads((tmp_path / "digits/manifest.json").read_text()) == manifest


def test_fashion_mnist_comes_from_its_debian_package(fashion_root):
    manifest = json.loads((fashion_root / "fashion_mnist/manifest.json").read_text())
    assert manifest["train"] == {"count": 60_000, "per_class": [6000] * 10}
    assert manifest["test"] == {"count": 10_000, "per_class": [1000] * 10}
    assert (manifest["channels"], manifest["image_size"]) == (1, [28, 28])
    # The values in every tutorial.
    assert manifest["mean"] == pytest.approx([0.2860], abs=5e-5)
    assert manifest["std"] == pytest.approx([0.3530], abs=5e-5)
    assert manifest["classes"][0] == "T-shirt/top" and manifest["classes"][9] == "Ankle boot"
    assert manifest["sha256"] == dict(FASHION.files)
    names = {entry.name for entry in (fashion_root / "fashion_mnist").iterdir()}
    assert names == {f"{name}.gz" for name in FASHION.files} | {"manifest.json"}


def test_a_second_fetch_needs_no_network_and_no_write(copied_root, python):
    before = {p: p.stat().st_mtime_ns for p in copied_root.rglob("*")}
    done = python(FETCH, copied_root, "fashion_mnist", offline=True)
    assert done.returncode == 0, done.stdout
    assert {p: p.stat().st_mtime_ns for p in copied_root.rglob("*")} == before


def test_files_without_a_manifest_are_taken_where_torchvision_puts_them(copied_root, python):
    """Uncompressed, and in a data root that torchvision's own examples would share."""
    base, raw = copied_root / "fashion_mnist", copied_root / "FashionMNIST/raw"
    manifest = json.loads((base / "manifest.json").read_text())
    raw.mkdir(parents=True)
    for name in FASHION.files:
        (raw / name).write_bytes(gzip.decompress((base / f"{name}.gz").read_bytes()))
        (base / f"{name}.gz").unlink()
    (base / "manifest.json").unlink()
    done = python(FETCH, copied_root, "fashion_mnist", offline=True)
    assert (done.returncode, done.stdout.strip()) == (0, "found on disk")
    assert json.loads((base / "manifest.json").read_text()) == {**manifest, "source": "found on disk"}


def test_an_installed_debian_package_is_used(fashion_root, tmp_path):
    installed = tmp_path / "system" / FASHION.debian[1]
    installed.mkdir(parents=True)
    for name in FASHION.files:
        os.link(fashion_root / "fashion_mnist" / f"{name}.gz", installed / f"{name}.gz")
    (tmp_path / "base").mkdir()
    source = from_debian(FASHION, tmp_path / "base", system=tmp_path / "system")
    assert source == "Debian package dataset-fashion-mnist, installed"
    assert len(list((tmp_path / "base").iterdir())) == 4

    damaged = installed / "train-images-idx3-ubyte.gz"
    damaged.unlink()
    damaged.write_bytes(b"damaged")
    (tmp_path / "other").mkdir()
    with pytest.raises(SeamError, match=f"{damaged}: corrupt or truncated"):
        from_debian(FASHION, tmp_path / "other", system=tmp_path / "system")
    assert list((tmp_path / "other").iterdir()) == []


def test_the_debian_package_needs_no_root(python):
    # Not under tmp_path: pytest shuts others out of its folders.
    with tempfile.TemporaryDirectory() as base:
        done = python(AS_NOBODY, base)
        assert done.returncode == 0, done.stderr
        source, user = done.stdout.rsplit(maxsplit=1)
        assert source == "Debian package dataset-fashion-mnist" and user != "0"
        assert set(os.listdir(base)) == {f"{name}.gz" for name in FASHION.files}


def test_without_network_and_data_it_fails_fast_and_says_what_it_tried(tmp_path, python):
    names = ["fashion_mnist", "cifar10", "flowers102", "stanford_cars", "imagenet"]
    start = time.monotonic()
    done = python(FETCH, tmp_path, *names, offline=True)
    assert time.monotonic() - start < 30  # the start of Python and of torchvision included
    assert done.returncode == 2, done.stderr
    messages = re.split("^could not get ", done.stdout, flags=re.M)[1:]
    for name, message in zip(names, messages, strict=True):
        assert f"what is in {tmp_path / name}: " in message
        assert "torchvision's download: " in message
        assert ("Debian package" in message) == (name == "fashion_mnist")
        assert f"Way out: put under {tmp_path / name}/: {DATASETS[name].hint}" in message
        assert list((tmp_path / name).iterdir()) == []  # nothing that a later fetch could take for data


@pytest.fixture
def serve(monkeypatch):
    """Let torchvision download Fashion-MNIST from a server on this machine, which answers with `handler`."""
    servers = []

    def start(handler, digests=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        cls = torchvision.datasets.FashionMNIST
        monkeypatch.setattr(cls, "mirrors", [url])
        if digests:
            monkeypatch.setattr(cls, "resources", digests)
        return dataclasses.replace(FASHION, url=url)

    yield start
    for server in servers:
        server.shutdown()


def test_torchvisions_download(fashion_root, tmp_path, serve):
    """From a server that has the Debian package's files (compressed anew, so that torchvision's md5 do not fit)."""
    source = fashion_root / "fashion_mnist"
    files = [f"{name}.gz" for name in FASHION.files]
    digests = [(name, hashlib.md5((source / name).read_bytes()).hexdigest()) for name in files]
    info = serve(functools.partial(QuietHandler, directory=source), digests)
    assert from_torchvision(info, tmp_path) == "torchvision.datasets.FashionMNIST"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {n: (source / n).read_bytes() for n in files}


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class SilentHandler(QuietHandler):
    def do_GET(self):
        time.sleep(20)


class HalfHandler(QuietHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"half a file")


@pytest.mark.parametrize(("handler", "message"), [(SilentHandler, "timed out"), (HalfHandler, "corrupted")])
def test_a_download_that_stalls_or_ends_early_leaves_nothing(handler, message, tmp_path, serve, monkeypatch):
    monkeypatch.setattr(sources, "STALL_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(SeamError, match=message):
        from_torchvision(serve(handler), tmp_path)
    assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


def test_a_silent_network_counts_as_none_within_seconds(monkeypatch):
    """A server that accepts no connection: its queue is full, so that connecting hangs."""
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 1.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        start = time.monotonic()
        with pytest.raises(SeamError, match="127.0.0.1 cannot be reached"):
            sources._check_reachable(f"http://127.0.0.1:{port}/")
        assert time.monotonic() - start < 5
        for client in waiting:
            client.close()


def apt_state():
    """What apt keeps for the whole machine: its package lists and its cache."""
    paths = (p for place in ("/var/lib/apt/lists", "/var/cache/apt") for p in Path(place).rglob("*"))
    return {p: p.stat().st_mtime_ns for p in paths}


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_named_and_replaced_when_it_can_be(copied_root, damage, python):
    base = copied_root / "fashion_mnist"
    path = base / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    labels = bytearray(gzip.decompress(whole))
    labels[100] ^= 1
    path.write_bytes({"truncated": whole[:-100], "altered": gzip.compress(labels), "empty": b""}[damage])
    others = {p: p.read_bytes() for p in base.iterdir() if p != path}
    done = python(FETCH, copied_root, "fashion_mnist", offline=True)
    assert done.returncode == 2
    assert f"{path}: corrupt or truncated" in done.stdout and "delete it" in done.stdout
    assert {p: p.read_bytes() for p in base.iterdir() if p != path} == others
    if damage == "altered":
        apt = apt_state()
        assert fetch("fashion_mnist", copied_root)["sha256"] == dict(FASHION.files)
        assert apt_state() == apt  # the download had package lists of its own
        assert gzip.decompress(path.read_bytes()) == gzip.decompress(whole)


def test_a_killed_fetch_leaves_nothing_and_two_at_once_download_once(tmp_path, python):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    victim = python(FETCH, tmp_path, "fashion_mnist", wait=False, TMPDIR=str(temporary))
    while "trying the Debian package" not in victim.stderr.readline():
        assert victim.poll() is None
    time.sleep(0.7)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert list((tmp_path / "fashion_mnist").glob("*-ubyte*")) == []
    assert not (tmp_path / "fashion_mnist/manifest.json").exists()

    both = [python(FETCH, tmp_path, "fashion_mnist", wait=False) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {out for out, _ in outputs} == {"Debian package dataset-fashion-mnist\n"}
    assert sum("trying the Debian package" in err for _, err in outputs) == 1


def test_an_unknown_dataset_is_refused_with_the_close_name(tmp_path):
    with pytest.raises(SeamError, match="unknown dataset 'fashion-mnist'; did you mean fashion_mnist"):
        fetch("fashion-mnist", tmp_path)


def test_a_data_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(SeamError, match="root/digits: Not a directory; is data_root"):
        fetch("digits", tmp_path / "root")


def test_a_folder_of_images(write_folder, tmp_path):
    folder = write_folder(per_class=5)
    (folder / "val/digit9/0000.png").parent.joinpath("notes.txt").write_text("no image")
    (folder / "train/.ipynb_checkpoints").mkdir()
    manifest = fetch("folder", tmp_path / "root", folder)
    assert manifest["classes"] == [f"digit{i}" for i in range(10)]
    assert manifest["train"] == {"count": 50, "per_class": [5] * 10}
    assert (manifest["channels"], manifest["image_size"], manifest["path"]) == (1, [8, 8], str(folder))
    assert fetch("folder", tmp_path / "root", folder) == manifest

    next((folder / "train/digit3").iterdir()).unlink()
    changed = fetch("folder", tmp_path / "root", folder)
    assert changed["train"]["per_class"] == [5, 5, 5, 4, 5, 5, 5, 5, 5, 5]
    assert changed["sha256"]["listing"] != manifest["sha256"]["listing"]


def test_two_folders_keep_their_manifests_apart(write_folder, tmp_path):
    first, second = write_folder("a", per_class=2), write_folder("b", per_class=3)
    for folder, count in ((first, 20), (second, 30), (first, 20)):
        assert fetch("folder", tmp_path / "root", folder)["train"]["count"] == count


def test_a_coloured_folder_has_the_statistics_of_its_luma_too(write_folder, tmp_path):
    from PIL import Image

    folder = write_folder(mode="RGB")
    manifest = fetch("folder", tmp_path / "root", folder)
    files = sorted((folder / "train").rglob("*.png"))
    rgb = np.stack([np.asarray(Image.open(f)) for f in files]) / 255
    gray = np.stack([np.asarray(Image.open(f).convert("L")) for f in files]) / 255
    assert manifest["channels"] == 3
    assert manifest["mean"] == pytest.approx(rgb.mean(axis=(0, 1, 2)), abs=1e-6)
    assert manifest["std"] == pytest.approx(rgb.std(axis=(0, 1, 2)), abs=1e-6)
    assert manifest["luma"]["mean"] == pytest.approx([gray.mean()], abs=1e-3)
    assert manifest["luma"]["std"] == pytest.approx([gray.std()], abs=1e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "val").rename(f / "valid"), r"must have the folders train/ and val/ \(or test/\)"),
        (lambda f: (f / "val/digit0").rename(f / "val/zero"), "val: classes that train/ has not: zero"),
        (lambda f: [p.unlink() for p in (f / "train/digit4").iterdir()], "train/digit4: no images"),
        (lambda f: next((f / "train/digit2").iterdir()).write_bytes(b"x" * 99), "train/digit2/.*png: .*image"),
    ],
)
def test_a_bad_folder_is_refused_by_name(write_folder, tmp_path, spoil, message):
    folder = write_folder(per_class=3)
    spoil(folder)
    with pytest.raises(SeamError, match=message):
        fetch("folder", tmp_path / "root", folder)


def test_folder_needs_a_path(tmp_path):
    with pytest.raises(SeamError, match="needs a path"):
        fetch("folder", tmp_path)


def test_cifar10_may_come_as_class_folders(write_folder, tmp_path, monkeypatch):
    write_folder("root/cifar10", side=32, mode="RGB", form="jpg")
    with pytest.raises(SeamError, match="incomplete: 60 images in train, CIFAR-10 has 50000"):
        fetch("cifar10", tmp_path / "root")
    shrunk(monkeypatch, "cifar10", 10, (60, 60))
    manifest = fetch("cifar10", tmp_path / "root")
    assert (manifest["channels"], manifest["image_size"], manifest["path"]) == (3, [32, 32], None)
    assert list(manifest["sha256"]) == ["listing"]


def test_a_dataset_of_too_few_classes_is_refused(write_folder, tmp_path):
    write_folder("root/cifar10", side=32, classes=9)
    with pytest.raises(SeamError, match="cifar10 has 10 classes, found 9"):
        fetch("cifar10", tmp_path / "root")


def test_a_damaged_cifar_batch_is_named(tmp_path, python):
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"half a batch")
    done = python(FETCH, tmp_path, "cifar10", offline=True)
    assert done.returncode == 2
    assert f"{folder / 'data_batch_1'}: corrupt or truncated" in done.stdout
    assert (folder / "data_batch_1").read_bytes() == b"half a batch"


def test_an_archive_that_is_no_archive_is_reported(tmp_path, python):
    """The archive's checksum is torchvision's; it is neither deleted nor half unpacked."""
    archive = tmp_path / "cifar10/cifar-10-python.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"half an archive")
    done = python(FETCH, tmp_path, "cifar10", offline=True)
    assert done.returncode == 2 and "torchvision's download: " in done.stdout
    assert [p.name for p in archive.parent.iterdir()] == [archive.name]
    assert archive.read_bytes() == b"half an archive"
