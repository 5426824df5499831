"""Small search problems on random images, for tests of methods on networks of every kind."""

import copy

import torch
from architectures import SIZE

from seam.models.find import find_layers
from seam.policy.budget import parse_budget
from seam.runtime.meter import Meter
from seam.search.problem import Problem
from seam.settings import SearchSettings

CPU = torch.device("cpu")
BITS = (2, 4, 6)


class Images:
    """Images as a method asks for them."""

    def __init__(self, x, labels=None):
        self.x = x
        self.labels = torch.arange(len(x)) % 4 if labels is None else labels

    def __len__(self):
        return len(self.x)

    def batches(self, count, **_):
        yield self.x[:count], self.labels[:count]


def images(count=8, seed=0):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def whole(model):
    """timm starts some residual branches with a scale of nearly 0: nothing in them would matter."""
    for name, parameter in model.named_parameters():
        if name.endswith(("weight", "gamma", "gain")) and parameter.abs().max() < 1e-3:
            torch.nn.init.constant_(parameter, 0.5)
    return model


def problem(model, x, draws=2, seed=0, **options):
    layers = find_layers(model, SIZE)
    settings = SearchSettings(bits=BITS, options={"images": len(x), "draws": draws, **options})
    budgets = [parse_budget("w4a4", layers, BITS)]
    return Problem(copy.deepcopy(model), layers, Images(x), budgets, settings, seed, CPU, Meter(CPU))
