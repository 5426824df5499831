"""A dozen architectures of timm: their layers, a search step, and quantized models close to the original."""

import pytest
import torch
import torch.nn.functional as F
from architectures import MODELS, SIZE, create
from timm.layers import ScaledStdConv2d, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn.utils import parametrizations

from seam.errors import SeamError
from seam.models.build import build
from seam.models.features import capture_features, feature_count
from seam.models.find import classifier_layer, find_layers
from seam.models.shared_inputs import watch
from seam.policy.assign import assign
from seam.policy.budget import parse_budget
from seam.quant.apply import calibrate, quantize
from seam.quant.kernels import use_kernels
from seam.quant.mixture import Mixture
from seam.quant.quantizer import weight_quantizer
from seam.settings import Model
from seam.training.margin import MarginLoss

BITS = (2, 4, 6)


@pytest.fixture(autouse=True)
def eager():
    use_kernels("eager")


def images(count=4):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(0)), torch.arange(count)


@pytest.mark.parametrize("name", MODELS)
def test_a_search_step_reaches_every_layer(name):
    model = create(name)
    layers = find_layers(model, SIZE)
    assert MODELS[name][1] in [layer.name for layer in layers if not layer.fixed]
    net = Mixture(model, layers, BITS)
    x, y = images()
    net.calibrate([(x, y)])
    net.train()
    with capture_features(model) as features:
        loss = F.cross_entropy(net(x), y) + MarginLoss(10, feature_count(model))(features[-1], y)
    budget = parse_budget("w4a4", layers, BITS)
    (loss + net.expected(torch.tensor(budget.table).float())).backward()
    for parameter in (net.weight_logits, net.input_logits, net.weight_log_steps, net.input_log_steps):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
    assigned = assign(net.preferences(), net.names, BITS, [budget])
    assert 0.97 <= budget.cost(assigned) / budget.limit <= 1


@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_hardly_change_the_output_and_two_do(name):
    x, _ = images()
    with torch.no_grad():
        before = create(name)(x)
    changes = {}
    for bits in (8, 2):
        model = create(name)
        layers = find_layers(model, SIZE)
        quantize(model, {layer.name: (bits, bits) for layer in layers}, layers)
        calibrate(model, [(x, None)])
        with torch.no_grad():
            changes[bits] = ((model(x) - before).norm() / before.norm()).item()
    # Random weights: NFNet's change by 0.108 even with the steps of all elements, the others' by 0.06 at most.
    assert changes[8] < (0.12 if name == "test_nfnet" else 0.08) and changes[2] > 3 * changes[8]


def test_a_weight_that_the_parent_applies_gets_its_input_quantized():
    """BEiT computes F.linear(x, self.qkv.weight, bias) without calling qkv."""
    model, name = create("beit_base_patch16_224"), "blocks.0.attn.qkv"
    layers = find_layers(model, SIZE)
    assert [layer.name for layer in layers if layer.functional] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    quantize(model, {layer.name: (3, 3) for layer in layers}, layers)
    calibrate(model, [images()])
    inputs, outputs = [], []
    with (
        watch(model, [name], lambda _, x: inputs.append(x), lambda _, y, functional: outputs.append((y, functional))),
        torch.no_grad(),
    ):
        model(images()[0])
    layer = model.blocks[0].attn.qkv
    x, weight = layer.input_quantizer(inputs[0]), layer.weight.as_subclass(torch.Tensor)
    assert len(x.unique()) <= 8 < len(inputs[0].unique()) and len(weight[0].unique()) <= 8
    ((output, functional),) = outputs
    assert functional
    torch.testing.assert_close(output, F.linear(x, weight))  # the bias is zero at first


@pytest.mark.parametrize("kind", [StdConv2d, StdConv2dSame, ScaledStdConv2d])
def test_the_weight_of_a_standardising_convolution_is_quantized_after_its_standardisation(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(3, 8, 3, stride=2, bias=True), nn.ReLU(), kind(8, 4, 3, bias=True))
    x = images()[0]
    before = model(x)
    quantize(model, {"0": (8, 8), "2": (4, 8)})
    calibrate(model, [(x, None)])
    assert ((model(x) - before).norm() / before.norm()) < 0.15
    given = []
    conv = F.conv2d

    def seen(x, weight, *args):
        given.append(weight)
        return conv(x, weight, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", seen)
        model(x).square().sum().backward()
    assert all(len(channel.unique()) <= 16 for channel in given[1])
    torch.testing.assert_close(given[1], model[2].weight)
    assert model[2].parametrizations.weight.original.grad.abs().sum() > 0
    assert weight_quantizer(model[2]).bits == 4


def test_a_layer_called_with_a_keyword_and_several_times_is_quantized_each_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.inner = nn.Conv2d(4, 4, 3, padding=1)
            self.unused = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.inner(input=F.relu(self.inner(self.stem(x)))).mean((2, 3)))

    model = Twice()
    layers = find_layers(model, SIZE)
    assert [layer.name for layer in layers] == ["stem", "inner", "head"]
    assert layers[1].macs == 2 * 30 * 30 * 4 * 4 * 9
    quantize(model, {"inner": (4, 2)}, layers)
    calibrate(model, [images()])
    hook_inputs = []
    model.inner.register_forward_pre_hook(lambda _, a, k: hook_inputs.append([*a, *k.values()][0]), with_kwargs=True)
    model(images()[0])
    assert [len(x.unique()) <= 4 for x in hook_inputs] == [True, True]


def test_a_weight_with_a_parametrization_of_its_own_is_quantized_on_top():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), parametrizations.orthogonal(nn.Linear(4, 4)))
    plain = model[1].weight.detach().clone()
    quantize(model, {"1": (3, 8)})
    assert len(model[1].weight[0].unique()) <= 8
    assert 0 < (model[1].weight - plain).abs().max() < 0.3
    with pytest.raises(SeamError, match="layer 0: its weight is computed elsewhere"):
        quantize(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), {"0": (8, 8)})


def test_shared_weights_and_other_layers_are_refused_with_a_reason():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x)).mean((2, 3))

    with pytest.raises(SeamError, match="one and two share one weight"):
        find_layers(Shared(), SIZE)
    with pytest.raises(SeamError, match="layer 0 is a Conv1d"):
        quantize(nn.Sequential(nn.Conv1d(1, 1, 1)), {"0": (4, 4)})


def test_both_heads_are_fixed_and_features_are_the_first_one_s():
    model = create("deit_tiny_distilled_patch16_224")
    fixed = [layer.name for layer in find_layers(model, SIZE) if layer.fixed]
    assert fixed == ["patch_embed.proj", "head", "head_dist"]
    assert classifier_layer(model) is model.head
    with capture_features(model) as features, torch.no_grad():
        model(images()[0])
    assert features[-1].shape == (4, model.num_features)
    with pytest.raises(SeamError, match="no classifier"):
        classifier_layer(build(Model(name="test_vit"), 0, 3))


def test_excluded_layers_get_no_quantizer():
    model = create("test_convnext")
    quantize(model, {"stem.0": (32, 32), "head.fc": (8, 8)})
    assert not hasattr(model.stem[0], "input_quantizer") and weight_quantizer(model.stem[0]) is None


def test_a_layer_that_no_image_reaches_is_named():
    model = create("beit_base_patch16_224")
    quantize(model, {"blocks.0.attn.proj": (4, 4), "blocks.0.attn.qkv": (4, 4)})  # without layers: qkv looks unused
    seen = []
    with watch(model, ["blocks.0.attn.qkv"], lambda name, x: seen.append(name)):
        model(images()[0])
    with pytest.raises(SeamError, match="blocks.0.attn.qkv was not used"):
        calibrate(model, [images()])
