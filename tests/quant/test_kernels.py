"""What compiling costs, with the real compiler and caches that are empty at first."""

import time

import pytest
import torch
from torch._inductor.utils import fresh_cache

from seam.quant import kernels
from seam.quant.kernels import use_kernels
from seam.runtime.meter import Meter


@pytest.fixture(autouse=True)
def one_pass(monkeypatch):
    """One kernel is enough here, and faster to compile than two."""
    monkeypatch.setattr(kernels, "PASSES", {"forward": kernels.forward})
    yield
    use_kernels("eager")


def test_compiling_is_counted_once_on_a_machine_and_loading_in_every_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SEAM_CACHE", str(tmp_path))
    for compiles in (True, False):
        meter, start = Meter(torch.device("cpu")), time.perf_counter()
        with meter.part("kernels"):
            meter.kernels, meter.seconds_once = use_kernels("compiled")
        passed = time.perf_counter() - start
        cost = meter.cost()
        assert cost["kernels"] == "compiled"
        assert (cost["seconds_once"] > 0) is compiles
        assert cost["parts"]["kernels"] > 0
        # Each second is counted, and counted in one place.
        assert meter.parts["kernels"] + meter.seconds_once == pytest.approx(passed, abs=0.05)
        assert sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.05)
        assert cost["seconds"] + cost["seconds_once"] <= time.perf_counter() - meter._start + 0.01


def test_on_other_devices_inductor_s_cache_tells_compiling_from_loading(monkeypatch):
    monkeypatch.setattr(kernels, "_compiling", 0.0)
    torch._dynamo.reset()  # another test of this process may have compiled it
    with fresh_cache():
        kernels._jitted("forward", 1, "cpu")
        compiling = kernels._compiling
        assert compiling > 0
        torch._dynamo.reset()  # as another process, which finds the kernel in the cache on disk
        kernels._jitted("forward", 1, "cpu")
        assert kernels._compiling == compiling
    torch._dynamo.reset()
