import pytest
import torch
from architectures import create
from torch import nn

from seam.calibration.rounding import SoftRounding, bake, soften
from seam.quant.apply import quantize
from seam.quant.kernels import use_kernels
from seam.quant.quantizer import weight_quantizer


@pytest.fixture
def layer():
    use_kernels("eager")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    quantize(model, {"0": (3, 8)})
    return model[0]


def integers(weight, quantizer):
    """Rounding to the nearest, spelled out."""
    step = quantizer.log_step.detach().exp().view(-1, 1, 1, 1)
    return (weight / step).clamp(-4, 3).round(), step


def test_it_starts_at_the_weight_itself_and_rounds_to_the_nearest(layer):
    weight, quantizer = layer.parametrizations.weight.original.detach().clone(), weight_quantizer(layer)
    nearest, step = integers(weight, quantizer)
    rounding = soften(layer)
    within = (weight / step > -4) & (weight / step < 3)
    assert within.float().mean() > 0.8
    torch.testing.assert_close(layer.weight[within], weight[within], atol=2e-3 * step.max().item(), rtol=0)
    assert torch.equal(rounding.integers(), nearest)
    rounding.decide(1.0)
    assert torch.equal(layer.weight, nearest * step)


def test_the_rectified_sigmoid_and_its_gradient(layer):
    rounding = soften(layer)
    with torch.no_grad():
        rounding.logits.copy_(torch.linspace(-6, 6, rounding.logits.numel()).view_as(rounding.logits))
    expected = (1.2 / (1 + torch.exp(-rounding.logits.detach())) - 0.1).clamp(0, 1)
    torch.testing.assert_close(rounding.up(), expected)
    other = SoftRounding(torch.rand(5, 3), weight_quantizer_before(5))
    other = other.double()
    scores = torch.randn(5, 3, dtype=torch.float64)
    (other(None) * scores).sum().backward()
    with torch.no_grad():
        for place in ((0, 0), (2, 1), (4, 2)):
            ends = []
            for move in (1e-6, -1e-6):
                other.logits[place] += move
                ends.append((other(None) * scores).sum())
                other.logits[place] -= move
            assert other.logits.grad[place].item() == pytest.approx(((ends[0] - ends[1]) / 2e-6).item(), abs=1e-6)


def weight_quantizer_before(channels):
    model = nn.Sequential(nn.Linear(3, channels))
    quantize(model, {"0": (4, 8)})
    return weight_quantizer(model[0])


def test_the_most_decided_are_rounded_for_good_first(layer):
    rounding = soften(layer)
    size, up = rounding.logits.detach().abs().flatten(), rounding.up().detach().flatten()
    rounding.decide(0.4)
    order = size.argsort(descending=True)
    count = round(0.4 * len(order))
    decided, open_ = order[:count], order[count:]
    now = rounding.up()
    assert torch.equal(now.flatten()[decided], (up[decided] >= 0.5).float())
    assert torch.equal(now.flatten()[open_], up[open_])
    now.square().sum().backward()
    gradient = rounding.logits.grad.flatten()
    assert not gradient[decided].any() and gradient[open_].all()
    rounding.decide(0.0)
    assert torch.equal(rounding.up(), now)


def test_the_stored_weight_gives_the_learned_integers_exactly(layer):
    quantizer, step = weight_quantizer(layer), weight_quantizer(layer).log_step.detach().exp().view(-1, 1, 1, 1)
    nearest, _ = integers(layer.parametrizations.weight.original.detach(), quantizer)
    rounding = soften(layer)
    with torch.no_grad():
        rounding.logits.copy_(torch.randn(rounding.logits.shape, generator=torch.Generator().manual_seed(1)))
    learned = rounding.integers().clone()
    assert not torch.equal(learned, nearest)
    bake(layer, rounding, quantizer)
    assert weight_quantizer(layer) is quantizer
    torch.testing.assert_close(layer.weight / step, learned)
    assert torch.equal((layer.weight / step).round(), learned) and learned.min() >= -4 and learned.max() <= 3


def test_a_weight_that_is_standardised_keeps_its_quantizer():
    model = create("resnetv2_std")
    quantize(model, {"stages.1.blocks.0.conv1": (4, 4)})
    assert soften(model.stages[1].blocks[0].conv1) is None
