import inspect
import re

import pytest
import torchvision.datasets

from seam.data.datasets import DATASETS

PLANNED = ["digits", "fashion_mnist", "cifar10", "cifar100", "flowers102", "food101", "oxford_iiit_pet"]
PLANNED += ["stanford_cars", "fgvc_aircraft", "imagenet", "folder"]


def test_the_names_are_those_promised():
    assert list(DATASETS) == PLANNED
    assert all(name == info.name for name, info in DATASETS.items())


def test_importing_it_imports_nothing_heavy(python):
    done = python("import sys, seam.data.datasets; print(*(m for m in ('numpy', 'torch', 'PIL') if m in sys.modules))")
    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.parametrize("info", [i for i in DATASETS.values() if i.layout == "torchvision"], ids=lambda i: i.name)
def test_torchvision_has_the_class_and_its_splits(info, tmp_path):
    cls = getattr(torchvision.datasets, info.torchvision)
    assert "split" in inspect.signature(cls).parameters
    for split in (*info.train, info.test):
        with pytest.raises(Exception, match="not found|not present|No such file"):  # but not: unknown split
            cls(tmp_path, split=split)


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda i: i.name)
def test_an_entry_says_what_to_do_without_a_network(info):
    assert info.hint
    assert info.url is None or re.match(r"https?://[\w.-]+/", info.url)
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in info.files.values())


def test_entries_cannot_be_changed():
    with pytest.raises(AttributeError):
        DATASETS["digits"].channels = 3
    with pytest.raises(TypeError):
        DATASETS["fashion_mnist"].files["train-images-idx3-ubyte"] = "0"
