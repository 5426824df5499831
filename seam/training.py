"""The one training loop: pretraining, search and QAT finetuning differ in their loss and parameter groups only."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.errors import SeamError
from seam.io import write_atomic
from seam.models import input_size, total_macs
from seam.params import Finetune, Training
from seam.quant.clamps import clamp_in_quantizers
from seam.runtime import Meter, loader_workers, progress
from seam.taps import without_unreached_taps

Loss = Callable[[Tensor, Tensor, float], tuple[Tensor, dict[str, Tensor]]]

_WARM_UP = 0.05  # share of all steps over which the learning rate rises from 0
_CHECKPOINT_SECONDS = 60.0
_ROWS_PER_EPOCH = 20  # rows of history.csv


class _SGD(torch.optim.SGD):
    """SGD on views of the parameters whose axes are in the order of memory, as all are but those in channels_last.

    torch's fused step would first copy each gradient in channels_last, which takes longer than the step itself, and on
    a CPU it takes wrong steps where a gradient is not in its parameter's format.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any):
        self.viewed: list[tuple[nn.Parameter, Tensor, tuple[int, ...]]] = []
        for group in groups:
            for p in group["params"]:
                order = tuple(sorted(range(p.dim()), key=p.stride, reverse=True))
                self.viewed.append((p, p.detach().permute(order), order))
        views = iter(view for _, view, _ in self.viewed)
        super().__init__([{**group, "params": [next(views) for _ in group["params"]]} for group in groups], **settings)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for p, view, order in self.viewed:
            view.grad = None if p.grad is None else p.grad.permute(order).contiguous()
        loss = super().step(closure)
        super().zero_grad()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p, _, _ in self.viewed:
            p.grad = None


@dataclass
class Group:
    """Parameters with an optimizer of their own."""

    params: list[nn.Parameter]
    lr: float
    kind: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["cosine", "constant"] = "cosine"

    def optimizer(self) -> torch.optim.Optimizer:
        """Fused SGD with Nesterov momentum, or fused Adam; weight decay spares biases and norm parameters."""
        if self.kind == "adam":
            return torch.optim.Adam(self.params, lr=self.lr, fused=True)
        decayed = [p for p in self.params if p.dim() > 1]
        spared = [p for p in self.params if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        return _SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0, fused=True)

    def scale(self, done: float) -> float:
        """Learning rate at a share `done` of all steps, relative to `lr`."""
        if self.schedule == "constant":
            return 1.0
        if done < _WARM_UP:
            return done / _WARM_UP
        return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def cross_entropy(model: nn.Module, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of a classifier; logs the batch's top-1 in percent."""

    def loss(x: Tensor, y: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(x)
        with torch.no_grad():
            top1 = (logits.argmax(1) == y).float().mean() * 100
        return F.cross_entropy(logits, y, label_smoothing=smoothing), {"top1": top1}

    return loss


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
        groups.append(Group(steps, settings.step_lr, "adam"))
    return groups


def _save(path: Path, step: int, history: list, module: nn.Module, optimizers: list, meter: Meter) -> None:
    state = {
        "step": step,
        "history": history,
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "meter": {"images": meter.images, "forwards": meter.forwards, "steps": meter.steps, "seconds": meter.seconds()},
    }
    write_atomic(path, lambda temporary: torch.save(state, temporary))


def _restore(path: Path, module: nn.Module, optimizers: list, meter: Meter) -> tuple[int, list]:
    state = torch.load(path, weights_only=True)
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:
        raise SeamError(
            f"{path}: the checkpoint does not fit the model and the size of its images; delete it to start anew "
            f"({str(error).splitlines()[-1].strip()})"
        ) from None
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    meter.images, meter.forwards, meter.steps = (state["meter"][key] for key in ("images", "forwards", "steps"))
    meter.add_earlier(state["meter"]["seconds"])
    return state["step"], state["history"]
