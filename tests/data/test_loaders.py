import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from seam.data import loaders
from seam.data.fetch import labels
from seam.data.image_sets import Draw
from seam.data.loaders import FileSet, TensorSet, load, prepare_as_trained
from seam.errors import SeamError


def epoch(images, **options):
    """All batches of an epoch, joined."""
    x, y = zip(*images.batches(options.pop("batch_size", 64), **options), strict=True)
    return torch.cat(x), torch.cat(y)


def pixels_of(images, x):
    """Undo the normalisation: values 0..255, [N, H, W, C]."""
    return x.permute(0, 2, 3, 1) * torch.tensor(images.std) * 255 + torch.tensor(images.mean) * 255


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", tmp_path_factory.mktemp("digits"), "train")


@pytest.fixture
def large_folder(write_folder):
    """Images of several sizes, 100 to 104 pixels wide."""
    return write_folder(side=100, form="jpg", mode="RGB", per_class=4, vary=True)


def test_fashion_mnist_normalised(fashion_root):
    images = load("fashion_mnist", fashion_root, "train")
    assert (len(images), images.image_size, images.channels) == (60_000, (28, 28), 1)
    assert images.labels.dtype == torch.int64 and images.classes[9] == "Ankle boot"
    x, y = epoch(images, batch_size=10_000)
    assert x.dtype == torch.float32 and x.shape == (60_000, 1, 28, 28)
    assert y.equal(images.labels)
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3
    # The first training image is the ankle boot of every tutorial.
    assert y[0] == 9 and pixels_of(images, x[:1]).sum().item() == pytest.approx(76247, abs=1)


def test_digits_split_is_a_partition_by_class(tmp_path):
    parts = {split: load("digits", tmp_path, split) for split in ("train", "test", "all")}
    truth = load_digits()
    assert np.array_equal(parts["all"].labels, truth.target)
    assert np.abs(parts["all"].pixels[..., 0].numpy() * (16 / 255) - truth.images).max() < 0.05
    rows = [tuple(p) for s in ("train", "test") for p in parts[s].pixels.reshape(-1, 64).tolist()]
    assert sorted(rows) == sorted(tuple(p) for p in parts["all"].pixels.reshape(-1, 64).tolist())
    assert len(parts["test"]) == 359


def test_all_is_train_then_test(fashion_root):
    both = load("fashion_mnist", fashion_root, "all", indices=[0, 59_999, 60_000, 69_999])
    train = load("fashion_mnist", fashion_root, "train", indices=[0, 59_999])
    test = load("fashion_mnist", fashion_root, "test", indices=[0, 9_999])
    assert both.pixels.equal(torch.cat([train.pixels, test.pixels]))
    assert both.labels.equal(torch.cat([train.labels, test.labels]))


def test_order_and_seed(digits):
    x, y = epoch(digits)
    assert y.equal(digits.labels)
    (xa, ya), (xb, yb), (xc, yc) = (epoch(digits, seed=seed, augment=True) for seed in (1, 1, 2))
    assert xa.equal(xb) and ya.equal(yb)
    assert not ya.equal(yc)
    assert ya.bincount().equal(digits.labels.bincount())
    shuffled, _ = epoch(digits, seed=1)
    assert sorted(map(tuple, shuffled.flatten(1).tolist())) == sorted(map(tuple, x.flatten(1).tolist()))
    assert epoch(digits, seed=1, augment=True, batch_size=100)[0].equal(xa)  # whatever the batches


def test_an_epoch_can_be_iterated_again_and_leaves_the_global_generator_alone(digits):
    state = torch.get_rng_state()
    batches = digits.batches(64, seed=5, augment=True)
    first, second = ([x for x, _ in batches] for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert torch.get_rng_state().equal(state)


def test_lengths(digits):
    assert len(digits.batches(100)) == 15 and len(list(digits.batches(100))) == 15
    assert len(digits.batches(100, drop_last=True)) == 14
    assert [len(y) for _, y in digits.batches(100, drop_last=True)] == [100] * 14
    assert [len(y) for _, y in digits.batches(100)][-1] == 38
    with pytest.raises(SeamError, match="batch_size"):
        digits.batches(0)


def test_skipped_batches_leave_the_rest_as_it_was(digits):
    whole = [x for x, _ in digits.batches(64, seed=3, augment=True)]
    rest = digits.batches(64, seed=3, augment=True, skip=20)
    assert len(rest) == len(whole) - 20
    assert all(a.equal(b) for a, (b, _) in zip(whole[20:], rest, strict=True))
    assert list(digits.batches(64, skip=99)) == []


def test_memory_formats(fashion_root):
    images = load("fashion_mnist", fashion_root, "test", channels=3)
    (last, _), *_ = images.batches(8)
    (first, _), *_ = images.batches(8, channels_last=False)
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert first.is_contiguous() and first.equal(last)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_augmentation_is_a_shift_within_an_eighth_and_a_flip(name, fashion_root):
    """Each augmented image is one of the possible shifts (black moves in) of its image, mirrored or not."""
    images = load(name, fashion_root, "test", indices=range(200))
    x, _ = epoch(images, augment=True)
    found = pixels_of(images, x).round().to(torch.uint8)
    reach = images.image_size[0] // 8
    seen = set()
    for source, image in zip(images.pixels, found, strict=True):
        matches = set()
        for flip in (False, True):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    moved = torch.zeros_like(source)
                    h, w = source.shape[:2]
                    moved[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)] = source[
                        max(0, -dy) : h + min(0, -dy), max(0, -dx) : w + min(0, -dx)
                    ]
                    if image.equal(moved.flip(1) if flip else moved):
                        matches.add((flip, dy, dx))
        assert matches
        if len(matches) == 1:
            seen |= matches
    flips, down, across = map(set, zip(*seen, strict=True))
    assert down == across == set(range(-reach, reach + 1))
    assert flips == ({False} if name == "digits" else {False, True})  # a mirrored digit is another sign


def test_gray_to_rgb(fashion_root):
    gray, rgb = (load("fashion_mnist", fashion_root, "test", channels=c) for c in (1, 3))
    assert rgb.channels == 3 and rgb.mean == gray.mean * 3 and rgb.std == gray.std * 3
    (x1, _), *_ = gray.batches(16)
    (x3, _), *_ = rgb.batches(16)
    assert x3.equal(x1.expand(-1, 3, -1, -1))


def test_rgb_to_gray(write_folder, tmp_path):
    from PIL import Image

    folder = write_folder(mode="RGB")
    images = load("folder", tmp_path / "root", "train", folder, channels=1)
    files = sorted((folder / "train").rglob("*.png"))
    expected = np.stack([np.asarray(Image.open(f).convert("L")) for f in files])
    assert np.abs(images.pixels[..., 0].numpy().astype(int) - expected).max() <= 1
    x, _ = epoch(images)
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-2


@pytest.mark.parametrize("size", [14, (20, 36), 56])
def test_another_image_size(fashion_root, size, monkeypatch):
    images = load("fashion_mnist", fashion_root, "test", indices=range(50), image_size=size)
    size = (size, size) if isinstance(size, int) else size
    assert images.image_size == size and images.pixels.shape[1:3] == size
    source = load("fashion_mnist", fashion_root, "test", indices=range(50)).pixels.permute(0, 3, 1, 2)
    expected = v2.functional.resize(source, size, antialias=True).permute(0, 2, 3, 1)
    assert (images.pixels.int() - expected.int()).abs().max() <= 1

    monkeypatch.setattr(loaders, "IN_MEMORY_BYTES", 0)  # as if it were too large: resized batch by batch
    later = load("fashion_mnist", fashion_root, "test", indices=range(50), image_size=size)
    assert later.pixels.shape[1:3] == (28, 28) and later.image_size == size
    assert (pixels_of(later, epoch(later)[0]) - images.pixels).abs().max() <= 1


def test_indices_and_subsets_agree(fashion_root):
    chosen = [5, 3, 9_999, 3]
    images = load("fashion_mnist", fashion_root, "test")
    for part in (images.subset(chosen), load("fashion_mnist", fashion_root, "test", indices=chosen)):
        assert part.labels.equal(images.labels[chosen]) and part.pixels.equal(images.pixels[chosen])
        assert part.mean == images.mean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "unknown split 'valid'; known: train, test, all"),
        ({"indices": [0, 359]}, "indices must be from 0 to 358"),
        ({"indices": [-1]}, "indices must be from 0 to 358"),
        ({"channels": 2}, "channels must be 1 or 3 .found 2"),
        ({"image_size": 0}, "image_size must be 1 to 4096"),
        ({"image_size": (8, 8, 8)}, "image_size must be 1 to 4096"),
        ({"dataset": "digit"}, "unknown dataset 'digit'; did you mean digits"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(SeamError, match=message):
        load(**{"dataset": "digits", "root": tmp_path, "split": "test", **options})


def test_a_file_damaged_after_the_fetch_is_named(copied_root):
    path = copied_root / "fashion_mnist/t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(SeamError, match=f"{path}: corrupt or truncated.*delete it"):
        load("fashion_mnist", copied_root, "test")
    assert len(load("fashion_mnist", copied_root, "train")) == 60_000  # the rest is as good as before


def test_large_images_are_cropped_like_torchvision(large_folder, tmp_path):
    images = load("folder", tmp_path / "root", "test", large_folder, image_size=64)
    assert isinstance(images, FileSet) and images.image_size == (64, 64)
    x, y = epoch(images, batch_size=16)
    assert y.equal(images.labels) and x.shape == (40, 3, 64, 64)
    from PIL import Image

    crop = v2.Compose([v2.Resize(round(64 / 0.875)), v2.CenterCrop(64)])
    for i in (0, 17, 39):
        expected = torch.from_numpy(np.array(crop(Image.open(images.paths[i]))))
        assert pixels_of(images, x[i : i + 1])[0].round().equal(expected.float())


def test_large_images_by_default_are_224(large_folder, tmp_path):
    images = load("folder", tmp_path / "root", "train", large_folder)
    assert images.image_size == (224, 224)
    x, _ = epoch(images)
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02


@pytest.mark.parametrize("augment", [False, True])
def test_workers_do_not_change_what_is_read(large_folder, tmp_path, augment):
    images = load("folder", tmp_path / "root", "train", large_folder, image_size=32)
    state = torch.get_rng_state()
    alone, helped, other = (
        epoch(images, seed=seed, augment=augment, batch_size=12, workers=workers)
        for seed, workers in ((1, 0), (1, 2), (2, 0))
    )
    assert alone[0].equal(helped[0]) and alone[1].equal(helped[1])
    assert not alone[0].equal(other[0])
    assert torch.get_rng_state().equal(state)
    rest = torch.cat([x for x, _ in images.batches(12, seed=1, augment=augment, skip=2)])
    assert rest.equal(alone[0][24:])


@pytest.fixture
def copied(monkeypatch):
    """What is copied to a GPU, and whether without waiting: [(tensor, non_blocking)]. The copies stay on the CPU."""
    seen, to = [], torch.Tensor.to

    def noting(x, *args, non_blocking=False, **options):
        if args and isinstance(args[0], torch.device) and args[0].type == "cuda":
            seen.append((x, non_blocking))
            return x.clone()
        return to(x, *args, non_blocking=non_blocking, **options)

    monkeypatch.setattr(torch.Tensor, "to", noting)
    return seen


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_files_reach_a_gpu_through_pinned_memory_without_waiting(large_folder, tmp_path, monkeypatch, copied, device):
    images = load("folder", tmp_path / "root", "train", large_folder, image_size=32)
    given = []

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *args, **options):
            given.append(options["pin_memory"])
            super().__init__(*args, **{**options, "pin_memory": False})  # which needs a GPU

    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    draw = Draw(len(images), 1, augment=True)
    spans = [(0, 12), (12, 20)]
    found = list(images._epoch(draw.order, draw, spans, torch.device(device), 2))
    assert given == [device == "cuda"]
    assert [(x.dtype, len(x), at_once) for x, at_once in copied] == (
        [(torch.uint8, 12, True), (torch.uint8, 8, True)] if device == "cuda" else []  # a quarter of floats' bytes
    )
    x, _ = epoch(images, seed=1, augment=True)
    assert torch.cat(found).equal(pixels_of(images, x[:20]).round())


def test_a_set_in_memory_is_copied_to_a_gpu_once(digits, copied):
    images, draw = digits.subset(range(100)), Draw(100, 1, augment=True)
    spans = [(0, 64), (64, 100)]
    for _ in range(2):
        found = list(images._epoch(draw.order, draw, spans, torch.device("cuda"), 0))
    assert [x is images.pixels for x, _ in copied].count(True) == 1
    assert sum(x is draw.order for x, _ in copied) == 2  # else each batch would carry its part there
    x, _ = epoch(images, seed=1, augment=True)
    assert torch.cat(found).equal(pixels_of(images, x).round())
    other = images.subset(range(50, 100))
    (first,) = other._epoch(torch.arange(50), Draw(50, None, False), [(0, 50)], torch.device("cuda"), 0)
    assert first.equal(images.pixels[50:].float())  # of its own copy, not of the whole's


def test_batches_of_a_set_in_memory_are_on_its_device_in_all_their_parts(digits):
    """torch's device without numbers stands for a GPU: tensors of two devices in one operation are an error there."""
    images = digits.subset(range(100))
    images.resize = images.image_size = (12, 12)
    for x, y in images.batches(64, seed=1, augment=True, device="meta"):
        assert x.device.type == y.device.type == "meta" and x.shape[1:] == (1, 12, 12)


def test_each_image_of_an_epoch_gets_a_crop_of_its_own(large_folder, tmp_path):
    one = load("folder", tmp_path / "root", "train", large_folder, image_size=32).subset([5] * 20)
    x, _ = epoch(one, seed=0, augment=True)
    assert len({tuple(image.flatten().tolist()) for image in x}) == 20
    plain, _ = epoch(one, seed=0)
    assert plain.equal(plain[:1].expand_as(plain))


def test_a_killed_worker_is_named(large_folder, tmp_path, python):
    """In a process of its own: the signal that a child has died may be handled after the pipe from it was cut."""
    code = """
import multiprocessing, os, signal, sys
from seam.runtime.imports import import_torch
import_torch()
from seam.data.loaders import load
from seam.errors import SeamError
from seam.runtime.memory import enough_memory

images = load("folder", sys.argv[1], "train", sys.argv[2], image_size=64)
try:
    with enough_memory("finetune", "x.batch_size", 2):
        for number, _ in enumerate(images.batches(2, workers=2)):
            if number == 1:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
except SeamError as error:
    print(error, flush=True)
    os._exit(0)
"""
    done = python(code, tmp_path, large_folder)
    if re.search(r"in __exit__\b.*DataLoader worker .* is killed by signal", done.stderr, re.DOTALL):
        # Now and then torch's handler raises after the context has begun to end: nothing in it can catch that any more
        # (commands do, without the name of what to lower). Twice in a row would be no accident.
        done = python(code, tmp_path, large_folder)
    assert re.match("finetune: a process that reads images was killed.*lower x.batch_size", done.stdout), done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named(large_folder, tmp_path, workers):
    images = load("folder", tmp_path / "root", "train", large_folder, image_size=32)
    broken = sorted((large_folder / "train/digit6").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:-300])
    with pytest.raises(SeamError, match=f"^{broken}: corrupt or truncated image.*replace or delete it"):
        epoch(images, workers=workers)


def test_labels_follow_the_names_of_trains_classes(write_folder, tmp_path):
    """A class that the test images lack does not shift the labels of the others."""
    import shutil

    folder = write_folder()
    shutil.rmtree(folder / "val/digit2")
    images = load("folder", tmp_path / "root", "test", folder)
    assert isinstance(images, TensorSet) and images.classes == [f"digit{i}" for i in range(10)]
    assert images.labels.unique().tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("split", ["train", "test", "all"])
@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_labels_come_in_the_images_order(fashion_root, dataset, split):
    images = load(dataset, fashion_root, split)
    assert labels(dataset, fashion_root, split).tolist() == images.labels.tolist()


def test_images_are_prepared_as_a_model_was_trained():
    stated = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.9, "interpolation": "bicubic"}
    labels = torch.zeros(1, dtype=torch.int64)
    pixels = torch.full((1, 4, 4, 3), 51, dtype=torch.uint8)
    held = prepare_as_trained(TensorSet(pixels, labels, ["a"], [0.5] * 3, [0.5] * 3, True), stated)
    x, _ = next(iter(held.batches(1)))
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(0.2 - 0.1) / 0.4, 0.0, (0.2 - 0.3) / 0.6]), atol=1e-6)
    files = prepare_as_trained(FileSet(["x"], labels, ["a"], [0.5] * 3, [0.5] * 3, (90, 90)), stated)
    assert (files.crop_share, files.interpolation, files.preprocessing["resize"]) == (0.9, "bicubic", [100, 100])
    gray = prepare_as_trained(TensorSet(pixels[..., :1], labels, ["a"], [0.5], [0.25], True), stated)
    assert (gray.mean, gray.std) == ([0.5], [0.25])  # as many channels as timm states, or the set's own
