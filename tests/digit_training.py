"""A small network on digits, and one way of training it."""

import torch

from seam.models.build import build
from seam.runtime.meter import Meter
from seam.settings import Model, Training
from seam.training.loop import fit
from seam.training.supervised import cross_entropy, training_groups

CPU = torch.device("cpu")


def network(seed=0):
    torch.manual_seed(seed)
    return build(Model(name="test_resnet"), 10, 1)


def trained(model, images, epochs=2, resume=None, live=lambda step, **m: None, seed=0, meter=None):
    groups = training_groups(model, Training(epochs=epochs, lr=0.05))
    loss = cross_entropy(model)
    meter = meter or Meter(CPU)
    return fit(model, loss, images, epochs, 64, groups, seed, CPU, meter, True, resume, live)
