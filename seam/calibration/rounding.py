"""Learned rounding of weights: AdaRound (Nagel et al. 2020, "Up or down?").

A weight w with step s becomes s clamp(floor(w / s) + h(V), n, p), where the rectified sigmoid

    h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma, 0, 1)

is learned, from w itself (h = the fraction of w / s) to 0 or 1.
"""

import torch
from torch import Tensor, nn

from seam.quant.quantizer import Quantizer, weight_quantizer

_GAMMA, _ZETA = -0.1, 1.1  # of the paper: the sigmoid is stretched, so that h reaches 0 and 1
_FAR = 8.0  # logits +-8: h is 1 or 0, and stays, since it has no gradient there


class SoftRounding(nn.Module):
    """Parametrization of a weight, in the place of its quantizer while its rounding is learned.

    Attributes:
        logits: V, a parameter of the weight's shape.
    """

    def __init__(self, weight: Tensor, quantizer: Quantizer):
        super().__init__()
        step = quantizer.log_step.detach().exp().view(-1, *[1] * (weight.dim() - 1))
        self.register_buffer("step", step)
        self.register_buffer("floor", (weight.detach() / step).floor())
        self.least, self.most = quantizer.bounds[:, 0].tolist()
        fraction = (weight.detach() / step - self.floor).clamp_(0.001, 0.999)  # h itself is flat at 0 and 1
        self.logits = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1))

    def up(self) -> Tensor:
        """h(V), the share by which each weight is rounded up, 0 to 1."""
        return (self.logits.sigmoid() * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def integers(self) -> Tensor:
        """The weight's integers as learned."""
        return (self.floor + (self.logits.detach() >= 0)).clamp_(self.least, self.most)

    @torch.no_grad()
    def decide(self, share: float) -> None:
        """Round for good, up or down, the share of all weights whose h is nearest to 0 or 1."""
        size = self.logits.abs()
        count = round(share * size.numel())
        if count:
            least = size.flatten().kthvalue(size.numel() - count + 1).values
            self.logits.copy_(torch.where(size >= least, self.logits.sign().add_(0.5).sign_() * _FAR, self.logits))

    def forward(self, weight: Tensor) -> Tensor:
        return (self.floor + self.up()).clamp(self.least, self.most) * self.step


def soften(layer: nn.Module) -> SoftRounding | None:
    """Let a quantized layer's rounding be learned; None where its weight is computed (weight standardisation), since
    no stored weight would give the integers then: it keeps its quantizer."""
    parts = layer.parametrizations["weight"]
    if parts[0] is not weight_quantizer(layer):
        return None
    parts[0] = SoftRounding(parts.original, parts[0])
    return parts[0]


@torch.no_grad()
def bake(layer: nn.Module, rounding: SoftRounding, quantizer: Quantizer) -> None:
    """Put the quantizer back and store the weight as learned: quantizing it gives the learned integers exactly."""
    parts = layer.parametrizations["weight"]
    parts.original.copy_(rounding.integers() * rounding.step)
    parts[0] = quantizer
