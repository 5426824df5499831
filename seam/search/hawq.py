"""Training-free: the mean Hessian trace of each tensor times its squared quantization error.

HAWQ-V2 (Dong et al., NeurIPS 2020, arXiv 1911.03852); HAWQ-V3 (Yao et al., ICML 2021) takes the same sensitivities and,
as here, an integer programme over them:

    E_tb = Tr(H_t) / n_t ||Q_b(t) - t||^2,        P_lwa = -(E_lw + E_la),

H_t: Hessian of the loss with respect to the n_t elements of a tensor. Tr(H_t) = E v_t.(H v)_t by Hutchinson's
estimator: one product of the Hessian with a random vector v of signs, over all tensors at once, serves each of them,
since the parts of v are independent. Estimates below 0 count as 0.

What differs: the loss is the cross-entropy to the class that the network itself finds likeliest, since a foreign proxy
has no labels of the network's classes; and inputs get a Hessian of their own alike, at the size of the proxy's images.
Options: `images`, `draws`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from seam.search.fit import DRAWS, OPTIONS, trace_times_error
from seam.search.problem import Problem
from seam.search.tensors import negated, view

DATA = True
QUANTIZERS = False  # their errors are taken where those of `fit` are
IMAGES = 128


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the loss to be expected from each layer's (weight bits, activation bits)."""
    with _TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):
        seen = view(problem, OPTIONS, IMAGES, DRAWS)
        return negated(trace_times_error(problem, seen, hessian_traces, "hawq"))


class _TwiceDifferentiable(TorchFunctionMode):
    """Writes out a function whose derivative torch cannot derive."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def hessian_traces(logits: Tensor, tensors: Sequence[Tensor], draws: int, noise: torch.Generator) -> Tensor:
    """[T] sum over draws and images of v_t.(H v)_t, whose mean is the trace of the Hessian, for each of T tensors."""
    total = torch.zeros(len(tensors), dtype=torch.float64, device=logits.device)
    loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    used = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
    for left in reversed(range(draws)):
        signs = [_signs(tensors[i], noise) for i in used]
        products = torch.autograd.grad(
            [gradients[i] for i in used], [tensors[i] for i in used], signs, retain_graph=left > 0, allow_unused=True
        )
        for i, v, hv in zip(used, signs, products, strict=True):
            if hv is not None:
                total[i] += (v.double() * hv).sum()
    return total


def _signs(like: Tensor, noise: torch.Generator) -> Tensor:
    """Random -1 and 1."""
    return torch.randint(0, 2, like.shape, generator=noise, device=like.device).mul_(2).sub_(1).to(like.dtype)
