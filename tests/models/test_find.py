"""The layers of a network and their multiply-accumulates, against torch's own counter."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from seam.models.find import find_layers, total_macs
from seam.policy.file import totals

# Convolutions with padding, groups and strides; attention, whose products of activations are no layer's.
MODELS = {
    "test_resnet": 160,
    "mobilenetv3_small_050": 96,
    "regnety_002": 96,
    "convnext_atto": 96,
    "vit_tiny_patch16_224": 224,
}


@pytest.mark.parametrize("name", MODELS)
def test_macs_and_bitops_are_those_of_torch_s_counter(name):
    size = (3, MODELS[name], MODELS[name])
    model = timm.create_model(name, num_classes=10).eval()
    layers = find_layers(model, size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, *size))
    counts = counter.get_flop_counts()  # twice the multiply-accumulates, by module and operator
    root = type(model).__name__
    macs = {layer.name: sum(counts[f"{root}.{layer.name}"].values()) // 2 for layer in layers}
    assert macs == {layer.name: layer.macs for layer in layers} and all(macs.values())
    products = {"convolution", "addmm", "mm"}
    every = sum(n for kind, n in counts["Global"].items() if kind.__name__.split(".")[0] in products)
    assert sum(layer.macs for layer in layers) == every // 2 == total_macs(model, size)
    bits = {layer.name: (2 + i % 5, 2 + i % 3) for i, layer in enumerate(layers)}
    bitops = sum(macs[x.name] * bits[x.name][0] * bits[x.name][1] for x in layers if not x.fixed)
    assert totals(layers, bits)["bitops_g"] == pytest.approx(bitops / 1e9)
