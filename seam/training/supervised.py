"""Supervised training: pretraining, and finetuning (QAT) of a quantized network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.models.find import total_macs
from seam.models.norms import batch_norms
from seam.models.padding_taps import without_unreached_taps
from seam.quant.fused_activations import clamp_in_quantizers
from seam.runtime.distributed import processes
from seam.runtime.memory import enough_memory
from seam.runtime.meter import Meter
from seam.settings import Finetune, Training
from seam.training.loop import Loss, batch_size_key, fit
from seam.training.optimizers import Group
from seam.training.statistics import PASSES, re_estimate
from seam.training.stop import Stop, stopped_at


def cross_entropy(model: nn.Module, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of a classifier; logs the batch's top-1 in percent."""

    def loss(x: Tensor, y: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(x)
        return F.cross_entropy(logits, y, label_smoothing=smoothing), {"top1": _top1(logits, y)}

    return loss


def distilled(model: nn.Module, teacher: nn.Module, share: float, smoothing: float, meter: Meter) -> Loss:
    """share x KL(teacher || model) + (1 - share) x cross-entropy, means over images; logs top-1 as `cross_entropy`.

    Distillation of Hinton et al. (2015), at temperature 1 (our choice). The teacher is not trained.
    """

    def loss(x: Tensor, y: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(x).float(), dim=1)
        meter.forwards += len(x) * processes()
        logits = model(x)
        moved = F.kl_div(F.log_softmax(logits.float(), dim=1), wanted, reduction="batchmean", log_target=True)
        logs = {"top1": _top1(logits, y)}
        if share == 1:  # labels are not read; they may be those of other classes
            return moved, logs
        return share * moved + (1 - share) * F.cross_entropy(logits, y, label_smoothing=smoothing), logs

    return loss


@torch.no_grad()
def _top1(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(1) == y).float().mean() * 100


def train(
    model: nn.Module,
    settings: Training,
    images: Any,
    seed: int,
    device: torch.device,
    meter: Meter,
    teacher: nn.Module | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """Supervised training in place: pretraining, or finetuning of a quantized model; returns the rows of history.csv.

    What `images` never reach of the model is left out on the way, and quantizers do the activations before them: the
    same function for less. Weight decay, too, passes by what is left out.

    Args:
        teacher: the full-precision network on the same device, in evaluation mode; needed where the settings ask for
            distillation.
        more: of `fit`.
    """
    size, share = images.shape, getattr(settings, "distillation", 0.0)
    statistics = getattr(settings, "batch_norm", "updated")
    loss = cross_entropy(model, settings.label_smoothing)
    if share:
        loss = distilled(model, teacher, share, settings.label_smoothing, meter)
    if statistics != "updated":
        more["frozen"] = batch_norms(model)
    if statistics == "re-estimated":
        more["keep"] = True
    with without_unreached_taps(model, size):
        meter.macs_per_image = total_macs(model, size)
        with clamp_in_quantizers(model, size):
            history = fit(
                model,
                loss,
                images,
                settings.epochs,
                settings.batch_size,
                training_groups(model, settings),
                seed,
                device,
                meter,
                augment=settings.augment,
                clip_norm=settings.clip_norm,
                sync_batch_norm=settings.sync_batch_norm,
                **more,
            )
            if statistics == "re-estimated":
                counted = meter.forwards  # the loss counts its teacher as one of several processes, each with a share
                batch, key = settings.batch_size, batch_size_key(more.get("section", ""))
                with meter.part("statistics"), enough_memory(more.get("label", "train"), key, batch), Stop() as stop:
                    seen = re_estimate(model, images, lambda x, y: loss(x, y, 1.0)[0], seed, device, batch)
                    if stop.signum is not None:
                        checkpoint = more.get("resume")
                        stop.leave(stopped_at(history[-1]["step"], bool(checkpoint and checkpoint.exists())))
                meter.forwards = counted
                meter.look(seen, forwards=PASSES + (2 if share else 0))  # the teacher's at each look at the loss
            return history


def training_groups(model: nn.Module, settings: Training) -> list[Group]:
    """Parameter groups of supervised training: the network's own, and the quantizers' log steps if it has any."""
    steps = [p for name, p in model.named_parameters() if name.endswith("log_step")]
    known = {id(p) for p in steps}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [Group(rest, settings.lr, settings.optimizer, settings.weight_decay, settings.momentum)]
    if isinstance(settings, Finetune):
        groups.append(Group(steps, settings.step_lr, "adam", key="step_lr"))
    return groups
