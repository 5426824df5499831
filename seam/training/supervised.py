"""Supervised training: pretraining, and finetuning (QAT) of a quantized network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.models.find import input_size, total_macs
from seam.models.padding_taps import without_unreached_taps
from seam.quant.fused_activations import clamp_in_quantizers
from seam.runtime.meter import Meter
from seam.settings import Finetune, Training
from seam.training.loop import Loss, fit
from seam.training.optimizers import Group


def cross_entropy(model: nn.Module, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of a classifier; logs the batch's top-1 in percent."""

    def loss(x: Tensor, y: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(x)
        with torch.no_grad():
            top1 = (logits.argmax(1) == y).float().mean() * 100
        return F.cross_entropy(logits, y, label_smoothing=smoothing), {"top1": top1}

    return loss


def train(
    model: nn.Module, settings: Training, images: Any, seed: int, device: torch.device, meter: Meter, **more: Any
) -> list[dict[str, Any]]:
    """Supervised training in place: pretraining, or finetuning of a quantized model; returns the rows of history.csv.

    What `images` never reach of the model is left out on the way, and quantizers do the activations before them: the
    same function for less. Weight decay, too, passes by what is left out.

    Args:
        more: of `fit`.
    """
    size = input_size(images.channels, images.image_size)
    if isinstance(settings, Finetune):
        more["clip_norm"] = settings.clip_norm
        if settings.batch_norm == "frozen":
            more["frozen"] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with without_unreached_taps(model, size):
        meter.macs_per_image = total_macs(model, size)
        with clamp_in_quantizers(model, size):
            return fit(
                model,
                cross_entropy(model, settings.label_smoothing),
                images,
                settings.epochs,
                settings.batch_size,
                training_groups(model, settings),
                seed,
                device,
                meter,
                augment=settings.augment,
                **more,
            )


def training_groups(model: nn.Module, settings: Training) -> list[Group]:
    """Parameter groups of supervised training: the network's own, and the quantizers' log steps if it has any."""
    steps = [p for name, p in model.named_parameters() if name.endswith("log_step")]
    known = {id(p) for p in steps}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [Group(rest, settings.lr, "sgd", settings.weight_decay, settings.momentum)]
    if isinstance(settings, Finetune):
        groups.append(Group(steps, settings.step_lr, "adam", key="step_lr"))
    return groups
