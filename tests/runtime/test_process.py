"""The process of a stage: what it imports; devices that cannot compute are refused."""

import subprocess
import sys

import pytest
import torch
from engines import REPOSITORY

from seam.errors import SeamError
from seam.quant.kernels import use_kernels
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


def test_torch_s_compiler_is_imported_by_what_uses_it_and_not_before():
    code = """
import sys
from seam.runtime.process import import_torch
import_torch()
import torch, torchvision.transforms.v2, timm
from seam.quant.kernels import use_kernels
kind = use_kernels("auto")[0]  # loads them: they have been compiled here
print(kind, [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
box, image = torch.tensor([[0.0, 0, 0, 4, 4]]), torch.arange(64.0).view(1, 1, 8, 8)
print(torchvision.ops.roi_align(image, box, 2, aligned=True).flatten().tolist())
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), torch._dynamo.utils.__file__ is not None)
print(torch.compiler.disable.__module__, timm.layers.disable_compiler is not torch.compiler.disable)
"""
    use_kernels("auto")
    use_kernels("eager")  # as other tests expect it
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "compiled []",
        "[4.5, 6.5, 20.5, 22.5]",
        "2.0 True",
        "torch.compiler True",
    ]
