import torch
from torch import nn

from seam.models.norms import norms_behind


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.linear, self.flat = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def found(way):
    net = Net(way).eval()
    names = {module: name for name, module in net.named_modules()}
    behind = norms_behind(net, ("conv", "linear"), torch.randn(1, 3, 4, 4))
    return {layer: names[norm] for layer, norm in behind.items()}


def test_the_norm_that_reads_an_output_is_behind_the_layer():
    def way(net, x):
        y = net.norm(net.conv(x)).mean((2, 3))
        return net.flat(net.linear(y))

    assert found(way) == {"conv": "norm", "linear": "flat"}


def test_not_what_reads_another_tensor_or_one_that_was_changed_in_place():
    assert found(lambda net, x: net.norm(net.conv(x) + x)) == {}
    assert found(lambda net, x: net.norm(net.conv(x).relu_())) == {}


def test_not_where_statistics_would_be_those_of_several_outputs():
    assert found(lambda net, x: net.norm(net.conv(net.norm(net.conv(x))))) == {}
    assert found(lambda net, x: net.norm(net.conv(x)) + net.norm(x)) == {}
    assert found(lambda net, x: net.norm(net.conv(x)) + net.conv(2 * x)) == {}
