"""The search network: each searchable layer computes with a mixture of its bit-widths.

A layer keeps one weight tensor and, for its weight and for its input, one logit and one step a bit-width:

    x~ = sum_b softmax(alpha / T)_b Q_b(x),

then one convolution of the mixed input with the mixed weight (EdMIPS, Cai & Vasconcelos 2020, shares the weight in the
same way). Layers that read the same tensor (`seam.models`) share the input's logits and steps, and it is mixed once. T
is lowered during the search, so that the mixture ends close to one bit-width.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.models.layers import Layer
from seam.policy.cost import Budget
from seam.quant.apply import fit_inputs, input_quantizers, input_samples
from seam.quant.apply import quantize as quantize_fixed
from seam.quant.functional import initial_steps, input_grids, integer_bounds, mix, no_limits
from seam.quant.fused_activations import take
from seam.quant.quantizer import Quantizer, attach, check_weight, standardize


class _MixedWeight(nn.Module):
    """Parametrization of a layer's weight; reads its share of the owner's probabilities and steps."""

    def __init__(self, owner: "Mixture", index: int):
        super().__init__()
        self._owner, self._index = [owner], index  # in a list: the owner must not become a submodule

    def forward(self, weight: Tensor) -> Tensor:
        owner, i = self._owner[0], self._index
        return mix(weight, owner.weight_steps[i], owner.weight_probs[i], owner.weight_bounds, owner.limits)


def _version(x: Tensor) -> int:
    """Changes when x is changed in place; tensors of inference mode do not track it."""
    return -1 if x.is_inference() else x._version


class Mixture(nn.Module):
    """Turns a full-precision model into a search network, in place.

    Attributes:
        names: the L searchable layers; fixed layers get quantizers of their bits, 32/32 none.
        group: index of each layer's group, L numbers in 0..G-1; the G groups read one tensor each.
        weight_logits: [L, B] parameters.
        input_logits: [G, B] parameters.
        temperature: T of the softmax.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], bits: Sequence[int]):
        super().__init__()
        self.model = model
        self.bits = tuple(bits)
        self.temperature = 1.0
        searchable = [layer for layer in layers if not layer.fixed]
        self.names = [layer.name for layer in searchable]
        numbers: dict[str, int] = {}
        self.group = [numbers.setdefault(layer.group or layer.name, len(numbers)) for layer in searchable]
        modules = dict(model.named_modules())
        searched = [modules[name] for name in self.names]
        for name, layer in zip(self.names, searched, strict=True):
            check_weight(name, layer)
            standardize(layer)
        device = searched[0].weight.device
        count, width, groups = len(searched), len(self.bits), len(numbers)
        self.weight_logits = nn.Parameter(torch.zeros(count, width, device=device))
        self.input_logits = nn.Parameter(torch.zeros(groups, width, device=device))
        self.register_buffer("weight_bounds", integer_bounds(self.bits, signed=True).to(device))
        self.register_buffer("input_bounds", integer_bounds(self.bits, signed=True).to(device).repeat(groups, 1, 1))
        self.register_buffer("limits", no_limits().to(device), persistent=False)
        # All channels of all layers side by side: one exp and one optimizer entry instead of L.
        self.channels = [layer.weight.shape[0] for layer in searched]
        with torch.no_grad():
            steps = [initial_steps(layer.weight, self.weight_bounds) for layer in searched]
        self.weight_log_steps = nn.Parameter(torch.cat(steps, dim=1).log())
        self.input_log_steps = nn.Parameter(torch.zeros(groups, width, device=device))
        fixed = [layer for layer in layers if layer.fixed]
        quantize_fixed(model, {layer.name: layer.fixed_bits for layer in fixed}, fixed)
        for i, (layer, about) in enumerate(zip(searched, searchable, strict=True)):
            g = self.group[i]
            attach(layer, _MixedWeight(self, i), lambda _, x, g=g: self._mix_input(x, g), about.functional)
        self._calibrating = False
        self._shared = {g for g in self.group if self.group.count(g) > 1}
        self._mixed: dict[int, tuple[Tensor, Tensor, int, Tensor]] = {}  # group -> what it last mixed in this forward
        self.refresh()

    def _mix_input(self, x: Tensor, g: int) -> Tensor:
        if self._calibrating:
            return x
        x, limits = take(x, self.limits)
        if g in self._mixed:
            known, clamped, version, mixed = self._mixed[g]
            if known is x and clamped is limits and version == _version(x):
                return mixed
        mixed = mix(x, self.input_steps[g], self.input_probs[g], self.input_bounds[g], limits)
        if g in self._shared:
            self._mixed[g] = x, limits, _version(x), mixed
        return mixed

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
        self._mixed.clear()
        try:
            return self.model(x)
        finally:
            self._mixed.clear()

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set ranges and steps of all input quantizers from data: one pass, inputs unquantized."""
        fixed = input_quantizers(self.model)
        self._set_calibrating(True, fixed.values())
        try:
            self.refresh()
            samples = input_samples(self.model, [*self.names, *fixed], batches)
        finally:
            self._set_calibrating(False, fixed.values())
        for g in range(len(self.input_logits)):
            read = torch.cat([samples[name] for name, own in zip(self.names, self.group, strict=True) if own == g], 1)
            self.input_bounds[g], steps = input_grids(read, self.bits)
            self.input_log_steps[g] = steps.log()
        fit_inputs(fixed, samples)

    def _set_calibrating(self, on: bool, fixed: Iterable[Quantizer]) -> None:
        self._calibrating = on
        for quantizer in fixed:
            quantizer.enabled = not on

    @torch.no_grad()
    def start(self, assigned: Sequence[tuple[int, int]], slope: float) -> None:
        """Start the logits around a policy: `slope` lower for each step away from its bit-width among the candidates.

        assigned: (weight bits, activation bits) of the L layers.
        """
        places = torch.arange(len(self.bits), device=self.weight_logits.device)
        for i, (w, a) in enumerate(assigned):
            self.weight_logits[i] = -slope * (places - self.bits.index(w)).abs()
            self.input_logits[self.group[i]] = -slope * (places - self.bits.index(a)).abs()

    def expected(self, table: Tensor) -> Tensor:
        """Expected cost, for a table [L, B, B] of each layer's (weight bits, activation bits)."""
        return torch.einsum("lw,lwa,la->", self.weight_probs, table, self.input_probs[self.group])

    def excess(self, budgets: Sequence[Budget]) -> tuple[Tensor, Tensor]:
        """Expected cost as a share of the first budget, E / B, and how far off the budgets it is: (log E / B)^2 for the
        first, which is to be spent, and the same for the others where they are exceeded."""
        like = {"dtype": self.weight_probs.dtype, "device": self.weight_probs.device}
        tables = (torch.tensor(b.table / b.limit, **like) for b in budgets)
        spent, *others = (self.expected(table) + b.base / b.limit for table, b in zip(tables, budgets, strict=True))
        return spent, spent.log().square() + sum(F.relu(other.log()).square() for other in others)

    def entropy(self) -> Tensor:
        """Mean entropy of all the bit-width distributions, in bits: 0 when each has decided."""
        probs = torch.cat([self.weight_probs, self.input_probs]).detach()
        return -(probs * probs.clamp(min=1e-12).log2()).sum(1).mean()

    @torch.no_grad()
    def preferences(self) -> np.ndarray:
        """[L, B, B] log-probability of each (weight bits, activation bits).

        A group's activation bits are one choice: each of its layers carries an equal part of their log-probability.
        """
        weight = torch.log_softmax(self.weight_logits / self.temperature, dim=1).double()
        inputs = torch.log_softmax(self.input_logits / self.temperature, dim=1).double()
        size = torch.tensor([self.group.count(g) for g in self.group], device=inputs.device)
        inputs = inputs[self.group] / size[:, None]
        return (weight[:, :, None] + inputs[:, None, :]).cpu().numpy()
