"""Cutting off what small images never reach: kernel taps of convolutions that only ever meet padding.

On small images a deep layer works on one or two pixels. A 3x3 convolution with padding 1 on one pixel multiplies eight
of its nine taps by zeros: they change no output and get no gradient, yet they would be quantized, convolved and updated
at every step. For ResNet-18 on 8x8 images that is 86 % of all weights. Without them it computes the same function.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.models.shared_inputs import layer_input, run_once, weight_parameter

_Taps = Sequence[tuple[int, int]]  # the first and the last tap that meet pixels, along each axis
# nn.Conv2d keeps its padding in the last form too, for padding modes other than zeros.
_GEOMETRY = ("kernel_size", "padding", "_reversed_padding_repeated_twice")


def used_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """First and last tap, along one axis of `size` pixels, of the part of a kernel that meets pixels.

    The part gives the same outputs with `padding - dilation * first` in place of `padding`; where none does, all taps.
    """

    def outputs(taps: int, padding: int) -> int:
        return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1

    count = outputs(kernel, padding)
    rows = [range(t * dilation - padding, t * dilation - padding + count * stride, stride) for t in range(kernel)]
    used = [t for t, row in enumerate(rows) if any(0 <= r < size for r in row)]
    first, last = (min(used[0], padding // dilation), used[-1]) if used else (0, kernel - 1)
    return (first, last) if outputs(last - first + 1, padding - dilation * first) == count else (0, kernel - 1)


def cut_taps(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Cut, in place, the taps that meet only padding on images of `size` (C, H, W); returns how many weights are left.

    The model then takes images of this size only. Plain nn.Conv2d with zero padding are cut, quantized or not;
    subclasses, which may read their kernel size or all taps (weight standardisation), stay as they are.
    """
    for layer, taps in _unreached(model, size):
        _cut(layer, taps)
    return sum(p.numel() for p in model.parameters())


@contextmanager
def without_unreached_taps(model: nn.Module, size: tuple[int, int, int]) -> Iterator[None]:
    """Within the context the model is one that `cut_taps` has cut; then the kernels are whole again.

    The taps that were cut come back as they were, the others as training in the context left them. Do not move the
    model to another device or type in the context.
    """
    whole = []
    try:
        for layer, taps in _unreached(model, size):
            whole.append((layer, taps, weight_parameter(layer), {name: vars(layer)[name] for name in _GEOMETRY}))
            _cut(layer, taps)
        yield
    finally:
        with torch.no_grad():
            for layer, taps, weight, geometry in whole:
                if weight_parameter(layer) is not weight:  # it is where cutting failed
                    _part(weight, taps).copy_(weight_parameter(layer))
                    _put(layer, weight)
                vars(layer).update(geometry)


def _unreached(model: nn.Module, size: tuple[int, int, int]) -> list[tuple[nn.Conv2d, _Taps]]:
    """The convolutions that can do with fewer taps on images of `size`, and with which."""
    sizes: dict[nn.Conv2d, set[tuple[int, int]]] = {}

    def note(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        sizes.setdefault(layer, set()).add(tuple(layer_input(args, kwargs).shape[-2:]))

    found = [m for m in model.modules() if parametrize.type_before_parametrizations(m) is nn.Conv2d]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in found]
    try:
        run_once(model, size)
    finally:
        for hook in hooks:
            hook.remove()
    owners = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    cuts = []
    for layer, seen in sizes.items():
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if plain and len(seen) == 1 and _own_weight(layer) and owners.count(id(weight_parameter(layer))) == 1:
            axes = zip(*seen, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
            taps = [used_taps(*axis) for axis in axes]
            if any(last - first + 1 < kernel for (first, last), kernel in zip(taps, layer.kernel_size, strict=True)):
                cuts.append((layer, taps))
    return cuts


def _own_weight(layer: nn.Conv2d) -> bool:
    """Is the layer's weight a parameter, or one behind a quantizer, which has a step a channel and none a tap?"""
    if not parametrize.is_parametrized(layer):
        return True
    behind = [p for parts in layer.parametrizations.values() for p in parts]
    return len(behind) == 1 and getattr(behind[0], "TAKES_PART_OF_KERNEL", False)


def _part(weight: Tensor, taps: _Taps) -> Tensor:
    (top, bottom), (left, right) = taps
    return weight[:, :, top : bottom + 1, left : right + 1]


def _put(layer: nn.Conv2d, weight: nn.Parameter) -> None:
    if parametrize.is_parametrized(layer):
        layer.parametrizations["weight"].original = weight
    else:
        layer.weight = weight


@torch.no_grad()
def _cut(layer: nn.Conv2d, taps: _Taps) -> None:
    weight = weight_parameter(layer)
    _put(layer, nn.Parameter(_part(weight, taps).clone(), weight.requires_grad))
    layer.kernel_size = tuple(last - first + 1 for first, last in taps)
    before = zip(layer.padding, layer.dilation, taps, strict=True)
    layer.padding = tuple(padding - dilation * first for padding, dilation, (first, _) in before)
    layer._reversed_padding_repeated_twice = [p for padding in reversed(layer.padding) for p in (padding, padding)]
