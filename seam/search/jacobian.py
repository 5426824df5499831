"""Training-free, to first order: how far the quantization error of each tensor moves the features.

z(x): normalised pre-logits of the full-precision network in evaluation mode. Quantizing a tensor t (a layer's weight,
or the input of a group of layers) to b bits adds D = Q_b(t) - t to it, which to first order moves the features of
image i by J_ti D, with J_ti their Jacobian. The assignment minimises the sum over tensors of

    E_tb = mean_i ||J_ti D||^2,        P_lwa = -(E_lw + E_la),

the Gauss-Newton form of the feature distance. No Jacobian is made: for u_i ~ N(0, I), one backward pass of
sum_i u_i z_i gives g = u J for all tensors at once, and (g D)^2 is unbiased for ||J D||^2, for all bit-widths of all
tensors. A weight's gradient is summed over the images of a batch, and the square of its sum is unbiased for the sum of
squares, since the u_i are independent. (Hutchinson's estimator, as in HAWQ-V2, Dong et al. 2020, and FIT, Zandonati et
al. 2022, which trace the curvature of the loss and multiply it by a mean squared error; here the error itself is
projected, and on the features.)

The method sees no labels and trains nothing. It looks at `calibration_images` images, in batches of `BATCH`.
Options: `draws`, the backward passes of each batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.models import capture_features
from seam.quant.apply import input_samples
from seam.quant.functional import initial_steps, integer_bounds
from seam.quant.modules import attach, channel_samples, check_weight, standardize
from seam.runtime import progress
from seam.search.problem import Problem

BATCH = 8  # images: each batch and draw is one sample of a weight's error, and few images have small activations
DRAWS = 2


@dataclass
class _Tensor:
    """Something that is quantized: a weight, or what a group of layers reads.

    steps: [B, C] or [B, 1]; bounds: [2, B], as for `seam.quant.functional.mix`.
    reads: in one forward pass, the tensor as each reader was given it.
    """

    steps: Tensor
    bounds: Tensor
    reads: list[Tensor] = field(default_factory=list)

    def read(self, x: Tensor) -> Tensor:
        """x itself, to autograd another tensor: its gradient is the one by way of this reader alone."""
        x = x.view_as(x)
        self.reads.append(x if x.requires_grad else x.requires_grad_())
        return x

    def error(self, x: Tensor, b: int) -> Tensor:
        """Q_b(x) - x."""
        steps = self.steps[b].view(-1, *[1] * (x.dim() - 1))
        return (x / steps).clamp_(*self.bounds[:, b]).round_().mul_(steps).sub_(x)


class _Read(nn.Module):
    """Parametrization that hands on a weight as `_Tensor.read` does."""

    def __init__(self, tensor: _Tensor):
        super().__init__()
        self.tensor = tensor

    def forward(self, weight: Tensor) -> Tensor:
        return self.tensor.read(weight)


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the error of the features, to first order, of each layer's (weight bits, activation bits)."""
    settings, model = problem.settings, problem.model.eval()
    draws = int(settings.options.get("draws", DRAWS))
    count = min(settings.calibration_images, len(problem.images))
    x, _ = next(iter(problem.images.batches(count, seed=problem.seed, device=problem.device)))
    with problem.meter.part("setup"):
        tensors = _watch(problem, x)
    noise = torch.Generator(problem.device).manual_seed(problem.seed)
    errors = torch.zeros(2, len(problem.names), len(settings.bits), dtype=torch.float64, device=problem.device)
    with problem.meter.part("sensitivity"):
        batches = x.split(BATCH)
        for batch in progress(batches, len(batches), "jacobian"):
            errors += _squares(model, batch, tensors, draws, noise)
            # A backward pass that makes the gradients of weights and inputs is two forward passes' work.
            problem.meter.images += len(batch) * (1 + 2 * draws)
    errors = errors.cpu().numpy() / (count * draws)
    errors = np.minimum.accumulate(errors, axis=2)  # more bits are never worse; where estimates say so it is noise
    return -(errors[0][:, :, None] + errors[1][:, None, :])


def _watch(problem: Problem, x: Tensor) -> tuple[list[_Tensor | None], list[_Tensor | None]]:
    """Note each layer's weight and input where its quantizers would be; steps are set from the weights and from the
    inputs that images x give. Returns L weights, and L inputs: that of a group at its first layer, then None."""
    names, bits, modules = problem.names, problem.settings.bits, dict(problem.model.named_modules())
    functional = {layer.name for layer in problem.layers if layer.functional}
    samples = input_samples(problem.model, names, [(part, None) for part in x.split(64)])
    signed = integer_bounds(bits, signed=True).to(x.device)
    weights, inputs, shared = [], [], {}
    for name, group in zip(names, problem.groups, strict=True):
        layer = modules[name]
        check_weight(name, layer)
        standardize(layer)
        values, counts = channel_samples(layer.weight)
        weights.append(_Tensor(initial_steps(values, signed, counts), signed))
        inputs.append(None)
        if group not in shared:
            read = torch.cat([samples[n] for n, g in zip(names, problem.groups, strict=True) if g == group], dim=1)
            bounds = integer_bounds(bits, signed=bool((read < 0).any())).to(x.device)
            inputs[-1] = shared[group] = _Tensor(initial_steps(read, bounds), bounds)
        attach(layer, _Read(weights[-1]), lambda _, x, tensor=shared[group]: tensor.read(x), name in functional)
    return weights, inputs


def _squares(model: nn.Module, x: Tensor, tensors: Sequence[Sequence[_Tensor | None]], draws: int, noise) -> Tensor:
    """[2, L, B] sum over draws and images of (g D)^2."""
    present = [tensor for kind in tensors for tensor in kind if tensor is not None]
    for tensor in present:
        tensor.reads.clear()
    with torch.enable_grad(), capture_features(model) as features:
        model(x)
        z = F.normalize(features[-1].float(), dim=1)
        reads = [read for tensor in present for read in tensor.reads]
        gradients = []
        for left in reversed(range(draws)):
            u = torch.randn(z.shape, generator=noise, device=z.device)
            gradients.append(torch.autograd.grad((u * z).sum(), reads, retain_graph=left > 0, allow_unused=True))
    found = zip(*gradients, strict=True)
    squares = torch.zeros(2, len(tensors[0]), present[0].bounds.shape[1], dtype=torch.float64, device=x.device)
    for kind, row in enumerate(tensors):
        for i, tensor in enumerate(row):
            if tensor is None:
                continue
            parts = [(read, torch.stack(g)) for read, g in zip(tensor.reads, found) if g[0] is not None]  # noqa: B905
            # Of a weight, and of an input whose first axis is not the images', the sum over the batch.
            images = len(x) if kind and all(len(read) == len(x) for read, _ in parts) else 1
            rows = [(read.detach(), g.reshape(draws, images, -1).transpose(0, 1)) for read, g in parts]
            for b in range(squares.shape[2]):
                moved = sum(torch.bmm(g, tensor.error(read, b).reshape(images, -1, 1)) for read, g in rows)
                squares[kind, i, b] = moved.double().square().sum() if rows else 0.0
    return squares
