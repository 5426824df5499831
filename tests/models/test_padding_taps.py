"""Cut kernels: the same function and the same gradients, for every architecture; nothing cut that counts."""

import copy
import itertools

import pytest
import timm
import torch
from torch import nn

from seam.models.find import find_layers
from seam.models.padding_taps import cut_taps, used_taps, without_unreached_taps
from seam.quant.apply import calibrate, quantize
from seam.quant.kernels import use_kernels

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


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("name", "side"), [("resnet18", 8), ("mobilenetv3_small_050", 16)])
def test_training_without_them_is_the_same_training(name, side, quantized):
    use_kernels("eager")
    torch.manual_seed(0)
    size = (3, side, side)
    model = timm.create_model(name, num_classes=5).to(memory_format=torch.channels_last)
    for module in model.modules():  # timm's zeros would make exact zeros, whose sign rounding tips
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    x, y = torch.randn(16, *size), torch.arange(16) % 5
    if quantized:
        layers = find_layers(model, size)
        quantize(model, {layer.name: (3, 4) for layer in layers}, layers)
        calibrate(model, [(x, y)])
    model.train().double()
    start = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)

    def train(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x.double()), y).backward()
            optimizer.step()
        return sum(p.numel() for p in net.parameters())

    whole = train(twin)
    with without_unreached_taps(model, size):
        assert train(model) < whole
    expected, found = twin.state_dict(), model.state_dict()
    for key in expected:
        assert found[key].stride() == expected[key].stride()
        torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=1e-9)
    assert sum(not torch.equal(found[key], start[key]) for key in start) > len(start) / 2
    big = torch.randn(2, 3, 64, 64, dtype=torch.double)
    torch.testing.assert_close(model.eval()(big), twin.eval()(big), rtol=1e-5, atol=1e-7)


def test_steps_are_fitted_to_the_weights_that_images_reach():
    def quantized(size):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
        with torch.no_grad():
            net[0].weight[:, :, 0] = 100.0  # the rest would round to zero
        return quantize(net, {"0": (4, 8)}, size=size)

    net, weight = quantized((3, 1, 1)), quantized(None)[0].parametrizations.weight.original
    assert torch.equal(net[0].parametrizations.weight.original, weight)
    error = (net[0].weight - weight)[:, :, 1, 1].abs().max()
    assert error < 0.1 * weight[:, :, 1, 1].abs().max()
    assert torch.count_nonzero(quantized(None)[0].weight[:, :, 1, 1]) == 0
    assert torch.equal(quantized((3, 8, 8))[0].weight, quantized(None)[0].weight)


def test_the_taps_come_back_when_training_fails():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    weight, before = net[0].weight, net[0].weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), without_unreached_taps(net, (3, 1, 1)):
        assert net[0].weight.shape[-2:] == (1, 1) and net[0].padding == (0, 0)
        with torch.no_grad():
            net[0].weight.fill_(7.0)
        raise KeyboardInterrupt
    assert net[0].weight is weight and net[0].padding == (1, 1) and net[0].kernel_size == (3, 3)
    before[:, :, 1, 1] = 7.0
    assert torch.equal(weight, before)


def test_what_reads_its_kernel_otherwise_stays():
    class Own(nn.Conv2d):
        pass

    shared = nn.Conv2d(3, 3, 3, padding=1)
    twin = nn.Conv2d(3, 3, 3, padding=1)
    twin.weight = shared.weight
    net = nn.Sequential(Own(3, 3, 3, padding=1), shared, twin, nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    net[3].padding_mode = "circular"
    net.append(nn.Conv2d(3, 3, 3, padding="same"))
    net.append(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3, padding=1)))
    cut_taps(net, (3, 1, 1))
    assert all(m.weight.shape[-1] == 3 for m in net)
