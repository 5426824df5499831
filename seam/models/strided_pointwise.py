"""Strided 1x1 convolutions of few channels, so that a CPU computes their weights' gradient without harm.

oneDNN, with which torch convolves on x86, writes past its workspace there: channels_last, a stride above 1, fewer
channels than its block (8 with AVX2, 16 with AVX-512). The process dies some time later, or computes on with what was
overwritten (https://github.com/uxlfoundation/oneDNN/issues/6035; seen with torch 2.15 and repvgg_a0). Of its input such
a convolution reads every second pixel and nothing else, so where gradients are taken it gets just these, at stride 1.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 16  # channels; of AVX-512


def read_fewer_pixels(model: nn.Module) -> list[str]:
    """Make the convolutions of a model safe to train, in place; returns their names. Outputs and exports stay."""
    found = [name for name, module in model.named_modules() if _overruns(module)]
    for name in found:
        layer = model.get_submodule(name)
        layer._conv_forward = partial(_convolve, stride=layer.stride, groups=layer.groups)
    return found


def _overruns(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.padding in ((0, 0), "valid")
        and module.in_channels // module.groups < _BLOCK
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], groups: int) -> Tensor:
    if torch.is_grad_enabled() and weight.requires_grad:
        return F.conv2d(x[:, :, :: stride[0], :: stride[1]], weight, bias, groups=groups)
    return F.conv2d(x, weight, bias, stride, groups=groups)
