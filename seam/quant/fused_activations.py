"""Clamping activations (ReLU, ReLU6, Hardtanh) that the quantizer behind them does in its own pass.

A quantizer clamps its input anyway. Where only quantizers read an activation's output, the activation need not write a
tensor forward, nor read and write one backward: the quantizer reads the activation's input and clamps it to the
activation's limits first. In float32, outputs and gradients stay the same to the bit.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from seam.errors import SeamError
from seam.models.shared_inputs import run_once


class _Deferred:
    """Stands in for an activation's forward and leaves its work to whoever reads the output."""

    def __init__(self, activation: nn.Module, low: float, high: float, device: torch.device):
        self.in_place = getattr(activation, "inplace", False)
        self.low, self.high = low, high
        self.limits = torch.tensor([low, high], device=device)
        self.taken = False  # by a quantizer
        self.refused = False  # something else needs the output, or the input as the activation leaves it
        self.probed: list[tuple[Tensor, int]] | None = None  # each input and its version, in the pass that decides

    def __call__(self, input: Tensor) -> Tensor:
        output = input.as_subclass(_Pending)
        # A view, so that the model's own use of its input can be told from a quantizer's.
        raw = input.view_as(input) if torch.is_grad_enabled() else input.detach()
        output.activation, output.raw, output.value = self, raw, None
        if raw.requires_grad:
            with torch._C.DisableTorchFunctionSubclass():
                output.register_hook(_unseen)
        if self.probed is not None:
            self.probed.append((input, input._version))
        return output


class _Pending(Tensor):
    """An activation's output, not computed yet. Any torch function that is called with it computes it first."""

    activation: _Deferred
    raw: Tensor  # the activation's input
    value: Tensor | None  # its output, once computed

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        args, kwargs = tree_map_only(_Pending, _compute, (args, kwargs or {}))
        return func(*args, **kwargs)


def _compute(x: _Pending) -> Tensor:
    if x.value is None:
        x.activation.refused = True
        with torch.set_grad_enabled(x.raw.requires_grad):  # as at the activation, not as where it is read
            x.value = F.hardtanh(x.raw, x.activation.low, x.activation.high)
    return x.value


def _unseen(gradient: Tensor) -> None:
    raise SeamError(
        "an activation's output went into a function that torch does not let seam see (an autograd.Function of the "
        "model, torch.utils.checkpoint): call it by torch functions, or leave the activation to F.relu"
    )


def take(x: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """What a quantizer called with x reads, and the limits [2] that it must clamp this to: `limits` for other tensors
    than the output of an activation that is left to it."""
    if not isinstance(x, _Pending):
        return x, limits
    if x.value is not None:
        return x.value, limits
    x.activation.taken = True
    return x.raw, x.activation.limits


class _InputReads(TorchFunctionMode):
    """Refuses activations whose input is read after they would have changed it in place."""

    def __init__(self, found: list[_Deferred]):
        super().__init__()
        self.found = [deferred for deferred in found if deferred.in_place]

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        read = {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for deferred in self.found:
            deferred.refused |= any(id(x) in read for x, _ in deferred.probed)
        return func(*args, **(kwargs or {}))


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
            vars(module)["forward"] = _Deferred(module, *limits, device)
            found[name] = module
    try:
        deferred = {name: module.forward for name, module in found.items()}
        for one in deferred.values():
            one.probed = []
        with _InputReads(list(deferred.values())):
            run_once(model, size)
        for name, one in deferred.items():
            changed = any(x._version != version for x, version in one.probed)
            one.probed = None
            if changed or one.refused or not one.taken:
                del vars(found.pop(name))["forward"]
        yield list(found)
    finally:
        for module in found.values():
            del vars(module)["forward"]
