"""Training-free: the signal-to-quantization-noise ratio of each tensor. Sees images, not their labels.

Noise adds up along a network: the reciprocal of the output's ratio of signal to noise is the sum of the tensors'
(Lin, Talathi & Annapureddy, ICML 2016, arXiv 1511.06393). The assignment minimises that sum of

    E_tb = ||Q_b(t) - t||^2 / ||t||^2,        P_lwa = -(E_lw + E_la).

What many vendors' tools look at. It knows how well a tensor survives, not how much the network depends on it. Option:
`images`, how many it looks at.
"""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from seam.models.shared_inputs import watch
from seam.runtime.distributed import share_out
from seam.search.problem import Problem
from seam.search.tensors import falling, negated, view

DATA = True
QUANTIZERS = False  # their errors are taken here, at steps of their own
IMAGES = 128
BATCH = 16


@torch.no_grad()
def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the noise, as a share of the signal, of each layer's weight and input at their bit-widths."""
    x, _, _, watched = view(problem, ("images",), IMAGES, 1)
    width = len(problem.settings.bits)
    places = {name: i for i, (name, one) in enumerate(watched.items()) if one.group == i}  # first of those that share
    like = torch.zeros(len(watched), width + 1, dtype=torch.float64, device=x.device)

    def sums(batch: Tensor) -> Tensor:
        """[L, B + 1] squared errors of the inputs at each bit-width, and the squares of the inputs, of a batch."""
        found = torch.zeros_like(like)

        def add(name: str, read: Tensor) -> None:
            errors = (watched[name].inputs.error(read, b) for b in range(width))
            found[places[name]] += _squares(itertools.chain(errors, [read]))

        with watch(problem.model, places, add):
            problem.model(batch)
        return found

    with problem.meter.part("sensitivity"):
        of_inputs = share_out(x.split(BATCH), sums, like, "sqnr")
    problem.meter.look(len(x), forwards=1 + width)
    of_weights = torch.stack([_squares([*one.errors, one.layer.weight]) for one in watched.values()])
    squares = torch.stack([of_weights, of_inputs])
    errors = squares[:, :, :width] / squares[:, :, width:].clamp(min=1e-30)
    errors = np.apply_along_axis(falling, 2, errors.cpu().numpy())
    return negated(errors)


def _squares(tensors: Iterable[Tensor]) -> Tensor:
    """[T] the sum of the squares of each of T tensors."""
    return torch.stack([tensor.double().square().sum() for tensor in tensors])
