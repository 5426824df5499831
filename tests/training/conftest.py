import pytest
import torch

from seam.data.loaders import load
from seam.quant.kernels import use_kernels


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    use_kernels("eager")
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("data")
    return load("digits", root, "train"), load("digits", root, "test")
