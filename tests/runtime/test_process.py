"""The process of a stage: devices that cannot compute are refused."""

import pytest
import torch

from seam.errors import SeamError
from seam.runtime.process import set_up


@pytest.mark.parametrize("device", ["meta", "", "5", "cpu:-1", "cuda:99999999999", "hpu", "mtia", "opengl", "c\0"])
def test_devices_that_cannot_compute_are_named(device):
    with pytest.raises(SeamError, match="^device: .*cannot be used here .*use auto or cpu") as error:
        set_up(device, 1, 0)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_numpy_does_not_take_are_named(seed):
    with pytest.raises(SeamError, match=f"seed: must be 0 to .* found {seed}"):
        set_up("cpu", 1, seed)


def test_the_cpu_is_a_device():
    assert set_up("cpu", 1, 0) == torch.device("cpu")
