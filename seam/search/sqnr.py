"""Training-free: the signal-to-quantization-noise ratio of each tensor. Sees images, not their labels.

Noise adds up along a network: the reciprocal of the output's ratio of signal to noise is the sum of the tensors'
(Lin, Talathi & Annapureddy, ICML 2016, arXiv 1511.06393). The assignment minimises that sum of

    E_tb = ||Q_b(t) - t||^2 / ||t||^2,        P_lwa = -(E_lw + E_la).

What many vendors' tools look at. It knows how well a tensor survives, not how much the network depends on it. Option:
`images`, how many it looks at.
"""

import numpy as np
import torch
from torch import Tensor

from seam.models.shared_inputs import watch
from seam.runtime.progress import progress
from seam.search.problem import Problem
from seam.search.tensors import counts, falling, watch_tensors

DATA = True
QUANTIZERS = False  # their errors are taken here, at steps of their own
IMAGES = 128
BATCH = 16


@torch.no_grad()
def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the noise, as a share of the signal, of each layer's weight and input at their bit-widths."""
    model = problem.model.eval()
    _, count = counts(problem.settings.options, ("images",), IMAGES, 1)
    count = min(count, len(problem.images))
    x, _ = next(iter(problem.images.batches(count, seed=problem.seed, device=problem.device)))
    with problem.meter.part("setup"):
        watched = watch_tensors(problem, x)
    width = len(problem.settings.bits)
    noise = torch.zeros(2, len(watched), width, dtype=torch.float64, device=x.device)
    signal = torch.zeros(2, len(watched), 1, dtype=torch.float64, device=x.device)
    for i, one in enumerate(watched.values()):
        noise[0, i] = torch.stack([error.double().square().sum() for error in one.errors])
        signal[0, i] = one.layer.weight.double().square().sum()
    places = {name: i for i, (name, one) in enumerate(watched.items()) if one.group == i}  # first of those that share

    def add(name: str, read: Tensor) -> None:
        i = places[name]
        noise[1, i] += torch.stack([watched[name].inputs.error(read, b).double().square().sum() for b in range(width)])
        signal[1, i] += read.double().square().sum()

    with problem.meter.part("sensitivity"), watch(model, places, add):
        batches = x.split(BATCH)
        for batch in progress(batches, len(batches), "sqnr"):
            model(batch)
            problem.meter.look(len(batch), forwards=1 + width)
    errors = np.apply_along_axis(falling, 2, (noise / signal.clamp(min=1e-30)).cpu().numpy())
    return -(errors[0][:, :, None] + errors[1][:, None, :])
