"""What a command imports of torch."""

import subprocess
import sys

import pytest
from engines import REPOSITORY

from seam.quant.kernels import use_kernels


def test_torch_s_compiler_is_imported_by_what_compiles_and_not_before():
    """Neither by loading kernels, which have been compiled here, nor by a step of an optimizer."""
    code = """
import sys
from seam.runtime.imports import import_torch
import_torch()
import torch, torchvision.transforms.v2, timm
from seam.quant.kernels import use_kernels
kind, weight = use_kernels("auto")[0], torch.ones(2, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
weight.sum().backward()
optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())
print(kind, weight.tolist(), sum(name.startswith(("torch._dynamo.", "torch._inductor")) for name in sys.modules))

box, image = torch.tensor([[0.0, 0, 0, 4, 4]]), torch.arange(64.0).view(1, 1, 8, 8)
print(torchvision.ops.roi_align(image, box, 2, aligned=True).flatten().tolist())
ask = torchvision.ops.roi_align.__globals__["is_compile_supported"]
print(ask("cpu"), torch._dynamo.__file__ is not None, torch._dynamo.disable.__module__)
"""
    use_kernels("auto")
    use_kernels("eager")  # as other tests expect it
    assert printed(code) == [
        "compiled [0.0, 0.0] 1",  # the stand-in
        "[4.5, 6.5, 20.5, 22.5]",
        "True True torch._dynamo.decorators",
    ]


@pytest.mark.parametrize(
    "use",
    [
        "torch.compile(lambda x: x + 1, fullgraph=True, backend='eager')(torch.ones(1))",
        "__import__('torch._dynamo.config')",
        "torch.onnx.export(torch.nn.ReLU(), (torch.ones(1),), dynamo=True, verbose=False)",
    ],
)
def test_what_compiles_finds_the_whole_compiler(use):
    code = f"""
from seam.runtime.imports import import_torch
import_torch()
import torch, sys
{use}
import torch._dynamo, torch._dynamo.utils
optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=1.0)
optimizer.step()
print(*(module.__file__ is not None for module in (torch._dynamo, torch._dynamo.utils, sys.modules["torch._dynamo"])))
"""
    assert printed(code)[-1] == "True True True"


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
