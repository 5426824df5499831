from contextlib import nullcontext

import pytest
import torch
from torch import nn

from seam.errors import SeamError
from seam.models.features import capture_features
from seam.models.find import find_layers
from seam.quant.apply import calibrate, quantize
from seam.quant.fused_activations import clamp_in_quantizers
from seam.quant.kernels import use_kernels
from seam.quant.mixture import Mixture
from seam.training.optimizers import Group

SIZE = (1, 8, 8)


class Readers(nn.Module):
    """Activations read by one layer, another activation, two layers, a layer and a shortcut, a pooling, more code in
    training, the classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.one, self.first, self.two = nn.ReLU6(inplace=True), nn.Hardtanh(0.25, 1.0), nn.ReLU()
        self.shortcut = nn.ReLU6()
        self.pooled, self.training_only, self.last = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.b, self.c, self.d, self.e = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.f, self.g, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        x = self.two(self.first(self.b(self.one(self.stem(x) * 4))))
        x = self.shortcut(self.c(x) + self.d(x))
        x = self.pooled(x + self.e(x)).mean((2, 3))
        x = self.training_only(self.f(x))
        if self.training:
            x = x * 2
        return self.head(self.last(self.g(x)))


def images():
    return torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture(params=["eager", "compiled"])
def kernels(request):
    use_kernels(request.param, (1, 3))
    yield
    use_kernels("eager")


def quantized(model):
    layers = find_layers(model, SIZE)
    quantize(model, {layer.name: (4, 3) for layer in layers}, layers)
    calibrate(model, [(images(), None)])
    return model


def mixed(model):
    net = Mixture(model, find_layers(model, SIZE), (2, 3, 5))
    net.calibrate([(images(), None)])
    return net


def readers():
    torch.manual_seed(0)
    return Readers()


@pytest.mark.parametrize("make", [quantized, mixed])
def test_only_activations_that_nothing_but_quantizers_reads_are_left_to_them(make):
    model = readers()
    make(model)
    with clamp_in_quantizers(model, SIZE) as names:
        assert names == ["one", "two", "training_only", "last"]
        assert all("forward" in vars(module) for name, module in model.named_modules() if name in names)
    assert not any("forward" in vars(module) for module in model.modules())


def test_without_quantizers_nothing_is_left_to_them():
    with clamp_in_quantizers(readers(), SIZE) as names:
        assert names == []


def train(net, model, left):
    """Outputs and features of three steps, and the state after them."""
    seen = []
    net.train()
    optimizer = Group(list(net.parameters()), 0.05).optimizer()
    with clamp_in_quantizers(model, SIZE) if left else nullcontext(), capture_features(model) as features:
        for _ in range(3):
            optimizer.zero_grad()
            y = net(images())
            (y.square().mean() + features[-1].square().mean()).backward()
            optimizer.step()
            seen += [y, features[-1] * 1]
    return [*seen, *net.state_dict().values()]


@pytest.mark.parametrize("make", [quantized, mixed])
def test_training_stays_the_same_to_the_bit(make, kernels):
    found = []
    for left in (False, True):
        model = readers()
        found.append(train(make(model), model, left))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (readers().stem(images()) * 4 > 6).any()  # beyond the limit of ReLU6


class Odd(nn.Module):
    """One quantized convolution behind an activation, and one more thing that the forward does."""

    def __init__(self, activation, forward):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.act, self.way = activation, forward
        self.register_buffer("seen", torch.zeros(()))

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(self.way(self, self.stem(x)).mean((2, 3)))


def trunk(net, x):
    return net.conv(net.act(x)) + x


def changed_before(net, x):
    y = net.act(x)
    x += 1
    return net.conv(y)


def changed_after(net, x):
    y = net.conv(net.act(x))
    x += y
    return x


def by_keyword(net, x):
    return net.conv(net.act(input=x))


def called_twice(net, x):
    return net.conv(net.act(net.conv(net.act(x))))


def again_in_training(net, x):
    y = net.act(x)
    return net.conv(net.act(y) if net.training else y)


def once_for_a_sum(net, x):
    x = net.act(x)
    return net.conv(net.act(net.conv(x))) + x


def statistics_without_gradients(net, x):
    y = net.act(x)
    if net.training:
        with torch.no_grad():
            net.seen += y.mean()
    return net.conv(y)


def without_gradients(net, x):
    with torch.no_grad():
        y = net.act(x)
    return net.conv(y)


@pytest.mark.parametrize(
    ("way", "in_place", "left"),
    [
        (trunk, True, False),  # the sum is with what the activation left in x
        (trunk, False, True),
        (changed_before, False, False),
        (changed_after, False, False),
        (by_keyword, True, True),
        (called_twice, True, True),
        (again_in_training, True, True),
        (once_for_a_sum, True, False),
        (statistics_without_gradients, True, True),
        (without_gradients, False, True),
    ],
)
def test_odd_uses_of_an_activation_train_the_same(way, in_place, left):
    use_kernels("eager")
    found = []
    for allowed in (False, True):
        model = quantized(Odd(nn.ReLU6(True) if in_place else nn.ReLU(), way))
        found.append(train(model, model, allowed))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with clamp_in_quantizers(model, SIZE) as names:
        assert names == (["act"] if left else [])


class Hidden(torch.autograd.Function):
    """A function that torch does not show to tensor subclasses."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


def test_a_reader_that_cannot_be_seen_is_an_error():
    def way(net, x):
        y = net.act(x)
        return net.conv(Hidden.apply(y) if net.training else y)

    model = quantized(Odd(nn.ReLU(), way))
    with pytest.raises(SeamError, match="autograd.Function"):
        train(model, model, True)


def test_the_activations_compute_again_after_an_error():
    model = quantized(Odd(nn.ReLU(), trunk))
    with pytest.raises(ZeroDivisionError), clamp_in_quantizers(model, SIZE):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError), clamp_in_quantizers(model, (3, 8, 8)):  # images that the model does not take
        pass
    assert not any("forward" in vars(module) for module in model.modules())
