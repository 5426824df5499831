"""The fused passes against autograd of the plain formula, in float64, ties and clipping edges included."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seam.quant import kernels
from seam.quant.functional import _row_length, initial_steps, input_grids, integer_bounds, mix
from seam.quant.kernels import use_kernels
from seam.runtime.process import one_thread

BITS = (2, 3, 4, 5, 6)


class _Round(torch.autograd.Function):
    """Rounding with a straight-through gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def plain_mixture(x, steps, weights, bounds):
    """The formula as a reader would write it, differentiated by autograd."""
    y = torch.zeros_like(x)
    for b in range(len(weights)):
        s = steps[b].reshape(-1, *[1] * (x.dim() - 1)) if steps.dim() == 2 else steps[b]
        v, n, p = x / s, bounds[0, b], bounds[1, b]
        clipped = torch.where(
            v <= n, n, torch.where(v >= p, p, v)
        )  # torch.clamp's gradient at an edge varies by version
        y = y + weights[b] * s * _Round.apply(clipped)
    return y


def problem(per_channel, signed, dtype=torch.float64, shape=(4, 6, 3, 3)):
    generator = torch.Generator().manual_seed(0)
    # Multiples of an eighth with power-of-two steps: many exact ties (x / s = k + 1/2) and exact clipping edges.
    x = torch.randint(-40, 41, shape, generator=generator).to(dtype) / 8
    steps = torch.tensor([1.0, 0.5, 0.25, 0.25, 0.125], dtype=dtype)
    if per_channel:
        steps = steps[:, None].repeat(1, shape[0]) * torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=dtype)
    weights = torch.softmax(torch.randn(5, generator=generator, dtype=dtype), 0)
    bounds = integer_bounds(BITS, signed).to(dtype)
    g = torch.randn(shape, generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (x, steps.contiguous(), weights)], bounds, g


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_gradients_equal_autograd_of_the_formula(per_channel, signed):
    use_kernels("eager")
    inputs, bounds, g = problem(per_channel, signed)
    expected = plain_mixture(*inputs, bounds)
    wanted = torch.autograd.grad(expected, inputs, g)
    actual = mix(*inputs, bounds)
    found = torch.autograd.grad(actual, inputs, g)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weight", [None, 0.75])
@pytest.mark.parametrize("per_channel", [True, False])
def test_one_bit_width(per_channel, weight):
    """A plain quantizer, and a mixture of a single copy, whose weight has a gradient too."""
    use_kernels("eager")
    (x, steps, _), bounds, g = problem(per_channel, signed=True)
    steps, bounds = steps[1:2].detach().requires_grad_(), bounds[:, 1:2]
    one = torch.tensor([weight or 1.0], dtype=x.dtype, requires_grad=True)
    expected = plain_mixture(x, steps, one, bounds)
    wanted = torch.autograd.grad(expected, (x, steps, one), g)
    inputs = (x, steps) if weight is None else (x, steps, one)
    actual = mix(x, steps, None if weight is None else one, bounds)
    found = torch.autograd.grad(actual, inputs, g)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, wanted[: len(inputs)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.5), (0.0, float("inf")), (-1.0, 1.0)])
@pytest.mark.parametrize("signed", [True, False])
def test_limits_clamp_first(signed, low, high):
    use_kernels("eager")
    inputs, bounds, g = problem(False, signed)
    x, *rest = inputs
    # Between the limits of the activation and the clipping of each bit-width, both ways round.
    assert (x == high).any() or high == float("inf")
    clamped = torch.nn.functional.hardtanh(x, low, high)
    expected = plain_mixture(clamped, *rest, bounds)
    actual = mix(x, *rest, bounds, torch.tensor([low, high], dtype=x.dtype))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    wanted, found = torch.autograd.grad(expected, inputs, g), torch.autograd.grad(actual, inputs, g)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_and_summed_in_float32(dtype):
    use_kernels("eager")
    inputs, bounds, g = problem(True, True, torch.float32)
    with torch.no_grad():
        inputs[0] *= 1 + 2**-6  # off the grid
    half, same = inputs[0].detach().to(dtype).requires_grad_(), inputs[0].detach().to(dtype).float().requires_grad_()
    actual, expected = mix(half, *inputs[1:], bounds), mix(same, *inputs[1:], bounds)
    assert actual.dtype == dtype
    assert torch.equal(actual, expected.to(dtype))
    found = torch.autograd.grad(actual, (half, *inputs[1:]), g.to(dtype))
    wanted = torch.autograd.grad(expected, (same, *inputs[1:]), g.to(dtype).float())
    assert [x.dtype for x in found] == [dtype, torch.float32, torch.float32]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.float(), b.to(a.dtype).float())


def test_the_cases_hold_ties_and_edges():
    (x, steps, _), bounds, _ = problem(per_channel=False, signed=True)
    v = x / steps[0]
    assert ((v - v.floor()) == 0.5).any()
    assert (v == bounds[0, 0]).any() and (v == bounds[1, 0]).any()


@pytest.mark.parametrize("compiler", ["packaged", "jitted"])
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("limits", [None, (0.0, 1.5)])
@pytest.mark.parametrize("per_channel", [True, False])
# Several rows a channel (4608 = 3 x 1536 elements), rows with a tail, rows shorter than a register, a prime count.
@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 512, 3, 3), (4, 100), (4, 1, 3, 3), (4, 2053)])
def test_compiled_equals_eager(per_channel, shape, limits, width, compiler, monkeypatch):
    """Both ways of compiling: ahead of time, as for a CPU, and by torch.compile, as for a GPU."""
    if compiler == "jitted":
        monkeypatch.setattr(kernels, "_packaged", lambda name, width: kernels._jitted(name, width, "cpu"))
    (x, steps, weights), bounds, g = problem(per_channel, True, torch.float32, shape)
    steps, bounds = steps[:width].detach().requires_grad_(), bounds[:, :width]  # bounds in another layout, too
    inputs = [x, steps, weights][: 2 if width == 1 else 3]
    limits = limits and torch.tensor(limits)
    results = []
    for mode in ("eager", "compiled"):
        kind, _ = use_kernels(mode, (width,))
        assert kind == mode
        if mode == "compiled" and (per_channel or x.numel() % 2053):
            monkeypatch.setattr(kernels, "PASSES", {})  # nothing but kernels may run; a single row has none
        y = mix(x, steps, weights if width > 1 else None, bounds, limits)
        results.append((y, *torch.autograd.grad(y, inputs, g)))
    monkeypatch.undo()
    use_kernels("eager")
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "channels", "length"),
    [(9, 96, 9), (4608, 512, 1536), (2**20, 1, 2048), (2050, 1, 1025), (2053, 64, 2053), (32, 1, 16), (1, 8, 1)],
)
def test_row_length(count, channels, length):
    assert _row_length(count, channels) == length


def test_layout_does_not_matter():
    use_kernels("eager")
    (x, steps, weights), bounds, g = problem(per_channel=True, signed=True)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    a, b = mix(x, steps, weights, bounds), mix(last, steps, weights, bounds)
    assert b.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(a, b)
    # A gradient in another layout than the input's.
    torch.testing.assert_close(
        torch.autograd.grad(a, x, g)[0],
        torch.autograd.grad(b, last, g.contiguous())[0],
    )


def test_auto_falls_back_with_one_warning(monkeypatch, caplog):
    use_kernels("eager")

    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(kernels, "_packaged", broken)
    kind, _ = use_kernels("auto")
    assert kind == "eager"
    assert [r.message for r in caplog.records if "several times slower" in r.message]
    with pytest.raises(RuntimeError, match="no C"):
        use_kernels("compiled")


def test_torch_compiles_for_the_gpu_alone(monkeypatch):
    made = []

    def jitted(*asked):
        made.append(asked)
        return lambda *args: pytest.fail("a kernel of the GPU was given tensors of the CPU")

    monkeypatch.setattr(kernels, "_jitted", jitted)
    assert use_kernels("compiled", (1,), "cuda:1")[0] == "compiled"
    assert made == [("forward", 1, "cuda:1"), ("backward", 1, "cuda:1")]
    (x, steps, _), bounds, _ = problem(True, True, torch.float32)
    mix(x, steps[:1], None, bounds[:, :1])
    use_kernels("eager")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_initial_steps_are_near_the_best(bits):
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))
    bounds = integer_bounds([bits], signed=True)

    def error(step):
        return ((x / step).clamp(*bounds[:, 0].tolist()).round() * step - x).square().mean().item()

    found = error(initial_steps(x, bounds)[0, 0])
    best = min(error(s) for s in torch.linspace(0.005, 2.0, 2000).tolist())
    assert found <= 1.1 * best


def test_initial_steps_of_a_dead_channel_are_positive():
    assert (initial_steps(torch.zeros(3, 8), integer_bounds(BITS, True)) > 0).all()


def plain_steps(x, bounds):
    """The search as a reader would write it: of all candidates the first of least error."""
    best = torch.empty(bounds.shape[1], len(x))
    for b, (low, high) in enumerate(bounds.T.tolist()):
        reach = x.amax(1) / high
        if low < 0:
            reach = torch.maximum(reach, x.amin(1) / low)
        reach, least = reach.clamp(min=1e-8), torch.full((len(x),), float("inf"))
        for fraction in torch.linspace(1.0, 0.15, 24).tolist():
            steps = reach * fraction
            error = (torch.round((x / steps[:, None]).clamp(low, high)) * steps[:, None] - x).square().sum(1)
            best[b] = torch.where(error < least, steps, best[b])
            least = torch.minimum(error, least)
    return best


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(1, 16386), (3, 9), (37, 258), (8, 4608)])
def test_initial_steps_equal_a_plain_loop_bit_for_bit(shape, signed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).abs() if not signed else torch.randn(shape, generator=generator)
    x[-1] = x[-1].clamp(-0.5, 0.5) * (torch.arange(shape[1]) % 2)  # half of them zeros
    if len(x) > 2:
        x[1], x[2] = 0.0, 1.0  # equal errors of several candidates
    bounds = integer_bounds(BITS, signed)
    with one_thread():
        expected = plain_steps(x, bounds)
    assert torch.equal(initial_steps(x, bounds), expected)


ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "none": lambda x: x, "all below 0": lambda x: -1 - x.abs()}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_ranges_of_inputs_are_near_the_best_of_all(name):
    """Against every zero point and 400 steps; where none is worth a quarter of the error, the range is as ever."""
    x = ACTIVATIONS[name](torch.randn(1, 2048, generator=torch.Generator().manual_seed(1)))
    ranges, steps = input_grids(x, BITS)
    assert ranges.shape == (2, len(BITS)) and steps.shape == (len(BITS),)
    for b, bits in enumerate(BITS):

        def error(step, low, most=2.0**bits - 1):
            return ((x / step).clamp(low, low + most).round() * step - x).square().mean().item()

        low, high = ranges[:, b].tolist()
        assert high - low == 2**bits - 1
        tried = torch.linspace(0.1, 3.0, 400) * x.abs().max() / 2 ** (bits - 1)
        least = [
            min(error(step, -zero) for step in tried.tolist()) for zero in range(0, 2**bits, max(1, 2**bits // 16))
        ]
        plain, found = least[0 if x.min() >= 0 else len(least) // 2], error(steps[b], low)
        if name in ("relu", "none"):
            assert low == (0 if name == "relu" else -(2 ** (bits - 1))) and found <= 1.1 * plain
            assert min(least) > 0.7 * plain
        else:
            assert found <= 1.25 * min(least) and found < 0.8 * plain


class _Threads(TorchDispatchMode):
    """Notes in how many threads the divisions are computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.div and args[0].shape == (4, 9):
            self.seen.add(torch.get_num_threads())
        return func(*args, **(kwargs or {}))


def test_initial_steps_compute_in_one_thread_and_give_the_others_back():
    """Operations so small take up to twenty times as long in two threads where one of two cores is busy."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with _Threads() as noted:
            initial_steps(torch.rand(4, 9), integer_bounds(BITS, True)[:, :2], candidates=3)
        assert noted.seen == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
