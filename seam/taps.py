"""Cutting off what small images never reach: kernel taps of convolutions that only ever meet padding.

On a small proxy a deep layer works on one or two pixels. A 3x3 convolution with padding 1 on one pixel multiplies eight
of its nine taps by zeros: they change no output and get no gradient, yet they would be quantized, convolved and updated
at every step. For ResNet-18 on 8x8 images that is 86 % of all weights. Without them it computes the same function.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from seam.groups import layer_input, run_once


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

    The model then takes images of this size only. Plain nn.Conv2d with zero padding are cut; subclasses, which may read
    their kernel size or all taps (weight standardisation), stay as they are.
    """
    sizes: dict[nn.Conv2d, set[tuple[int, int]]] = {}

    def note(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        sizes.setdefault(layer, set()).add(tuple(layer_input(args, kwargs).shape[-2:]))

    found = [m for m in model.modules() if type(m) is nn.Conv2d]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in found]
    try:
        run_once(model, size)
    finally:
        for hook in hooks:
            hook.remove()
    owners = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    for layer, seen in sizes.items():
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if plain and len(seen) == 1 and not parametrize.is_parametrized(layer) and owners.count(id(layer.weight)) == 1:
            _cut(layer, next(iter(seen)))
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _cut(layer: nn.Conv2d, size: Sequence[int]) -> None:
    axes = list(zip(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True))
    taps = [used_taps(*axis) for axis in axes]
    parts = [slice(first, last + 1) for first, last in taps]
    layer.weight = nn.Parameter(layer.weight[:, :, parts[0], parts[1]].clone(), layer.weight.requires_grad)
    layer.kernel_size = tuple(last - first + 1 for first, last in taps)
    layer.padding = tuple(axis[3] - axis[4] * first for axis, (first, _) in zip(axes, taps, strict=True))
    # nn.Conv2d keeps its padding in this form too, for padding modes other than zeros.
    layer._reversed_padding_repeated_twice = [p for padding in reversed(layer.padding) for p in (padding, padding)]
