"""Quantized networks under a policy: made, calibrated, finetuned, measured."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.errors import SeamError
from seam.models.find import class_count
from seam.tool.images import has_classes_of, input_size

CALIBRATION_IMAGES = 256
LR = {"sgd": 0.005, "adamw": 2e-5}  # of finetuning, at batches of 64


def file_mb(model: nn.Module, policy: Mapping[str, Any]) -> float:
    """Megabytes (1e6 bytes) that the values in the ONNX file of a policy take; the graph itself comes on top.

    Weights in the narrowest types, with a float32 step a channel; all else of the model in float32.
    """
    from seam.policy.file import entries, stored_mb

    modules, layers = dict(model.named_modules()), entries(policy)
    values = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    weights = sum(modules[layer.name].weight.numel() for layer in layers)
    steps = sum(len(modules[layer.name].weight) for layer in layers if not layer.full_precision)
    return float(stored_mb(layers) + 4e-6 * (values - weights + steps))


def quantize(model: nn.Module, policy: Mapping[str, Any] | str | Path) -> nn.Module:
    """A copy of the model, fake-quantized under a policy (a file, or its content); it trains like any module.

    Its weights are quantized at once; give it images with `calibrate` before use. SeamError: the policy does not fit.
    """
    from seam.policy.file import check_policy, read_policy
    from seam.quant.apply import apply_policy

    where = policy if isinstance(policy, str | Path) else "policy"
    content = read_policy(policy) if isinstance(policy, str | Path) else check_policy(policy, where)
    network = copy.deepcopy(model)
    apply_policy(network, content, input_size(model), where)
    return network


def calibrate(
    model: nn.Module,
    images: Any,
    count: int = CALIBRATION_IMAGES,
    device: str = "auto",
    *,
    level: str = "norm",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
) -> nn.Module:
    """Set the quantizers of a quantized model from `count` shuffled images; returns the model, on the device.

    Like `finetune` and `evaluate` it fixes this process's threads, seeds and determinism (`set_up`).

    Args:
        model: of `quantize`; its weights are still those of full precision.
        images: of any kind like those that the model is for; labels are not read.
        level: steps, output, norm or reconstruct, from the quickest to the slowest (`seam.calibration.levels`).
        settings: of `reconstruct` (seam.settings.Reconstruction), such as {"iterations": 800}.
        seed: of `reconstruct`.
        resume: checkpoint of an interrupted `reconstruct`.

    Raises SeamError for an unknown level, wrong settings, and errors that are not finite.
    """
    from seam.calibration.levels import calibrate as apply
    from seam.quant.kernels import use_kernels
    from seam.runtime.process import set_up
    from seam.settings import Reconstruction, checked

    chosen = checked(Reconstruction, settings or {})
    place = set_up(device, torch.get_num_threads(), seed)
    model.to(place)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images.subset(order[:count])
    if level != "steps":
        use_kernels(device=place)
        model.to(memory_format=torch.channels_last)
    apply(model, images, level, place, chosen, seed, Path(resume) if resume else None)
    return model


def finetune(
    model: nn.Module,
    images: Any,
    *,
    epochs: int = 1,
    batch_size: int = 64,
    lr: float | None = None,
    optimizer: str = "sgd",
    step_lr: float = 1e-3,
    batch_norm: str = "re-estimated",
    distillation: float | None = None,
    teacher: nn.Module | None = None,
    augment: bool = True,
    seed: int = 0,
    resume: str | Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Quantization-aware training of a quantized model, in place; returns the rows of its history.

    The images' classes must be the model's (SeamError otherwise), unless `distillation` is 1.

    Args:
        lr: learning rate of the weights; by default 0.005 (adamw: 2e-5) at batches of 64, and in proportion at others
            (Goyal et al. 2017), since few images give rough gradients.
        optimizer: of the weights: sgd, or adamw, which suits transformers.
        distillation: share of the loss, 0 to 1, that is the distance to the `teacher`'s predictions; with 1 no label is
            read. By default 1 where there is a teacher: labels cost more in a short training (docs/calibration.md).
        teacher: the network in full precision.
        resume: checkpoint of an interrupted run.
    """
    from seam.quant.kernels import use_kernels
    from seam.runtime.meter import Meter
    from seam.runtime.process import set_up
    from seam.settings import Finetune, checked
    from seam.training.supervised import train

    if distillation is None:
        distillation = 0.0 if teacher is None else 1.0
    check_classes(model, images, distillation)
    lr = lr if lr is not None else LR.get(optimizer, 1.0) * min(batch_size, len(images)) / 64
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "step_lr": step_lr,
        "augment": augment,
    }
    given |= {"optimizer": optimizer, "batch_norm": batch_norm, "distillation": distillation}
    settings = checked(Finetune, given)
    if distillation and teacher is None:
        raise SeamError("distillation: give the full-precision model as teacher")
    place = set_up(device, torch.get_num_threads(), seed)
    meter = Meter(place)
    use_kernels(settings.kernels, device=place)
    model.to(place).to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher = teacher.to(place).to(memory_format=torch.channels_last).eval()
    checkpoint = Path(resume) if resume else None
    rows = train(model, settings, images, seed, place, meter, teacher, resume=checkpoint, label="finetune")
    known = has_classes_of(model, images)
    return rows if known else [{key: value for key, value in row.items() if key != "top1"} for row in rows]


def evaluate(model: nn.Module, images: Any, batch_size: int = 64, device: str = "auto") -> dict[str, float]:
    """Top-1, top-5 (percent), loss and class margin. The images' classes must be the model's (SeamError otherwise)."""
    from seam.quant.kernels import use_kernels
    from seam.runtime.process import set_up
    from seam.training.evaluate import evaluate as measure

    check_classes(model, images)
    place = set_up(device, torch.get_num_threads(), 0)
    use_kernels(device=place)
    return measure(model.to(place).to(memory_format=torch.channels_last), images, batch_size, place)


def check_classes(model: nn.Module, images: Any, distillation: float | None = None) -> None:
    """SeamError unless the images' classes are the model's; they need not be to finetune with a `distillation` of 1."""
    if distillation != 1 and not has_classes_of(model, images):
        way_out = "" if distillation is None else "; or finetune with a distillation of 1, which reads no labels"
        raise SeamError(
            f"the images have {len(images.classes)} classes, the model {class_count(model)}: give its own classes, "
            f"one folder each, in the model's order by name{way_out}"
        )
