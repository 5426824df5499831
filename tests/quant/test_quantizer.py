import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seam.errors import SeamError
from seam.models.find import find_layers
from seam.quant.apply import calibrate, quantize
from seam.quant.functional import initial_steps, integer_bounds
from seam.quant.kernels import use_kernels
from seam.quant.mixture import Mixture
from seam.quant.quantizer import Quantizer, tensor_samples, weight_quantizer


@pytest.fixture(autouse=True)
def eager():
    use_kernels("eager")


class Small(nn.Module):
    """Four layers, the middle two searchable; timm's classifier interface."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 3)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.two(torch.relu(self.one(x)))
        return self.head(x.mean((2, 3)))


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 1, 8, 8, generator=generator), torch.zeros(16, dtype=torch.long)) for _ in range(count)]


@pytest.mark.parametrize("bits", [2, 3, 6, 8])
def test_a_quantized_weight_has_at_most_two_to_the_bits_levels(bits):
    torch.manual_seed(0)
    model = quantize(Small(), {"one": (bits, 8)})
    weight = model.one.weight
    for channel in weight.detach():
        assert len(channel.unique()) <= 2**bits
    assert len(weight.detach()[0].unique()) > 2 ** (bits - 1) or bits > 5


def test_inputs_after_relu_are_unsigned_and_others_signed():
    torch.manual_seed(0)
    model = quantize(Small(), dict.fromkeys(("stem", "one", "head"), (4, 4)))
    calibrate(model, batches())
    signed = {name: getattr(model, name).input_quantizer.signed for name in ("stem", "one", "head")}
    assert signed == {"stem": True, "one": False, "head": True}


def test_inputs_with_little_below_zero_get_a_zero_point_that_keeps_zero_exact():
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    for activation in (F.gelu, F.silu, F.hardswish):
        quantizer = Quantizer(4, channels=None)
        quantizer.fit(activation(x))
        (low,), (high,) = quantizer.bounds.tolist()
        assert high - low == 15 and -4 <= low < 0, activation
        assert quantizer(torch.zeros(1)).item() == 0
        assert len(quantizer(activation(x)).unique()) == 16


def test_calibration_sees_unquantized_inputs_and_switches_quantizers_back_on():
    torch.manual_seed(0)
    model = quantize(Small(), {"one": (8, 2)})
    with torch.no_grad():
        model.one.input_quantizer.log_step.fill_(5.0)  # absurd: everything rounds to zero
    calibrate(model, batches())
    assert model.one.input_quantizer.log_step.exp().item() < 2
    assert model.one.input_quantizer.enabled


def test_eight_bits_hardly_change_the_output():
    torch.manual_seed(0)
    model = Small().eval()
    x = batches(1)[0][0]
    before = model(x)
    quantize(model, dict.fromkeys(("stem", "one", "two", "head"), (8, 8)))
    calibrate(model, batches())
    assert (model(x) - before).abs().max() < 0.05 * before.abs().max()


def test_quantizers_learn():
    torch.manual_seed(0)
    model = quantize(Small(), {"one": (3, 3)})
    calibrate(model, batches())
    model(batches(1)[0][0]).square().sum().backward()
    assert model.one.input_quantizer.log_step.grad.abs().sum() > 0
    weight_quantizer = model.one.parametrizations.weight[0]
    assert weight_quantizer.log_step.grad.abs().sum() > 0
    assert model.one.parametrizations.weight.original.grad.abs().sum() > 0


def test_the_step_of_the_images_is_not_learned_and_takes_no_gradient_of_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    layers = find_layers(model, (3, 8, 8))
    quantize(model, {layer.name: (8, 8) for layer in layers}, layers)
    x = torch.rand(2, 3, 8, 8)
    calibrate(model, [(x, None)])
    model(x).square().sum().backward()
    assert model[0].input_quantizer.log_step.grad is None
    assert model[2].input_quantizer.log_step.grad is not None
    assert model[0].parametrizations.weight[0].log_step.grad is not None
    model(x.requires_grad_()).square().sum().backward()
    assert model[0].input_quantizer.log_step.grad is not None


def test_unknown_layer_is_named():
    with pytest.raises(SeamError, match="no layer nowhere"):
        quantize(Small(), {"nowhere": (4, 4)})


def mixture():
    torch.manual_seed(0)
    model = Small()
    layers = find_layers(model, (1, 8, 8))
    net = Mixture(model, layers, (2, 4, 6))
    net.calibrate(batches())
    return net


def quantized():
    torch.manual_seed(0)
    model = quantize(Small(), {"one": (3, 3), "two": (4, 4)})
    calibrate(model, batches())
    return model


@pytest.mark.parametrize("make", [mixture, quantized])
def test_a_step_under_autocast_is_near_one_in_full_precision(make):
    """What a GPU computes in bfloat16 by default, on the CPU."""

    def gradients(enabled):
        net = make().train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = net(batches(1)[0][0])
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        out.float().square().mean().backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    half, full = gradients(True), gradients(False)
    assert half.keys() == full.keys() and any("step" in name for name in full)
    for name, wanted in full.items():
        assert half[name].dtype == torch.float32
        assert (half[name] - wanted).norm() < 0.1 * wanted.norm() + 1e-4, name


def test_a_decided_mixture_equals_the_quantized_model():
    net = mixture()
    with torch.no_grad():
        net.weight_logits[:, 1] = 60.0
        net.input_logits[:, 2] = 60.0
    torch.manual_seed(0)
    plain = quantize(Small(), {"stem": (8, 8), "one": (4, 6), "two": (4, 6), "head": (8, 8)}).eval()
    for name in ("stem", "one", "two", "head"):
        getattr(plain, name).input_quantizer.enabled = False
    calibrate(plain, batches())
    net.eval()
    x = batches(1)[0][0]
    difference = (net(x) - plain(x)).abs().max()
    # Steps of the inputs are fitted to slightly different samples (weights quantized or mixed): near, not equal.
    assert difference < 0.05 * plain(x).abs().max()


def test_weights_of_a_decided_mixture_are_exact():
    net = mixture()
    with torch.no_grad():
        net.weight_logits[:, 1] = 200.0
    net.refresh()
    quantizer = Quantizer(4, channels=8)
    original = net.model.one.parametrizations.weight.original
    quantizer.fit(original.detach().flatten(1))
    torch.testing.assert_close(net.model.one.weight, quantizer(original))


def test_expected_cost_and_entropy():
    net = mixture()
    table = torch.rand(2, 3, 3)
    net.refresh()
    torch.testing.assert_close(net.expected(table), table.mean((1, 2)).sum())
    torch.testing.assert_close(net.entropy(), torch.tensor(3.0).log2())
    with torch.no_grad():
        net.weight_logits[:, 0] = net.input_logits[:, 2] = 100.0
    net.refresh()
    torch.testing.assert_close(net.expected(table), table[:, 0, 2].sum())
    assert net.entropy() < 1e-6


def test_temperature_sharpens():
    net = mixture()
    with torch.no_grad():
        net.weight_logits[:, 0] = 1.0
    net.refresh()
    warm = net.entropy()
    net.temperature = 0.1
    net.refresh()
    assert net.entropy() < warm
    assert net.preferences().shape == (2, 3, 3)


@pytest.mark.parametrize("count", [16385, 64 * 16 * 64, 256 * 16 * 49])
def test_samples_of_an_activation_are_one_drawn_in_each_equal_part(count):
    found = tensor_samples(torch.arange(count, dtype=torch.float64).view(1, -1))
    assert found.shape == (1, 16386) and found[0, -2:].tolist() == [0, count - 1]
    drawn, part = found[0, :-2], count / 16384
    number = torch.arange(16384)
    assert (drawn >= (number * part).floor()).all() and (drawn <= (number + 1) * part).all()
    assert torch.equal(found, tensor_samples(torch.arange(count, dtype=torch.float64)))


def test_samples_do_not_alias_with_the_order_of_the_elements():
    """Zeros all about each image: 16384 evenly spaced elements would be nothing but zeros."""
    x = torch.zeros(64, 64, 8, 8)
    x[:, :, 1:7, 1:7] = 1.0
    assert tensor_samples(x).mean().item() == pytest.approx(36 / 64, abs=0.01)


def test_the_extremes_are_always_among_the_samples():
    x = torch.zeros(64, 16, 8, 8)
    x[3, 2, 1, 0], x[60, 15, 7, 6] = -3.0, 5.0
    samples = tensor_samples(x)
    assert samples.min().item() == -3 and samples.max().item() == 5
    few = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tensor_samples(few)[0, :-2], few.flatten())


def test_steps_of_a_weight_are_fitted_to_all_its_elements():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    net[1].weight.data[:, :, :, 1:] *= 4  # a column of small taps
    layers = find_layers(net, (3, 3, 3))
    wanted = initial_steps(net[1].weight.detach().reshape(4, 576), integer_bounds([3], True))
    quantizer = weight_quantizer(quantize(copy.deepcopy(net), {"1": (3, 3)}, layers)[1])
    assert torch.equal(quantizer.log_step, wanted.log())
    mixed = Mixture(copy.deepcopy(net), layers, (2, 3))
    assert torch.equal(mixed.weight_log_steps[1, :4], wanted[0].log())
