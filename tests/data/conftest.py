"""Real images for the tests: digits, Fashion-MNIST from its Debian package, and folders written from digits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from digit_images import save

from seam.data.fetch import fetch
from seam.data.readers import DigitsReader

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fashion_root(tmp_path_factory):
    """A data root that holds Fashion-MNIST; read only."""
    root = tmp_path_factory.mktemp("fashion")
    fetch("fashion_mnist", root)
    return root


@pytest.fixture
def copied_root(fashion_root, tmp_path):
    """A data root of the test's own that holds Fashion-MNIST."""
    root = tmp_path / "copied"
    shutil.copytree(fashion_root, root)
    return root


@pytest.fixture
def write_folder(tmp_path):
    """Write digits as train/<class>/*.<format> and val/<class>/*; returns the folder."""

    def write(name="images", side=8, form="png", mode="L", per_class=6, classes=10, vary=False):
        digits = DigitsReader()
        for split, source in (("train", "train"), ("val", "test")):
            pixels, labels = digits.arrays(source)
            for label in range(classes):
                folder = tmp_path / name / split / f"digit{label}"
                folder.mkdir(parents=True)
                for i in np.flatnonzero(labels == label)[:per_class]:
                    width = side + (int(i) % 5 if vary else 0)
                    save(pixels[i], folder / f"{i:04d}.{form}", (width, side), mode)
        return tmp_path / name

    return write


@pytest.fixture
def python():
    """Run code in a Python of its own; `offline` in a network namespace without a network."""

    def run(code, *args, offline=False, wait=True, **environment):
        command = [sys.executable, "-c", code, *map(str, args)]
        if offline:
            command = [*_without_network(), *command]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **environment},
        )
        if not wait:
            return process
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


def _without_network():
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    pytest.skip("no network namespaces here: unshare -n fails")
