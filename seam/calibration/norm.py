"""BatchNorm re-estimation: its statistics become those of the quantized network (Sun et al. 2019, Hybrid 8-bit).

What BatchNorm hands on then has, channel by channel, the mean and the variance that it has in full precision. With few
bits the means alone (bias correction, Nagel et al. 2019) make it worse: rounding makes outputs noisier, and the noise
that the next activation rectifies adds up from layer to layer.
"""

import torch
from torch import Tensor, nn

from seam.calibration.output_error import fit_to_outputs
from seam.models.norms import norms_behind
from seam.models.shared_inputs import watch
from seam.quant.apply import input_quantizers


@torch.no_grad()
def fit_and_re_estimate(model: nn.Module, teacher: nn.Module, x: Tensor) -> list[str]:
    """Choose each layer's steps by `fit_to_outputs`, then the statistics of the BatchNorm behind it, in place; returns
    the layers that have one.

    One pass of the full-precision `teacher` and one of the model over the images x [N, C, H, W], in order of execution:
    a layer's steps are chosen for what those before it hand on with their new statistics. An error's mean, a channel,
    does not count in the choice: the statistics take it away.
    """
    model.eval()
    teacher.eval()
    norms = norms_behind(model, input_quantizers(model), x[:1])
    wanted: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, output: Tensor, functional: bool) -> None:
        wanted[name] = _moments(output)

    def set_statistics(name: str, output: Tensor, functional: bool) -> None:
        if name not in norms:
            return
        norm, (mean, variance), (old_mean, old_variance) = norms[name], _moments(output), wanted[name]
        ratio = (variance + norm.eps) / (old_variance + norm.eps)
        norm.running_mean.sub_(old_mean).mul_(ratio.sqrt()).add_(mean)
        norm.running_var.mul_(ratio)

    with watch(teacher, norms, lambda name, x: None, note):
        teacher(x)
    fit_to_outputs(model, x, norms, set_statistics)
    return list(norms)


def _moments(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of [N, C, ...]."""
    # Not `torch.var_mean`, which takes several times as long where channels are innermost in memory.
    rows = output.movedim(1, -1).reshape(-1, output.shape[1])
    mean = rows.mean(0)
    return mean, rows.sub(mean).square_().mean(0)
