import pytest
import torch
from architectures import MODELS, SIZE, create
from torch import nn

from seam.calibration.blocks import find_units
from seam.models.find import find_layers
from seam.quant.apply import calibrate, quantize
from seam.quant.kernels import use_kernels


@pytest.fixture(autouse=True)
def eager():
    use_kernels("eager")


def quantized(model, size=SIZE, bits=(4, 4)):
    layers = find_layers(model, size)
    quantize(model, {layer.name: (8, 8) if layer.fixed else bits for layer in layers}, layers)
    x = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    calibrate(model, [(x, None)])
    return layers, x


UNITS = {  # some of each architecture's, with the modules behind them that belong to them
    "vit_tiny_patch16_224": (["blocks.0"], ["blocks.1", "norm"]),
    "swin_tiny_patch4_window7_224": (["layers.0.blocks.0"], ["layers.1.downsample"]),
    "test_convnext": (["stages.0.blocks.0", "stages.1.downsample.0"], ["stages.1.downsample.1"]),
    "tf_efficientnet_lite0": (["blocks.1.0"], ["conv_head", "bn2"]),
    "mobilenetv3_small_050": (["blocks.0.0"], ["conv_head", "act2"]),
    "regnetx_002": (["s1.b1"], ["s3.b2"]),
    "densenet121": (["features.denseblock1.denselayer1"], ["features.transition1.conv"]),
    "resnetv2_std": (["stages.1.blocks.0", "norm"],),
}


@pytest.mark.parametrize("name", MODELS)
def test_units_hold_each_layer_of_few_bits_once_and_compute_what_the_network_does(name):
    model = create(name)
    layers, x = quantized(model)
    units = find_units(model, SIZE)
    held = [layer for unit in units for layer in unit.layers]
    assert len(held) == len(set(held)) and {layer.name for layer in layers if not layer.fixed} <= {*held}
    for names in UNITS.get(name, ()):  # where one pixel is left a pooling is the identity and belongs to it, too
        assert any(unit.names[: len(names)] == names for unit in units)
    outputs = {}
    hooks = [
        model.get_submodule(unit.names[-1]).register_forward_hook(
            lambda _, a, y, key=unit.name: outputs.setdefault(key, y.clone())
        )
        for unit in units
    ]
    with torch.no_grad():
        model(x)
        for hook in hooks:
            hook.remove()
        before = None
        for unit in units:
            (inputs,) = unit.inputs(model, [x])
            (output,) = unit.run(model, [value.clone() for value in inputs])
            torch.testing.assert_close(output, outputs[unit.name])
            assert unit.chained == (before is not None and len(inputs) == 1 and torch.equal(before, inputs[0]))
            before = output


def test_layers_of_eight_bits_alone_are_no_unit():
    model = create("tf_efficientnet_lite0")
    quantized(model, bits=(8, 8))
    assert find_units(model, SIZE) == []


def test_a_layer_that_is_called_twice_is_left_out_and_its_neighbours_are_not():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.act, self.head = nn.ReLU(), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.act(self.last(self.inner(self.inner(self.stem(x))))).mean((2, 3)))

    model = Twice()
    quantized(model)
    assert [unit.names for unit in find_units(model, SIZE)] == [["last", "act"]]
