"""What holds for all quantizers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seam.quant.functional import integer_bounds, mix
from seam.quant.kernels import use_kernels
from seam.quant.quantizer import Quantizer

quick = settings(derandomize=True, deadline=None, max_examples=60, database=None)
widths = st.integers(2, 8)


@pytest.fixture(autouse=True, scope="module")
def eager():
    use_kernels("eager")


@st.composite
def inputs(draw, size=(1, 40)):
    """float64 values, many of them on rounding edges and beyond the range, and a step."""
    step = 2.0 ** draw(st.integers(-8, 4))
    values = draw(st.lists(st.integers(-1200, 1200), min_size=size[0], max_size=size[1]))
    x = torch.tensor(values, dtype=torch.float64) * step / 4  # exact multiples: ties and edges are hit
    if draw(st.booleans()):
        x = x + step * draw(st.floats(-0.2, 0.2))
    return x, step


def quantized(x, step, bits, signed):
    return mix(x, torch.tensor([step], dtype=x.dtype), None, integer_bounds([bits], signed).to(x.dtype))


@quick
@given(inputs(), widths, st.booleans())
def test_idempotent_monotone_in_range_and_near(drawn, bits, signed):
    x, step = drawn
    y = quantized(x, step, bits, signed)
    low, high = integer_bounds([bits], signed)[:, 0].tolist()
    assert torch.equal(quantized(y, step, bits, signed), y)
    assert (y[x.argsort()].diff() >= 0).all()
    levels = y / step
    assert torch.equal(levels, levels.round()) and low <= levels.min() and levels.max() <= high
    inside = (x >= low * step) & (x <= high * step)
    assert ((y - x).abs()[inside] <= step / 2).all()


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def reference(x, steps, weights, bounds):
    """The formula, for autograd."""
    y = torch.zeros_like(x)
    for b, s in enumerate(steps):
        v, low, high = x / s, bounds[0, b], bounds[1, b]
        y = y + weights[b] * s * _Round.apply(torch.where(v <= low, low, torch.where(v >= high, high, v)))
    return y


@quick
@given(inputs(), st.lists(widths, min_size=1, max_size=3, unique=True), st.booleans(), st.integers(0, 999))
def test_gradients_equal_autograd(drawn, bits, signed, seed):
    x, step = drawn
    generator = torch.Generator().manual_seed(seed)
    bounds = integer_bounds(bits, signed).to(x.dtype)
    steps = torch.tensor([step * 2.0**i for i in range(len(bits))], dtype=x.dtype)
    weights = torch.softmax(torch.randn(len(bits), generator=generator, dtype=x.dtype), 0)
    given_ = [t.clone().requires_grad_() for t in (x, steps, weights)]
    g = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    expected, actual = reference(*given_, bounds), mix(*given_, bounds)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(actual, given_, g), torch.autograd.grad(expected, given_, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * step * 1e3)


@quick
@given(inputs(size=(4, 40)), widths)
def test_a_fitted_quantizer_keeps_its_range_and_a_positive_step(drawn, bits):
    x = drawn[0].float()[None]
    quantizer = Quantizer(bits, channels=None)
    quantizer.fit(x)
    y = quantizer(x).detach()
    assert quantizer.log_step.isfinite().all() and y.isfinite().all()
    low, high = quantizer.bounds[:, 0].tolist()
    assert high - low == 2**bits - 1 and low <= 0 <= high and low == round(low)  # 0 stays exact
    assert (low < 0) == quantizer.signed and (not quantizer.signed or (x < 0).any())
    assert len(y.unique()) <= 2**bits
    assert y.abs().max() <= max(2.001 * x.abs().max(), 1e-7)
