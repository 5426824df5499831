"""Fake quantization as fused element-wise passes: the plain quantizer (LSQ) and the mixture over bit-widths.

For bit-widths b with steps s_b, integer ranges [n_b, p_b] and weights c_b (softmax of logits; a single 1 for the plain
quantizer):

    y = sum_b c_b s_b q_b,      q_b = round(clamp(x / s_b, n_b, p_b))
    dL/dx   = dL/dy sum_b c_b inside_b,      inside_b = [n_b < x / s_b < p_b]        (straight-through)
    dL/ds_b = c_b sum_x dL/dy (q_b - inside_b x / s_b)                               (LSQ, Esser et al. 2020, eq. 3)
    dL/dc_b = s_b sum_x dL/dy q_b

x may be clamped to limits first, as ReLU and ReLU6 do (`fused_activations`): in the same pass, with dL/dx 0 outside.

Forward is one pass (read x, write y), backward is one (read x and dL/dy, write dL/dx, reduce the rest): only x is
kept. The passes are in `seam.quant.kernels`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from seam.quant.kernels import run
from seam.runtime.process import one_thread

_PAYS = 0.75  # what a zero point leaves of the squared error, at most


def _dense(x: Tensor) -> Tensor:
    """x itself if its elements fill one block with dim 0 outermost, else a contiguous copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _like(g: Tensor, x: Tensor) -> Tensor:
    """g with its elements in the memory order of a dense x of its shape; strides along axes of length 1 say nothing."""
    if g.stride() == x.stride() or (g.is_contiguous() and x.is_contiguous()):
        return g
    return torch.empty_like(x).copy_(g)


def _bare(x: Tensor, rows: int, length: int) -> Tensor:
    """The elements of a dense tensor in memory order, in rows, as a tensor that is neither a view nor part of a graph.

    `torch.compile` specialises code on such properties of its inputs: each new one would compile it again.
    """
    empty = torch.empty(0, dtype=x.dtype, device=x.device)
    return empty.set_(x.untyped_storage(), x.storage_offset(), (rows, length), (length, 1))


@lru_cache(maxsize=4096)
def _row_length(count: int, channels: int) -> int:
    """In rows of how many elements the `count` elements of each channel are handled: a divisor of `count`.

    At most 2048, which stay in a core's cache; if it can be, a multiple of 16, which fill a processor's registers.
    Two rows at least for kernels. A count without such a divisor, as a large prime, stays one row.
    """
    most = min(count if channels > 1 else count // 2, 2048)
    divisors = [k for k in range(most, min(count, 16) - 1, -1) if count % k == 0]
    return next((k for k in divisors if k % 16 == 0), divisors[0] if divisors else count)


class _Mix(torch.autograd.Function):
    """y = sum_b weights_b Q_b(x) for steps [B, C], one a channel (dim 0 of x), or [B, 1], one for the tensor.

    On small tensors the calls around the passes cost more than the passes: a plain quantizer makes few.
    """

    @staticmethod
    def forward(ctx, x: Tensor, steps: Tensor, weights: Tensor | None, bounds: Tensor, limits: Tensor) -> Tensor:
        x = _dense(x)
        ctx.save_for_backward(x, steps, weights, bounds, limits)
        rows, length = ctx.rows = _rows(x, steps.shape[1])
        ctx.inverse = _each(steps.reciprocal(), rows)
        # A copy: steps are part of a graph, and kernels must not be given tensors that are (see `_bare`).
        scale = _each(steps.clone() if weights is None else weights[:, None] * steps, rows)
        y = run("forward", len(steps), _bare(x, rows, length), limits, ctx.inverse, scale, bounds)
        return y.as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        x, steps, weights, bounds, limits = ctx.saved_tensors
        g = _like(g, x)
        bare = _bare(x, *ctx.rows), _bare(g, *ctx.rows)
        given = () if weights is None else (weights.clone(),)
        dx, sums = run("backward", len(steps), *bare, limits, ctx.inverse, bounds, *given)
        if ctx.rows[0] > steps.shape[1]:  # several rows a channel
            sums = sums.view(len(sums), *steps.shape, -1).sum(3)
        dx = dx.as_strided(x.shape, x.stride())
        if weights is None:
            return dx, sums[0], None, None, None
        return dx, weights[:, None] * sums[0], (steps * sums[1]).sum(1), None, None


def _rows(x: Tensor, channels: int) -> tuple[int, int]:
    length = _row_length(x.numel() // channels, channels)
    return x.numel() // length, length


def _each(values: Tensor, rows: int) -> Tensor:
    """[B, C] of the channels -> [B, rows] of their rows; contiguous and no view, like `_bare`."""
    width, channels = values.shape
    if channels == 1:
        return values.expand(width, rows).contiguous()
    if channels == rows:
        return values.contiguous()
    return values[:, :, None].expand(width, channels, rows // channels).reshape(width, rows)


def no_limits() -> Tensor:
    """[2], limits that clamp nothing."""
    return torch.tensor([-math.inf, math.inf])


def mix(x: Tensor, steps: Tensor, weights: Tensor | None, bounds: Tensor, limits: Tensor | None = None) -> Tensor:
    """Mixture of B fake-quantized copies of x, in one pass.

    Args:
        x: any shape; with per-channel steps dim 0 is the channel.
        steps: positive, [B] (one for the tensor) or [B, C] (one a channel).
        weights: [B], of the copies, softmax of logits in a search; None: B = 1, a plain quantizer.
        bounds: [2, B], least and greatest integer of each bit-width.
        limits: [2], what x is clamped to first; None: nothing.
    """
    if weights is not None and len(weights) == 1:
        return weights[0] * mix(x, steps, None, bounds, limits)
    if steps.dim() == 1:
        steps = steps[:, None]
    bounds = bounds.contiguous()  # as the kernels take it to be
    if limits is None:
        limits = no_limits().to(x.device)
    if x.dtype in (torch.bfloat16, torch.float16):  # autocast: too coarse to round and sum in
        return _Mix.apply(x.float(), steps, weights, bounds, limits).to(x.dtype)
    return _Mix.apply(x, steps, weights, bounds, limits)


def integer_bounds(bits: tuple[int, ...] | list[int], signed: bool) -> Tensor:
    """[2, B] least and greatest integers: [-2^(b-1), 2^(b-1) - 1] signed, [0, 2^b - 1] unsigned."""
    if signed:
        return torch.tensor([[-(2.0 ** (b - 1)) for b in bits], [2.0 ** (b - 1) - 1 for b in bits]])
    return torch.tensor([[0.0 for _ in bits], [2.0**b - 1 for b in bits]])


@torch.no_grad()
def initial_steps(x: Tensor, bounds: Tensor, candidates: int = 24) -> Tensor:
    """Steps of least squared error, per row and bit-width, by a grid search.

    Args:
        x: [C, ...] elements or samples, one row a channel (C = 1 for per-tensor steps).
        bounds: [2, B].

    Returns: [B, C] steps; a row of zeros gets a small positive step.
    """
    x = x.flatten(1)
    lower, upper = bounds[0], bounds[1]
    # The step that just covers the row's extremes; the best one is this or smaller.
    reach = torch.maximum(
        x.amax(1)[None] / upper[:, None], -x.amin(1)[None] / lower.abs().clamp(min=1e-9)[:, None] * (lower < 0)[:, None]
    )
    reach = reach.clamp(min=1e-8)  # [B, C]
    steps = _steps_within(reach, candidates)
    errors = _squared_errors(x, steps, bounds.expand(candidates, 2, -1))
    return steps.gather(0, errors.argmin(0, keepdim=True))[0]  # of equal errors the first, the widest step


@torch.no_grad()
def input_grids(x: Tensor, bits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Integer ranges [2, B] and steps [B] of least squared error for a layer's input, from samples x [1, K] of it.

    Unsigned if no sample is < 0, else signed, or [-z, 2^b - 1 - z] with a zero point z where that lowers the squared
    error by a quarter: GELU, SiLU and Hardswish leave little below 0, which few bits drop altogether (z = 0). Bhalgat
    et al. (2020, LSQ+) learn an offset; an integer one keeps 0 exact, which padding needs. A quarter, since integer
    hardware pays for a zero point with a term in each sum (our choice).
    """
    low, high = torch.aminmax(x)
    bounds = integer_bounds(list(bits), signed=bool(low < 0)).to(x.device)
    steps = initial_steps(x, bounds)
    if low >= 0:
        return bounds, steps[:, 0]
    levels = 2.0 ** torch.tensor(list(bits), device=x.device) - 1
    shifted = _steps_within(((high.clamp(min=0) - low) / levels).clamp(min=1e-8))
    zeros = torch.minimum((-low / shifted).round_(), levels)
    errors = _squared_errors(x, shifted[..., None], torch.stack([0 - zeros, levels - zeros], dim=1))
    least, best = errors[..., 0].min(0, keepdim=True)
    step, zero = shifted.gather(0, best)[0], zeros.gather(0, best)[0]  # [B]
    pays = least[0] < _PAYS * _squared_errors(x, steps[None], bounds[None])[0, :, 0]
    return torch.where(pays, torch.stack([0 - zero, levels - zero]), bounds), torch.where(pays, step, steps[:, 0])


def _steps_within(reach: Tensor, candidates: int = 24) -> Tensor:
    """[candidates, *reach.shape] steps to try: those that just cover the extremes, and smaller ones."""
    return reach * torch.linspace(1.0, 0.15, candidates).to(reach.device).view(-1, *[1] * reach.dim())


def _squared_errors(x: Tensor, steps: Tensor, bounds: Tensor) -> Tensor:
    """[N, B, C] squared errors of x [C, K] with steps [N, B, C] and integer ranges [N, 2, B]."""
    errors, error = torch.empty_like(steps), torch.empty_like(x)
    # Thousands of operations on little data: where a core is busy, two threads wait for each other at every one.
    with one_thread():
        for n, ranges in enumerate(bounds.tolist()):
            for b, (least, most) in enumerate(zip(*ranges, strict=True)):
                s = steps[n, b][:, None]
                torch.div(x, s, out=error).clamp_(least, most).round_().mul_(s).sub_(x).square_()
                errors[n, b] = error.sum(1)
    return errors
