"""Shared by the tests of methods: digits, and a network that knows them."""

import pytest
import torch

from seam.data.loaders import load
from seam.models.build import build
from seam.quant.kernels import use_kernels
from seam.runtime.meter import Meter
from seam.settings import Model, Training
from seam.training.loop import fit
from seam.training.supervised import cross_entropy, training_groups


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    use_kernels("eager")
    torch.set_num_threads(1)
    return load("digits", tmp_path_factory.mktemp("data"), "train")


@pytest.fixture(scope="module")
def trained_model(digits):
    """A network after a short training on digits: a search starts from a trained model. Do not change it."""
    torch.manual_seed(0)
    model, device = build(Model(name="test_resnet"), 10, 1), torch.device("cpu")
    groups = training_groups(model, Training(epochs=3, lr=0.05))
    fit(model, cross_entropy(model), digits, 3, 64, groups, 0, device, Meter(device))
    return model
