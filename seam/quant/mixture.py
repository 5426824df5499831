"""The search network: each searchable layer computes with a mixture of its bit-widths.

A layer keeps one weight tensor and, for its weight and for its input, one logit and one step a bit-width:

    x~ = sum_b softmax(alpha / T)_b Q_b(x),

then one convolution of the mixed input with the mixed weight (EdMIPS, Cai & Vasconcelos 2020, shares the weight in the
same way). T is lowered during the search, so that the mixture ends close to one bit-width.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.models import Layer
from seam.quant.apply import input_samples
from seam.quant.apply import quantize as quantize_fixed
from seam.quant.functional import initial_steps, integer_bounds, mix
from seam.quant.modules import Quantizer, channel_samples


class _MixedWeight(nn.Module):
    """Parametrization of a layer's weight; reads its share of the owner's probabilities and steps."""

    def __init__(self, owner: "Mixture", index: int):
        super().__init__()
        self._owner, self._index = [owner], index  # in a list: the owner must not become a submodule

    def forward(self, weight: Tensor) -> Tensor:
        owner, i = self._owner[0], self._index
        return mix(weight, owner.weight_steps[i], owner.weight_probs[i], owner.weight_bounds)


class Mixture(nn.Module):
    """Turns a full-precision model into a search network, in place.

    Attributes:
        names: the L searchable layers; fixed layers get 8/8 quantizers.
        weight_logits, input_logits: [L, B] parameters.
        temperature: T of the softmax.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], bits: Sequence[int]):
        super().__init__()
        self.model = model
        self.bits = tuple(bits)
        self.temperature = 1.0
        self.names = [layer.name for layer in layers if not layer.fixed]
        modules = dict(model.named_modules())
        searched = [modules[name] for name in self.names]
        device = searched[0].weight.device
        count, width = len(searched), len(self.bits)
        self.weight_logits = nn.Parameter(torch.zeros(count, width, device=device))
        self.input_logits = nn.Parameter(torch.zeros(count, width, device=device))
        self.register_buffer("weight_bounds", integer_bounds(self.bits, signed=True).to(device))
        self.register_buffer("input_bounds", integer_bounds(self.bits, signed=True).to(device).repeat(count, 1, 1))
        # All channels of all layers side by side: one exp and one optimizer entry instead of L.
        self.channels = [layer.weight.shape[0] for layer in searched]
        with torch.no_grad():
            steps = [initial_steps(channel_samples(layer.weight), self.weight_bounds) for layer in searched]
        self.weight_log_steps = nn.Parameter(torch.cat(steps, dim=1).log())
        self.input_log_steps = nn.Parameter(torch.zeros(count, width, device=device))
        quantize_fixed(model, {layer.name: (8, 8) for layer in layers if layer.fixed})
        for i, layer in enumerate(searched):
            parametrize.register_parametrization(layer, "weight", _MixedWeight(self, i), unsafe=True)
            layer.register_forward_pre_hook(lambda _, args, i=i: (self._mix_input(args[0], i), *args[1:]))
        self._calibrating = False
        self.refresh()

    def _mix_input(self, x: Tensor, i: int) -> Tensor:
        if self._calibrating:
            return x
        return mix(x, self.input_steps[i], self.input_probs[i], self.input_bounds[i])

    def refresh(self) -> None:
        """Recompute probabilities and steps of all layers from the parameters; `forward` does so at each step."""
        self.weight_probs = torch.softmax(self.weight_logits / self.temperature, dim=1)
        self.input_probs = torch.softmax(self.input_logits / self.temperature, dim=1)
        self.weight_steps = self.weight_log_steps.exp().split(self.channels, dim=1)
        self.weight_steps = [steps.contiguous() for steps in self.weight_steps]
        self.input_steps = self.input_log_steps.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images [N, C, H, W]."""
        self.refresh()
        return self.model(x)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set ranges and steps of all input quantizers from data: one pass, inputs unquantized."""
        fixed = {n: m.input_quantizer for n, m in self.model.named_modules() if hasattr(m, "input_quantizer")}
        self._set_calibrating(True, fixed.values())
        try:
            self.refresh()
            samples = input_samples(self.model, [*self.names, *fixed], batches)
        finally:
            self._set_calibrating(False, fixed.values())
        for i, name in enumerate(self.names):
            signed = bool((samples[name] < 0).any())
            self.input_bounds[i] = integer_bounds(self.bits, signed).to(self.input_bounds.device)
            self.input_log_steps[i] = initial_steps(samples[name], self.input_bounds[i])[:, 0].log()
        for name, quantizer in fixed.items():
            quantizer.fit(samples[name])

    def _set_calibrating(self, on: bool, fixed: Iterable[Quantizer]) -> None:
        self._calibrating = on
        for quantizer in fixed:
            quantizer.enabled = not on

    def expected(self, table: Tensor) -> Tensor:
        """Expected cost, for a table [L, B, B] of each layer's (weight bits, activation bits)."""
        return torch.einsum("lw,lwa,la->", self.weight_probs, table, self.input_probs)

    def entropy(self) -> Tensor:
        """Mean entropy of all the bit-width distributions, in bits: 0 when each has decided."""
        probs = torch.cat([self.weight_probs, self.input_probs]).detach()
        return -(probs * probs.clamp(min=1e-12).log2()).sum(1).mean()

    @torch.no_grad()
    def preferences(self) -> np.ndarray:
        """[L, B, B] log-probability of each (weight bits, activation bits)."""
        weight = torch.log_softmax(self.weight_logits / self.temperature, dim=1).double()
        inputs = torch.log_softmax(self.input_logits / self.temperature, dim=1).double()
        return (weight[:, :, None] + inputs[:, None, :]).cpu().numpy()
