"""The process of a stage: devices that cannot compute are refused."""

import os

import pytest
import torch

from seam.errors import SeamError
from seam.runtime.process import loader_workers, set_up


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


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_results_are_to_be_repeatable_on_a_gpu_too(monkeypatch, own):
    """cuBLAS reads the variable when it is first used; a user's own value stays."""
    if own is None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set here ends with the test
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own)
    torch.set_deterministic_debug_mode("default")
    set_up("cpu", 1, 0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (own or ":4096:8")
    assert torch.get_deterministic_debug_mode() == 1  # warn


def test_beside_a_gpu_as_many_processes_as_threads_read_files_and_none_beside_a_network_on_the_cpu():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert loader_workers(torch.device("cuda", 1)) == 3 and loader_workers(torch.device("cpu")) == 0
    finally:
        torch.set_num_threads(threads)
