"""Fake quantization as fused element-wise passes: the plain quantizer (LSQ) and the mixture over bit-widths.

For bit-widths b with steps s_b, integer ranges [n_b, p_b] and weights c_b (softmax of logits; a single 1 for the plain
quantizer):

    y = sum_b c_b s_b q_b,      q_b = round(clamp(x / s_b, n_b, p_b))
    dL/dx   = dL/dy sum_b c_b inside_b,      inside_b = [n_b < x / s_b < p_b]        (straight-through)
    dL/ds_b = c_b sum_x dL/dy (q_b - inside_b x / s_b)                               (LSQ, Esser et al. 2020, eq. 3)
    dL/dc_b = s_b sum_x dL/dy q_b

Forward is one pass (read x, write y), backward is one (read x and dL/dy, write dL/dx, reduce the rest): only x is
kept. The passes are plain tensor code compiled by `torch.compile`; without a compiler they run eagerly, several times
slower and with the same result up to rounding.
"""

import logging
import time

import torch
import torch.fx.experimental._config
from torch import Tensor

log = logging.getLogger(__name__)


def _forward_tensor(x: Tensor, table: Tensor) -> Tensor:
    """x [N]; table [4, B] = steps, weights, lower, upper -> y [N]."""
    y = torch.zeros_like(x)
    for b in range(table.shape[1]):
        s, c, n, p = table[0, b], table[1, b], table[2, b], table[3, b]
        y = y + (c * s) * torch.round(torch.clamp(x * (1.0 / s), n, p))
    return y


def _backward_tensor(x: Tensor, g: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """x, g [N] -> dL/dx [N], sums [2, B] = dL/ds, dL/dc."""
    dx = torch.zeros_like(x)
    ds, dc = [], []
    for b in range(table.shape[1]):
        s, c, n, p = table[0, b], table[1, b], table[2, b], table[3, b]
        v = x * (1.0 / s)
        q = torch.round(torch.clamp(v, n, p))
        inside = ((v > n) & (v < p)).to(x.dtype)
        dx = dx + c * inside
        ds.append(c * (g * (q - inside * v)).sum())
        dc.append(s * (g * q).sum())
    return g * dx, torch.stack([torch.stack(ds), torch.stack(dc)])


def _forward_channel(x: Tensor, steps: Tensor, table: Tensor) -> Tensor:
    """x [C, K]; steps [B, C]; table [3, B] = weights, lower, upper -> y [C, K]."""
    y = torch.zeros_like(x)
    for b in range(table.shape[1]):
        s, c, n, p = steps[b][:, None], table[0, b], table[1, b], table[2, b]
        y = y + (c * s) * torch.round(torch.clamp(x * (1.0 / s), n, p))
    return y


def _backward_channel(x: Tensor, g: Tensor, steps: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """x, g [C, K] -> dL/dx [C, K], sums [2, B, C] = dL/ds, and each channel's part of dL/dc."""
    dx = torch.zeros_like(x)
    ds, dc = [], []
    for b in range(table.shape[1]):
        s, c, n, p = steps[b][:, None], table[0, b], table[1, b], table[2, b]
        v = x * (1.0 / s)
        q = torch.round(torch.clamp(v, n, p))
        inside = ((v > n) & (v < p)).to(x.dtype)
        dx = dx + c * inside
        ds.append(c * (g * (q - inside * v)).sum(1))
        dc.append(s[:, 0] * (g * q).sum(1))
    return g * dx, torch.stack([torch.stack(ds), torch.stack(dc)])


_EAGER = (_forward_tensor, _backward_tensor, _forward_channel, _backward_channel)
_kernels = _EAGER
_mode = "eager"


def use_kernels(mode: str = "auto", widths: tuple[int, ...] = (1,)) -> tuple[str, float]:
    """Choose the kernels of this process: 'compiled', 'eager', or 'auto' (compiled where a compiler works).

    `widths`: the numbers of bit-widths that will be mixed (1: a plain quantizer); their kernels are made ready now.

    Returns the kind in force, 'compiled' or 'eager', and the seconds spent compiling, or loading from Inductor's
    on-disk cache when an earlier process on this machine has compiled them.
    """
    global _kernels, _mode
    if mode == "eager":
        _kernels, _mode = _EAGER, "eager"
        return _mode, 0.0
    start = time.perf_counter()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime" on each CPU machine
    try:
        # Sizes that happen to be equal must not be taken for one: each coincidence would compile the kernels again.
        torch.fx.experimental._config.use_duck_shape = False
        compiled = tuple(torch.compile(kernel, dynamic=True, fullgraph=True) for kernel in _EAGER)
        _warm_up(compiled, widths)
    except Exception as error:  # Inductor wraps what a missing or broken compiler raises in many types
        if mode == "compiled":
            raise
        reason = str(error).strip().splitlines()[0]
        log.warning(
            "torch.compile does not work here (%s): eager kernels, a search step is several times slower", reason
        )
        _kernels, _mode = _EAGER, "eager"
    else:
        _kernels, _mode = compiled, "compiled"
    return _mode, time.perf_counter() - start


def _warm_up(kernels: tuple, widths: tuple[int, ...]) -> None:
    """Run each kernel for the given numbers of bit-widths, so that all compilation is done here and is counted.

    A reduction is compiled once for rows of up to 4096 elements and once for longer ones. The sizes are large enough
    for the generated code to be parallel.
    """
    forward_tensor, backward_tensor, forward_channel, backward_channel = kernels
    with torch.no_grad():
        for width in widths:
            for rows, columns in ((512, 4608), (512, 576)):
                x, steps, table = torch.zeros(rows, columns), torch.ones(width, rows), torch.ones(3, width)
                forward_channel(x, steps, table)
                backward_channel(x, x.clone(), steps, table)
            for count in (2**21, 4096):
                x, table = torch.zeros(count), torch.ones(4, width)
                forward_tensor(x, table)
                backward_tensor(x, x.clone(), table)


def _dense(x: Tensor) -> Tensor:
    """x itself if its elements fill one block with dim 0 outermost, else a contiguous copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _bare(x: Tensor, *size: int) -> Tensor:
    """The elements of a dense tensor in memory order, as a tensor that is neither a view nor part of a graph.

    The compiled code is specialised on such properties of its inputs: each new one would compile it again.
    """
    stride = (1,) if len(size) == 1 else (size[1], 1)
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage(), x.storage_offset(), size, stride)


class _Mix(torch.autograd.Function):
    """y = sum_b weights_b Q_b(x) for per-tensor steps [B] or per-channel steps [B, C] (channels: dim 0 of x)."""

    @staticmethod
    def forward(ctx, x: Tensor, steps: Tensor, weights: Tensor, bounds: Tensor) -> Tensor:
        x, steps = _dense(x), steps.contiguous()
        ctx.save_for_backward(x, steps, weights, bounds)
        if steps.dim() == 1:
            y = _kernels[0](_bare(x, x.numel()), torch.cat([steps[None], weights[None], bounds]))
        else:
            rows = x.shape[0], x.numel() // x.shape[0]
            y = _kernels[2](_bare(x, *rows), _bare(steps, *steps.shape), torch.cat([weights[None], bounds]))
        return y.as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, steps, weights, bounds = ctx.saved_tensors
        if g.stride() != x.stride():
            g = torch.empty_like(x).copy_(g)
        if steps.dim() == 1:
            table = torch.cat([steps[None], weights[None], bounds])
            dx, sums = _kernels[1](_bare(x, x.numel()), _bare(g, x.numel()), table)
            ds, dc = sums[0], sums[1]
        else:
            rows = x.shape[0], x.numel() // x.shape[0]
            table = torch.cat([weights[None], bounds])
            dx, sums = _kernels[3](_bare(x, *rows), _bare(g, *rows), _bare(steps, *steps.shape), table)
            ds, dc = sums[0], sums[1].sum(1)
        return dx.as_strided(x.shape, x.stride()), ds, dc, None


def mix(x: Tensor, steps: Tensor, weights: Tensor, bounds: Tensor) -> Tensor:
    """Mixture of B fake-quantized copies of x, in one pass.

    Args:
        x: any shape; with per-channel steps dim 0 is the channel.
        steps: positive, [B] (one for the tensor) or [B, C] (one a channel).
        weights: [B], of the copies; softmax of logits in a search, ones for a plain quantizer.
        bounds: [2, B], least and greatest integer of each bit-width.
    """
    return _Mix.apply(x, steps, weights, bounds)


def integer_bounds(bits: tuple[int, ...] | list[int], signed: bool) -> Tensor:
    """[2, B] least and greatest integers: [-2^(b-1), 2^(b-1) - 1] signed, [0, 2^b - 1] unsigned."""
    if signed:
        return torch.tensor([[-(2.0 ** (b - 1)) for b in bits], [2.0 ** (b - 1) - 1 for b in bits]])
    return torch.tensor([[0.0 for _ in bits], [2.0**b - 1 for b in bits]])


@torch.no_grad()
def initial_steps(x: Tensor, bounds: Tensor, candidates: int = 24) -> Tensor:
    """Steps of least squared error, per row and bit-width, by a grid search.

    Args:
        x: [C, K] samples, one row a channel (C = 1 for per-tensor steps).
        bounds: [2, B].

    Returns: [B, C] steps; a row of zeros gets a small positive step.
    """
    lower, upper = bounds[0], bounds[1]
    # The step that just covers the row's extremes; the best one is this or smaller.
    reach = torch.maximum(
        x.amax(1)[None] / upper[:, None], -x.amin(1)[None] / lower.abs().clamp(min=1e-9)[:, None] * (lower < 0)[:, None]
    )
    reach = reach.clamp(min=1e-8)  # [B, C]
    best, best_error = reach.clone(), torch.full_like(reach, float("inf"))
    for fraction in torch.linspace(1.0, 0.15, candidates).tolist():
        steps = reach * fraction
        for b in range(len(lower)):
            s = steps[b][:, None]
            error = (torch.round((x / s).clamp(lower[b], upper[b])) * s - x).square().sum(1)
            better = error < best_error[b]
            best[b] = torch.where(better, steps[b], best[b])
            best_error[b] = torch.where(better, error, best_error[b])
    return best
