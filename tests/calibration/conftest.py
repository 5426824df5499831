import copy
from types import SimpleNamespace

import pytest
import torch
from digit_training import network, trained

import seam.tool as tool
from seam.data.loaders import load
from seam.quant.kernels import use_kernels


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A network trained on digits, `quantized(budget)` copies of it, and images: `train`, `test`."""
    use_kernels("eager")
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("data")
    train, test = load("digits", root, "train"), load("digits", root, "test")
    model = network()
    trained(model, train, epochs=6)
    model.eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 8, 8)}

    def quantized(budget):
        return tool.quantize(copy.deepcopy(model), tool.search(model, budget=budget, method="uniform"))

    return SimpleNamespace(model=model, train=train, test=test, quantized=quantized)
