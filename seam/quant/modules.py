"""Quantizer modules: one bit-width with a learned step (LSQ), and how steps are set from data."""

import torch
from torch import Tensor, nn

from seam.quant.functional import initial_steps, integer_bounds, mix

_CHANNEL_SAMPLES = 128  # elements of a weight channel that its initial step is fitted to
_TENSOR_SAMPLES = 4096  # elements of an activation tensor, likewise


class Quantizer(nn.Module):
    """Fake quantizer with a learned step (LSQ, Esser et al. 2020).

    The parameter is log s: steps stay positive, and one learning rate suits tensors of any scale (our choice).

    Args:
        bits: 2 to 8.
        channels: number of output channels for per-channel steps (weights), None for one step (activations).
        signed: two's complement range, else from zero.
    """

    def __init__(self, bits: int, channels: int | None, signed: bool = True):
        super().__init__()
        self.bits = bits
        self.channels = channels
        self.enabled = True  # False: pass the input through (while steps are being set from it)
        shape = (1,) if channels is None else (1, channels)
        self.log_step = nn.Parameter(torch.zeros(shape))
        self.register_buffer("bounds", integer_bounds([bits], signed))
        self.register_buffer("one", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        steps = self.log_step.exp()
        return mix(x, steps, self.one, self.bounds)

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Set range and step from samples: [C, K] for a weight, [1, K] for an activation (unsigned if none is < 0)."""
        if self.channels is None:
            self.bounds.copy_(integer_bounds([self.bits], signed=bool((samples < 0).any())))
        steps = initial_steps(samples, self.bounds.to(samples.device))
        self.log_step.copy_(steps.log().view_as(self.log_step))

    @property
    def signed(self) -> bool:
        return bool(self.bounds[0, 0] < 0)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, channels={self.channels}"


def channel_samples(weight: Tensor) -> Tensor:
    """At most 128 evenly spaced elements of each output channel: [C, K]."""
    rows = weight.detach().reshape(weight.shape[0], -1)
    return rows[:, :: -(-rows.shape[1] // _CHANNEL_SAMPLES)]


def tensor_samples(x: Tensor) -> Tensor:
    """At most 4096 evenly spaced elements and the extremes: [1, K]."""
    flat = x.detach().reshape(-1)
    low, high = torch.aminmax(flat)
    return torch.cat([flat[:: -(-flat.numel() // _TENSOR_SAMPLES)], low[None], high[None]])[None]
