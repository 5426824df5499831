"""Clamping activations (ReLU, ReLU6, Hardtanh) that the quantizer behind them does in its own pass.

A quantizer clamps its input anyway. Where only quantizers read an activation's output, the activation need not write a
tensor forward, nor read and write one backward: the quantizer reads the activation's input and clamps it to the
activation's limits first. Outputs and gradients stay the same to the bit.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from seam.groups import run_once


class _Deferred:
    """Stands in for an activation's forward and leaves its work to whoever reads the output."""

    def __init__(self, low: float, high: float, device: torch.device):
        self.low, self.high = low, high
        self.limits = torch.tensor([low, high], device=device)
        self.taken = self.computed = False  # by a quantizer, for another function

    def __call__(self, x: Tensor) -> Tensor:
        x = _compute(x) if isinstance(x, _Clamped) else x
        output = x.as_subclass(_Clamped)
        output.activation, output.raw, output.value = self, x, None
        return output


class _Clamped(Tensor):
    """An activation's output, not computed yet. Any function that is called with it computes it first."""

    activation: _Deferred
    raw: Tensor  # the activation's input
    value: Tensor | None  # its output, once computed

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        args, kwargs = tree_map_only(_Clamped, _compute, (args, kwargs or {}))
        return func(*args, **kwargs)


def _compute(x: _Clamped) -> Tensor:
    if x.value is None:
        x.activation.computed = True
        x.value = F.hardtanh(x.raw, x.activation.low, x.activation.high)
    return x.value


def take(x: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """What a quantizer called with x reads, and the limits [2] that it must clamp this to: `limits` for other tensors
    than the output of an activation that is left to it."""
    if not isinstance(x, _Clamped):
        return x, limits
    if x.value is not None:
        return x.value, limits
    x.activation.taken = True
    return x.raw, x.activation.limits


def _limits(module: nn.Module) -> tuple[float, float] | None:
    if type(module) is nn.ReLU:
        return 0.0, math.inf
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    return None


@contextmanager
def clamp_in_quantizers(model: nn.Module, size: tuple[int, int, int]) -> Iterator[list[str]]:
    """Within the context, activations that only quantizers read are left to them; yields their names.

    One pass over a blank image of `size` (C, H, W) tells which. The others compute as always: one that a shortcut reads
    too would be in memory twice. Code that only runs in training may read an output as well: it is computed then.
    """
    device = next(model.parameters()).device
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if (limits := _limits(module)) and "forward" not in vars(module):
            vars(module)["forward"] = _Deferred(*limits, device)
            found[name] = module
    try:
        run_once(model, size)
        for name, module in list(found.items()):
            deferred = module.forward
            if deferred.computed or not deferred.taken:
                del vars(module)["forward"], found[name]
        yield list(found)
    finally:
        for module in found.values():
            del vars(module)["forward"]
