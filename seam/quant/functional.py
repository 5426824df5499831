"""Fake quantization as fused element-wise passes: the plain quantizer (LSQ) and the mixture over bit-widths.

For bit-widths b with steps s_b, integer ranges [n_b, p_b] and weights c_b (softmax of logits; a single 1 for the plain
quantizer):

    y = sum_b c_b s_b q_b,      q_b = round(clamp(x / s_b, n_b, p_b))
    dL/dx   = dL/dy sum_b c_b inside_b,      inside_b = [n_b < x / s_b < p_b]        (straight-through)
    dL/ds_b = c_b sum_x dL/dy (q_b - inside_b x / s_b)                               (LSQ, Esser et al. 2020, eq. 3)
    dL/dc_b = s_b sum_x dL/dy q_b

Forward is one pass (read x, write y), backward is one (read x and dL/dy, write dL/dx, reduce the rest): only x is
kept. The passes are in `seam.quant.kernels`.
"""

import torch
from torch import Tensor

from seam.quant.kernels import run


def _dense(x: Tensor) -> Tensor:
    """x itself if its elements fill one block with dim 0 outermost, else a contiguous copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _bare(x: Tensor, *size: int) -> Tensor:
    """The elements of a dense tensor in memory order, as a tensor that is neither a view nor part of a graph.

    `torch.compile` specialises code on such properties of its inputs: each new one would compile it again.
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
            table = torch.cat([steps[None], weights[None], bounds])
            y = run("forward_tensor", len(weights), _bare(x, x.numel()), table)
        else:
            rows = x.shape[0], x.numel() // x.shape[0]
            table = torch.cat([weights[None], bounds])
            y = run("forward_channel", len(weights), _bare(x, *rows), _bare(steps, *steps.shape), table)
        return y.as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, steps, weights, bounds = ctx.saved_tensors
        if g.stride() != x.stride():
            g = torch.empty_like(x).copy_(g)
        if steps.dim() == 1:
            table = torch.cat([steps[None], weights[None], bounds])
            dx, sums = run("backward_tensor", len(weights), _bare(x, x.numel()), _bare(g, x.numel()), table)
            ds, dc = sums[0], sums[1]
        else:
            rows = x.shape[0], x.numel() // x.shape[0]
            table = torch.cat([weights[None], bounds])
            bare = _bare(x, *rows), _bare(g, *rows), _bare(steps, *steps.shape)
            dx, sums = run("backward_channel", len(weights), *bare, table)
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
    if x.dtype in (torch.bfloat16, torch.float16):  # autocast: too coarse to round and sum in
        return _Mix.apply(x.float(), steps, weights, bounds).to(x.dtype)
    return _Mix.apply(x, steps, weights, bounds)


def integer_bounds(bits: tuple[int, ...] | list[int], signed: bool) -> Tensor:
    """[2, B] least and greatest integers: [-2^(b-1), 2^(b-1) - 1] signed, [0, 2^b - 1] unsigned."""
    if signed:
        return torch.tensor([[-(2.0 ** (b - 1)) for b in bits], [2.0 ** (b - 1) - 1 for b in bits]])
    return torch.tensor([[0.0 for _ in bits], [2.0**b - 1 for b in bits]])


@torch.no_grad()
def initial_steps(x: Tensor, bounds: Tensor, counts: Tensor | None = None, candidates: int = 24) -> Tensor:
    """Steps of least squared error, per row and bit-width, by a grid search.

    Args:
        x: [C, K] samples, one row a channel (C = 1 for per-tensor steps).
        bounds: [2, B].
        counts: [K], how many elements each sample stands for; None: equally many.

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
            error = (torch.round((x / s).clamp(lower[b], upper[b])) * s - x).square()
            error = error.sum(1) if counts is None else error @ counts
            better = error < best_error[b]
            best[b] = torch.where(better, steps[b], best[b])
            best_error[b] = torch.where(better, error, best_error[b])
    return best
