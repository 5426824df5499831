"""Training-free: the trace of the Fisher information of each tensor times its mean squared quantization error.

FIT (Zandonati et al. 2022, arXiv 2210.08502): the divergence between the network's predictions before and after
quantization is, to second order and for errors that point anywhere,

    E_tb = Tr(F_t) mean((Q_b(t) - t)^2),        P_lwa = -(E_lw + E_la),

with Tr(F_t) = mean_i E_y ||d log p(y|x_i) / dt||^2 the trace of the Fisher information.

Sees images, not their labels: y is drawn from the network's own predictions, `draws` times, which makes it the Fisher
information itself; the paper takes the proxy's labels (the empirical Fisher), which a foreign proxy has not got. Since
the gradient's mean over y is zero and the images' y are independent, the square of a batch's gradient is unbiased for
the sum of the images' squares. Options: `images`, `draws`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seam.models.shared_inputs import weight_parameter
from seam.runtime.distributed import share_out
from seam.search.problem import Problem
from seam.search.tensors import View, Watched, check_unchanged, falling, negated, view

DATA = True
QUANTIZERS = False  # their errors are taken here, at steps of their own
OPTIONS = ("images", "draws")
IMAGES = 128
DRAWS = 4
BATCH = 16

# (logits [N, K], tensors, draws, noise) -> for each tensor the sum over draws and images of its curvature's trace
Traces = Callable[[Tensor, Sequence[Tensor], int, torch.Generator], Tensor]


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the expected divergence of each layer's (weight bits, activation bits)."""
    return negated(trace_times_error(problem, view(problem, OPTIONS, IMAGES, DRAWS), fisher_traces, "fit"))


def fisher_traces(logits: Tensor, tensors: Sequence[Tensor], draws: int, noise: torch.Generator) -> Tensor:
    """[T] sum over draws and images of the squared gradients of log p(y|x) by each of T tensors, y drawn from p."""
    total = torch.zeros(len(tensors), dtype=torch.float64, device=logits.device)
    p = logits.detach().softmax(1)
    for left in reversed(range(draws)):
        y = torch.multinomial(p, 1, generator=noise)[:, 0]
        loss = F.cross_entropy(logits, y, reduction="sum")
        gradients = torch.autograd.grad(loss, tensors, retain_graph=left > 0, allow_unused=True)
        total += torch.stack([total.new_zeros(()) if g is None else g.double().square().sum() for g in gradients])
    return total


def trace_times_error(problem: Problem, seen: View, traces: Traces, label: str) -> np.ndarray:
    """[2, L, B] trace of curvature x mean squared error of each layer's weight and input at each bit-width.

    A tensor that several layers read counts with its first layer; its trace is the sum of those by way of each.
    """
    x, _, draws, watched = seen
    layers, width = list(watched.values()), len(problem.settings.bits)
    weights = [weight_parameter(one.layer).requires_grad_() for one in layers]
    seeds = np.random.default_rng(problem.seed).integers(2**32, size=len(x)).tolist()
    batches = [*zip(x.split(BATCH), seeds, strict=False)]

    def sums(job: tuple[Tensor, int]) -> Tensor:
        """[L, 3 + B] traces by way of weights and of inputs, the inputs' elements and squared errors, of a batch."""
        batch, seed = job
        noise = torch.Generator(x.device).manual_seed(seed)
        with torch.enable_grad():
            logits = problem.model(batch).float()
            reads = [(one.group, read) for one in layers for read in one.reads]
            found = traces(logits, [*weights, *(read for _, read in reads)], draws, noise)
        check_unchanged(watched)
        result = torch.zeros(len(layers), 3 + width, dtype=torch.float64, device=x.device)
        result[:, 0] = found[: len(layers)]
        result[:, 1].index_add_(0, torch.tensor([group for group, _ in reads], device=x.device), found[len(layers) :])
        _add_input_errors(layers, result[:, 2], result[:, 3:])
        for one in layers:
            one.forget()
        return result

    with problem.meter.part("sensitivity"):
        like = torch.zeros(len(layers), 3 + width, dtype=torch.float64, device=x.device)
        of_weights, of_inputs, elements, *squares = share_out(batches, sums, like, label).unbind(1)
    problem.meter.look(len(x), forwards=1 + 2 * draws + width)
    inputs = torch.stack(squares, dim=1) / elements.clamp(min=1)[:, None]
    own = torch.stack([torch.stack([error.double().square().mean() for error in one.errors]) for one in layers])
    traced = torch.stack([of_weights, of_inputs]).clamp(min=0) / (len(x) * draws)
    errors = traced[:, :, None] * torch.stack([own, inputs])
    return np.apply_along_axis(falling, 2, errors.cpu().numpy())


@torch.no_grad()
def _add_input_errors(layers: Sequence[Watched], elements: Tensor, squares: Tensor) -> None:
    """Add the elements [L] of what each group's first layer has read, and its squared errors [L, B]."""
    for i, one in enumerate(layers):
        for read in one.reads if one.group == i else ():
            elements[i] += read.numel()
            for b in range(squares.shape[1]):
                squares[i, b] += one.inputs.error(read, b).double().square().sum()
