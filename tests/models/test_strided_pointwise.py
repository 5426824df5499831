import copy
import subprocess
import sys

import pytest
import torch
from engines import REPOSITORY, environment
from torch import nn

from seam.models.build import build
from seam.models.find import find_layers
from seam.models.strided_pointwise import read_fewer_pixels
from seam.quant.apply import calibrate, quantize
from seam.settings import Model

TRAINING = """
import torch
from torch import nn
from seam.models.strided_pointwise import read_fewer_pixels

torch.manual_seed(0)
layers = [nn.Conv2d(n, 48, 1, stride=2, bias=False).to(memory_format=torch.channels_last) for n in (3, 4, 8)]
for layer in layers:
    read_fewer_pixels(layer)
kept = []
for i in range(20):
    for layer in layers:
        x = torch.randn(12, layer.in_channels, 224, 224).to(memory_format=torch.channels_last)
        layer(x).square().mean().backward()
        kept.append(torch.randn(100 + i))
print("fine")
"""


def test_training_such_convolutions_leaves_the_process_alive():
    """Without it glibc aborts on x86 ("corrupted double-linked list") within a few steps."""
    command = [sys.executable, "-c", TRAINING]
    done = subprocess.run(command, env=environment(REPOSITORY), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (12, 4)])
def test_outputs_and_gradients_are_those_of_the_convolution(channels, groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 8, 1, stride=(2, 3), groups=groups).double()
    plain, x = copy.deepcopy(layer), torch.randn(2, channels, 9, 11, dtype=torch.double, requires_grad=True)
    assert read_fewer_pixels(layer) == [""]
    for one in (layer, plain, copy.deepcopy(layer)):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)
    with torch.no_grad():
        assert torch.equal(layer(x), plain(x))
        layer.weight += 1  # a copy has weights of its own
        assert not torch.equal(layer(x), plain(x))


def test_only_what_would_overrun_is_changed():
    layers = [
        nn.Conv2d(3, 8, 1, stride=1),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(16, 8, 1, stride=2),
        nn.Conv2d(3, 8, 1, stride=2, padding=1),
        nn.Linear(3, 8),
    ]
    assert read_fewer_pixels(nn.Sequential(*layers)) == []
    assert read_fewer_pixels(nn.Sequential(*layers, nn.Conv2d(15, 8, 1, stride=2))) == ["5"]


def test_networks_are_built_and_quantized_safe():
    model = build(Model(name="repvgg_a0"), 10, 3)
    assert "_conv_forward" in vars(model.stem.conv_1x1.conv)
    layers = find_layers(model, (3, 32, 32))
    plain = copy.deepcopy(model)
    del plain.stem.conv_1x1.conv._conv_forward
    x = torch.randn(2, 3, 32, 32)
    for one in (model, plain):
        quantize(one, {layer.name: (4, 4) for layer in layers}, layers)
        calibrate(one, [(x, None)])
    assert "_conv_forward" in vars(plain.stem.conv_1x1.conv)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    model.train()(x).sum().backward()
    assert model.stem.conv_1x1.conv.parametrizations.weight.original.grad.isfinite().all()
