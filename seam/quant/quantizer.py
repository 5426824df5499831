"""Quantizer modules: one bit-width with a learned step (LSQ), how steps are set from data, how a layer gets them.

A weight quantizer is a parametrization of `weight` and an input quantizer a forward pre-hook, so a layer of any class
keeps its own forward: `layer.weight` is the quantized tensor. Two kinds of layers need more (`attach`): those whose
weight a parent applies itself, and those that standardise their weight before they use it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.errors import SeamError
from seam.models.shared_inputs import WEIGHTED, layer_input, replace_input, weight_argument, weight_parameter
from seam.quant.functional import initial_steps, input_grids, integer_bounds, mix, no_limits
from seam.quant.fused_activations import take

_TENSOR_SAMPLES = 16384  # elements of an activation tensor that its initial step is fitted to


class Quantizer(nn.Module):
    """Fake quantizer with a learned step (LSQ, Esser et al. 2020).

    The parameter is log s: steps stay positive, and one learning rate suits tensors of any scale (our choice). The step
    of an input that needs no gradient, the images, stays as it was set from data: learning it would take the first
    convolution's gradient of its input, which nothing else needs and which is a tenth of a training step.

    Args:
        bits: 2 to 8.
        channels: number of output channels for per-channel steps (weights), None for one step (activations).
        signed: two's complement range, else from zero; of activations only until `fit` sets it.
    """

    TAKES_PART_OF_KERNEL = True  # a step a channel, none a tap: `seam.models.padding_taps` may cut the kernel behind it

    def __init__(self, bits: int, channels: int | None, signed: bool = True):
        super().__init__()
        self.bits = bits
        self.channels = channels
        self.enabled = True  # False: pass the input through (while steps are being set from it)
        shape = (1,) if channels is None else (1, channels)
        self.log_step = nn.Parameter(torch.zeros(shape))
        self.register_buffer("bounds", integer_bounds([bits], signed))
        self.register_buffer("limits", no_limits(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        x, limits = take(x, self.limits)
        learned = self.channels is not None or x.requires_grad
        steps = (self.log_step if learned else self.log_step.detach()).exp()
        return mix(x, steps, None, self.bounds, limits)

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Set the step from all elements [C, ...] of a weight; range and step from some [1, K] of an activation
        (`seam.quant.functional.input_grids`)."""
        if self.channels is None:
            bounds, steps = input_grids(samples, [self.bits])
            self.bounds.copy_(bounds)
        else:
            steps = initial_steps(samples, self.bounds.to(samples.device))
        self.log_step.copy_(steps.log().view_as(self.log_step))

    @property
    def signed(self) -> bool:
        return bool(self.bounds[0, 0] < 0)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, channels={self.channels}"


def tensor_samples(x: Tensor) -> Tensor:
    """At most 16384 elements, one drawn in each of as many equal parts, and the extremes: [1, K].

    Evenly spaced ones would alias: a distance that shares a divisor with the size of a channel meets the same few
    pixels of every channel. The extremes set the signs, and the widest step that is tried. Every call draws alike.
    """
    flat = x.detach().reshape(-1)
    low, high = torch.aminmax(flat)
    if len(flat) > _TENSOR_SAMPLES:
        draws = torch.rand(_TENSOR_SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        places = (torch.arange(_TENSOR_SAMPLES) + draws) * (len(flat) / _TENSOR_SAMPLES)
        flat = flat[places.long().clamp_(max=len(flat) - 1).to(flat.device)]
    return torch.cat([flat, low[None], high[None]])[None]


Read = Callable[[nn.Module, Tensor], Tensor]  # (layer, its input) -> quantized input


class _Standardize(nn.Module):
    """The weight standardisation of timm's StdConv2d and ScaledStdConv2d, as a parametrization below the quantizer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self._layer = [layer]  # in a list: the layer must not become a submodule of itself

    def forward(self, weight: Tensor) -> Tensor:
        layer = self._layer[0]
        gain = (layer.gain * layer.scale).view(-1) if hasattr(layer, "gain") else None
        rows = weight.reshape(1, weight.shape[0], -1)
        rows = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps)
        return rows.reshape_as(weight)


class _PlainConv:
    """The forward of a standardising convolution without its standardisation, which `weight` now has."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if getattr(layer, "same_pad", False):
            x = pad_same(x, layer.kernel_size, layer.stride, layer.dilation)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class _ReadWeight(Tensor):
    """A weight that a parent module applies itself: when it does, the input is quantized on the way."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if func in WEIGHTED:
            weight = weight_argument(args, kwargs)
            if hasattr(weight, "layer"):
                args, kwargs = replace_input(args, kwargs, weight.read(weight.layer, layer_input(args, kwargs)))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


class _Hand(nn.Module):
    """Last parametrization of such a weight: hands it out as a `_ReadWeight`."""

    def __init__(self, layer: nn.Module, read: Read):
        super().__init__()
        self._layer, self._read = [layer], read

    def forward(self, weight: Tensor) -> Tensor:
        handed = weight.as_subclass(_ReadWeight)
        handed.layer, handed.read = self._layer[0], self._read
        return handed


class _ReadHook:
    """Forward pre-hook: quantizes the input that the layer was called with."""

    def __init__(self, read: Read):
        self.read = read

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return replace_input(args, kwargs, self.read(layer, layer_input(args, kwargs)))


def standardize(layer: nn.Module) -> None:
    """Move a layer's own weight standardisation, if it has one, into `layer.weight`; its output stays the same.

    A device stores and multiplies by the tensor that the convolution is given. For timm's StdConv2d family this is the
    standardised weight, so the quantizer must come after the standardisation: it would not stay on the grid of a
    quantized weight.
    """
    standardising = isinstance(layer, StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame)
    if standardising and "forward" not in vars(layer):
        parametrize.register_parametrization(layer, "weight", _Standardize(layer), unsafe=True)
        layer.forward = _PlainConv(layer)


def attach(layer: nn.Module, weight: nn.Module | None, read: Read | None, functional: bool = False) -> None:
    """Quantize a layer's weight and input, in place. Call `standardize` first, to initialise from `layer.weight`.

    Args:
        weight: parametrization for `layer.weight`; None leaves it as it is.
        read: called with (layer, input); None leaves inputs as they are.
        functional: the weight is applied by a parent, not by the layer's own forward.
    """
    if weight is not None:
        parametrize.register_parametrization(layer, "weight", weight, unsafe=True)
    if read is not None and functional:
        parametrize.register_parametrization(layer, "weight", _Hand(layer, read), unsafe=True)
    elif read is not None:
        layer.register_forward_pre_hook(_ReadHook(read), with_kwargs=True)


def check_weight(name: str, layer: nn.Module) -> None:
    """Raise SeamError unless the layer has a weight that can be parametrized."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise SeamError(
            f"layer {name} is a {type(layer).__name__}: only nn.Conv2d, nn.Linear and their subclasses are quantized"
        )
    if weight_parameter(layer) is None:
        raise SeamError(f"layer {name}: its weight is computed elsewhere (weight_norm?); exclude the layer")


def weight_quantizer(layer: nn.Module) -> Quantizer | None:
    """The quantizer of `layer.weight`, None where it has none. (It need not be the first parametrization.)"""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((p for p in layer.parametrizations["weight"] if isinstance(p, Quantizer)), None)
