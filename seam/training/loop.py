"""The one training loop: pretraining, search and QAT finetuning differ in their loss and parameter groups only."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seam.runtime.meter import Meter
from seam.runtime.process import loader_workers
from seam.runtime.progress import progress
from seam.training.checkpoint import _restore, _save
from seam.training.optimizers import Group

Loss = Callable[[Tensor, Tensor, float], tuple[Tensor, dict[str, Tensor]]]

_CHECKPOINT_SECONDS = 60.0
_ROWS_PER_EPOCH = 20  # rows of history.csv


def fit(
    module: nn.Module,
    loss: Loss,
    images: Any,
    epochs: int,
    batch_size: int,
    groups: Iterable[Group],
    seed: int,
    device: torch.device,
    meter: Meter,
    augment: bool = False,
    resume: Path | None = None,
    live: Callable[..., None] = lambda step, **metrics: None,
    label: str = "train",
    clip_norm: float | None = None,
    frozen: Iterable[nn.Module] = (),
    steps: int | None = None,
) -> list[dict[str, Any]]:
    """Train `module` in place and return the rows of history.csv.

    Args:
        module: everything with state (parameters, buffers) that training changes.
        loss: (images, labels, share of all steps done) -> (scalar loss, scalars to log).
        images: a seam.data.loaders.ImageSet.
        resume: checkpoint file, written about once a minute. If it exists, training goes on from it and ends the
            same: the order of images and their augmentation depend on seed, epoch and position only. SeamError: it
            is another model's, or one's on images of another size.
        live: called with (step, **metrics) for each row of the history.
        clip_norm: the most that the gradient of the first group's parameters may have as its norm; longer ones are
            scaled down. Few-bit depthwise networks pass gradients on magnified a thousandfold.
        steps: at most so many, where the epochs have more.
        frozen: parts of the module that stay in evaluation mode: BatchNorm keeps its statistics, dropout is off.
    """
    groups = [group for group in groups if group.params]
    optimizers = [group.optimizer() for group in groups]
    batch_size = min(batch_size, len(images))
    steps_per_epoch = len(images) // batch_size  # the last, smaller batch is left out: BatchNorm needs full ones
    total = min(epochs * steps_per_epoch, steps or math.inf)
    every = max(1, steps_per_epoch // _ROWS_PER_EPOCH)
    history: list[dict[str, Any]] = []
    step = 0
    if resume is not None and resume.exists():
        step, history = _restore(resume, module, optimizers, meter)
    last_saved = time.monotonic()
    module.train()
    for part in frozen:
        part.eval()
    device_type = device.type

    def batches() -> Iterable[tuple[int, int, Tensor, Tensor]]:
        for epoch in range(step // steps_per_epoch, epochs):
            skip = step % steps_per_epoch
            torch.manual_seed(seed * 100_003 + epoch)
            loader = images.batches(
                batch_size,
                seed=seed * 100_003 + epoch,
                augment=augment,
                device=device,
                drop_last=True,
                workers=loader_workers(device),
                skip=skip,
            )
            for position, (x, y) in enumerate(loader, start=skip):
                if epoch * steps_per_epoch + position == total:
                    return
                yield epoch, position, x, y

    with meter.part("train"):
        sums: dict[str, Tensor] = {}
        count = 0
        for epoch, position, x, y in progress(batches(), total - step, label):
            done = step / total
            for group, optimizer in zip(groups, optimizers, strict=True):
                for entry in optimizer.param_groups:
                    entry["lr"] = group.lr * group.scale(done)
                optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device_type, dtype=torch.bfloat16, enabled=device_type == "cuda"):
                value, logs = loss(x, y, done)
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(groups[0].params, clip_norm)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            meter.steps += 1
            meter.look(len(y), forwards=3)
            count += 1
            for name, item in {"loss": value, **logs}.items():
                sums[name] = sums.get(name, 0) + item.detach()
            if (position + 1) % every == 0 or position + 1 == steps_per_epoch or step == total:
                means = {name: float(item) / count for name, item in sums.items()}  # the only wait for the device
                history.append({"step": step, "epoch": epoch + 1, **{k: round(v, 6) for k, v in means.items()}})
                history[-1] |= {
                    "lr": round(groups[0].lr * groups[0].scale(done), 8),
                    "seconds": round(meter.seconds(), 2),
                }
                live(step, **means)
                sums, count = {}, 0
                if resume is not None and time.monotonic() - last_saved > _CHECKPOINT_SECONDS:
                    _save(resume, step, history, module, optimizers, meter)
                    last_saved = time.monotonic()
    meter.epochs += math.ceil(total / steps_per_epoch)
    module.eval()
    return history
