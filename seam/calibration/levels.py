"""The levels of calibration, from the quickest to the most accurate; each begins as those before it.

steps        inputs: of least squared error (one pass)
output       inputs and weights: of least error of each layer's output
norm         and BatchNorm's statistics re-estimated for the quantized network, layer by layer with the steps
reconstruct  from `output` on: rounding, steps, biases and normalisation learned, one block after the other
"""

import copy
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from seam.calibration.norm import fit_and_re_estimate
from seam.calibration.output_error import fit_to_outputs
from seam.calibration.reconstruct import reconstruct
from seam.data.image_sets import TensorSet, in_memory
from seam.errors import unknown
from seam.quant.apply import calibrate as fit_steps
from seam.quant.apply import input_quantizers
from seam.quant.quantizer import Quantizer
from seam.runtime.progress import phase
from seam.settings import Level, Reconstruction

LEVELS = get_args(Level)
_BATCH = 256  # images of a pass for the level `steps`
_IMAGES = 64  # that the levels `output` and `norm` look at


def calibrate(
    model: nn.Module,
    images: Any,
    level: str,
    device: torch.device,
    settings: Reconstruction | None = None,
    seed: int = 0,
    resume: Path | None = None,
) -> list[dict[str, Any]]:
    """Set a quantized model's steps, and by `reconstruct` its rounding and biases, in place; returns the rows of that.

    Args:
        model: of `seam.quant.apply.quantize`, its weights still those of full precision.
        images: a seam.data.image_sets.ImageSet, in a random order; labels are not read. `reconstruct` holds them in
            memory, since it reads them again and again.
        seed, resume, settings: of `reconstruct`.

    Raises SeamError for an unknown level, and as `reconstruct` does.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS, "calibrate")
    with phase(f"calibrate on {len(images)} images"):
        fit_steps(model, images.batches(_BATCH, device=device))
    if level == "steps":
        return []
    teacher = full_precision(model)
    ((x, _),) = images.subset(range(min(_IMAGES, len(images)))).batches(_IMAGES, device=device)
    with phase("steps of least output error"):
        if level == "norm":
            fit_and_re_estimate(model, teacher, x)
        else:
            fit_to_outputs(model, x)
    if level != "reconstruct":
        return []
    if not isinstance(images, TensorSet):
        with phase("read images"):
            images = in_memory(images)
    return reconstruct(model, teacher, images, settings or Reconstruction(), seed, device, resume)


def full_precision(model: nn.Module) -> nn.Module:
    """A copy of a quantized model whose quantizers are off: the network that it was made from."""
    teacher = copy.deepcopy(model).eval()
    for module in teacher.modules():
        if isinstance(module, Quantizer):
            module.enabled = False
    for quantizer in input_quantizers(teacher).values():
        quantizer.enabled = False
    return teacher
