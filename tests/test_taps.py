"""Cut kernels: the same function and the same gradients, for every architecture; nothing cut that counts."""

import copy
import itertools

import pytest
import timm
import torch
from torch import nn

from seam.models import find_layers
from seam.taps import cut_taps, used_taps

AXES = itertools.product((1, 2, 3, 7), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2))
CASES = [
    (size, kernel, stride, padding, dilation)
    for size, kernel, stride, padding, dilation in AXES
    if size + 2 * padding > dilation * (kernel - 1)
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), CASES)
def test_a_cut_convolution_is_the_same_function(size, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, kernel, stride, padding, dilation).double()
    net = nn.Sequential(layer)
    x = torch.randn(2, 3, size, size, dtype=torch.double)
    expected = net(x)
    weight = layer.weight.detach().clone()
    expected.square().sum().backward()
    gradient = layer.weight.grad
    used = gradient.abs().sum((0, 1)) > 0
    cut_taps(net, (3, size, size))
    first, last = used_taps(size, kernel, stride, padding, dilation)
    layer.weight.data = weight[:, :, first : last + 1, first : last + 1]
    found = net(x)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient[:, :, first : last + 1, first : last + 1])
    assert used.sum() == used[first : last + 1, first : last + 1].sum()  # no tap with a gradient is lost


def test_one_pixel_needs_one_tap():
    assert used_taps(1, 3, 1, 1, 1) == (1, 1)
    assert used_taps(2, 3, 2, 1, 1) == (1, 2)
    assert used_taps(4, 3, 1, 1, 1) == (0, 2)
    assert used_taps(1, 7, 2, 3, 1) == (3, 3)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 8),
        ("resnet18", 28),
        ("mobilenetv3_small_050", 8),
        ("tf_efficientnet_lite0", 16),  # pads by itself where the stride is 2
        ("densenet121", 32),
        ("regnetx_002", 16),
        ("convnext_atto", 32),
        ("inception_v3", 80),
        ("resnetv2_50", 32),  # standardises its weights
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_a_network_computes_the_same(name, side):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, side, side)
    expected = model(x)
    before, layers = sum(p.numel() for p in model.parameters()), find_layers(model, (3, side, side))
    cut = copy.deepcopy(model)
    left = cut_taps(cut, (3, side, side))
    torch.testing.assert_close(cut(x), expected, rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in find_layers(cut, (3, side, side))] == [layer.name for layer in layers]
    assert left <= before
    if (name, side) == ("resnet18", 8):
        assert left < 0.2 * before


def test_what_reads_its_kernel_otherwise_stays():
    class Own(nn.Conv2d):
        pass

    shared = nn.Conv2d(3, 3, 3, padding=1)
    twin = nn.Conv2d(3, 3, 3, padding=1)
    twin.weight = shared.weight
    net = nn.Sequential(Own(3, 3, 3, padding=1), shared, twin, nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    net[3].padding_mode = "circular"
    net.append(nn.Conv2d(3, 3, 3, padding="same"))
    cut_taps(net, (3, 2, 2))
    cut_taps(net[:3], (3, 1, 1))
    assert all(m.weight.shape[-1] == 3 for m in net)
