"""Weights of a finetuned network: told from full-precision ones, and loaded under the bits they were tuned for."""

import math
from pathlib import Path

from torch import nn

from seam.errors import SeamError
from seam.io import load_tensors, tensor_names
from seam.quant.quantizer import Quantizer


def is_finetuned(weights: str | Path) -> bool:
    """Whether a file holds weights of a finetuned network, not full-precision ones; only names are read."""
    return Path(weights).suffix == ".safetensors" and any("input_quantizer" in name for name in tensor_names(weights))


def load_finetuned(model: nn.Module, weights: str | Path) -> nn.Module:
    """Load finetuned weights into a quantized model; returns it, in eval mode.

    SeamError: they are another model's, or were tuned under other bits (their shapes do not tell).
    """
    state = load_tensors(weights)
    for name, module in model.named_modules():
        bounds = state.get(f"{name}.bounds") if isinstance(module, Quantizer) else None
        if bounds is None:
            continue
        sound = bounds.shape == module.bounds.shape and bounds.dtype == module.bounds.dtype
        levels = float(bounds[1, 0] - bounds[0, 0]) + 1 if sound else 0
        if not 1 <= levels <= 2**32:
            raise SeamError(f"{weights}: {name}.bounds holds no range of integers; finetune again")
        if (found := round(math.log2(levels))) != module.bits:
            raise SeamError(f"{weights}: tuned under another policy: {name} has {found} bits, not {module.bits}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise SeamError(f"{weights}: not the weights of this model under this policy: {error}") from None
    if broken := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise SeamError(f"{weights}: weights hold NaN or infinity: {', '.join(broken[:3])}")
    return model.eval()
