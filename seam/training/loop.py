"""The one training loop: pretraining, search and QAT finetuning differ in their loss and parameter groups only."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seam.errors import SeamError
from seam.runtime.distributed import (
    average_gradients,
    averages,
    greatest,
    processes,
    rank,
    start_alike,
    synchronized_batch_norm,
)
from seam.runtime.memory import enough_memory
from seam.runtime.meter import Meter
from seam.runtime.process import loader_workers
from seam.runtime.progress import progress
from seam.training.checkpoint import Checkpoints, Run
from seam.training.divergence import diverged, first_infinite_layer, infinite_tensors, layer_name, not_finite
from seam.training.optimizers import Group
from seam.training.stop import Stop, stopped_at

Loss = Callable[[Tensor, Tensor, float], tuple[Tensor, dict[str, Tensor]]]

_CHECKPOINT_SECONDS = 60.0
_ROWS_PER_EPOCH = 20  # rows of history.csv


def _in_bfloat16(device: torch.device) -> bool:
    """Whether a training there computes in bfloat16, under autocast."""
    return device.type == "cuda"


def _looks_once_a_row(device: torch.device) -> bool:
    """Whether losses, and signals that processes must agree on, are looked at once a row of the history, not once a
    step: reading a value waits for all that a GPU was given to do, which a row does anyway."""
    return device.type != "cpu"


def batch_size_key(section: str) -> str:
    """The parameter that says how large batches are, of a section of the parameters or, with "", of no section."""
    return f"{section}.batch_size" if section else "batch_size"


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
    section: str = "",
    sync_batch_norm: bool = True,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """Train `module` in place and return the rows of history.csv.

    Args:
        module: everything with state (parameters, buffers) that training changes.
        loss: (images, labels, share of all steps done) -> (scalar loss, scalars to log).
        images: a seam.data.loaders.ImageSet.
        resume: checkpoint file, written about once a minute (see `Checkpoints`), and when SIGTERM or SIGINT end the
            training (see `Stop`). If it exists, training goes on from it and ends the same: the order of images and
            their augmentation depend on seed, epoch and position only.
        live: called with (step, **metrics) for each row of the history.
        clip_norm: the most that the gradient of the first group's parameters may have as its norm; longer ones are
            scaled down. Few-bit depthwise networks pass gradients on magnified a thousandfold.
        steps: at most so many, where the epochs have more.
        frozen: parts of the module that stay in evaluation mode: BatchNorm keeps its statistics, dropout is off.
        section: of the parameters that the settings are in, for messages.
        sync_batch_norm: in several processes BatchNorm normalises by a whole batch; else by a process's own share, and
            the statistics of the first process are kept.
        keep: write a checkpoint of the last step, too, for a signal while what comes after is at work.

    In several processes (`seam.runtime.distributed`) `batch_size` is that of all; each computes its share of a batch.

    Raises:
        SeamError: the training diverged, or memory ran out (the last checkpoint stays as it was); batches are too
            small for BatchNorm; or the checkpoint is another model's, or one's on images of another size.
        SystemExit, KeyboardInterrupt: SIGTERM or SIGINT ended it.
    """
    groups = [group for group in groups if group.params]
    key = batch_size_key(section)
    if batch_size % (shares := processes()):
        raise SeamError(f"{key}: must be a multiple of the {shares} processes that share a batch (found {batch_size})")
    if len(images) < shares:
        raise SeamError(f"{label}: {len(images)} images are too few for {shares} processes; give each at least one")
    batch_size = min(batch_size, len(images) // shares * shares)
    steps_per_epoch = len(images) // batch_size  # the last, smaller batch is left out: BatchNorm needs full ones
    total = min(epochs * steps_per_epoch, steps or math.inf)
    every = max(1, steps_per_epoch // _ROWS_PER_EPOCH)
    run = Run(module, [group.optimizer() for group in groups], meter)
    checkpoints = Checkpoints(resume)
    infinite = set(infinite_tensors(module))  # as it was given; masks of attention, say
    checkpoints.restore(run)
    start_alike(module)
    last_saved = time.monotonic()
    module.train()
    for part in frozen:
        part.eval()
    once_a_row = _looks_once_a_row(device)

    def batches() -> Iterable[tuple[int, int, Tensor, Tensor]]:
        for epoch in range(run.step // steps_per_epoch, epochs):
            skip = run.step % steps_per_epoch
            torch.manual_seed(seed * 100_003 + epoch)
            loader = images.batches(
                batch_size,
                seed=seed * 100_003 + epoch,
                augment=augment,
                device=device,
                drop_last=True,
                workers=loader_workers(device),
                skip=skip,
                share=(rank(), shares),
            )
            try:
                for position, (x, y) in enumerate(loader, start=skip):
                    if ended() or epoch * steps_per_epoch + position == total:
                        return
                    if position == skip > 0:
                        run.continue_random()
                    yield epoch, position, x, y
                    if ended():
                        return
            except Exception:
                if stop.signum is None:  # else the loader's processes got the signal too
                    raise

    def ended() -> bool:
        """Whether a signal ends the training here; several processes must do so after the same step."""
        return (stop.signum if shares == 1 else agreed["signum"]) is not None

    def agree() -> None:
        if shares > 1 and (signum := greatest(stop.signum or 0, device)):
            stop.signum = agreed["signum"] = signum

    def forward(x: Tensor, y: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=_in_bfloat16(device)):
                return loss(x, y, done)
        except ValueError as wrong:
            if "more than 1 value per channel" not in str(wrong):
                raise
            few = f"BatchNorm gets a single value a channel from a batch of {len(x)}"
            raise SeamError(f"{label}: {few}; give at least 2 images, and batches of as many") from wrong

    def error(what: str, step: int, layer: str) -> SeamError:
        when = f"at step {step} of {total}, epoch {math.ceil(step / steps_per_epoch)}"
        return diverged(label, when, what, layer, groups, section)

    def save() -> bool:
        # Weights may lose their finite values one step before the loss does; what is kept is good to go on from.
        return not set(infinite_tensors(module)) - infinite and checkpoints.save(run)

    agreed: dict[str, int | None] = {"signum": None}
    losses: list[Tensor] = []  # of the steps since the last row
    notes: dict[str, float] = {}  # of the last row, for whoever waits
    alike = synchronized_batch_norm(sync_batch_norm)
    with enough_memory(label, key, batch_size), meter.part("train"), alike, Stop() as stop:
        for epoch, position, x, y in progress(batches(), total - run.step, label, notes):
            done = run.step / total
            for group, optimizer in zip(groups, run.optimizers, strict=True):
                for entry in optimizer.param_groups:
                    entry["lr"] = group.lr * group.scale(done)
                optimizer.zero_grad(set_to_none=True)
            value, logs = forward(x, y, done)
            items = averages({"loss": value.detach(), **{name: item.detach() for name, item in logs.items()}})
            losses.append(items["loss"])
            # A training that diverges on a GPU takes the rest of its row in vain; on a CPU it stops at once.
            if not once_a_row and not torch.isfinite(items["loss"]):
                layer = first_infinite_layer(module, lambda: forward(x, y, done))  # noqa: B023 (called at once)
                raise error(not_finite({k: float(v) for k, v in items.items()}), run.step + 1, layer)
            value.backward()
            average_gradients(p for group in groups for p in group.params)
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(groups[0].params, clip_norm)
            for optimizer in run.optimizers:
                optimizer.step()
            run.step += 1
            meter.steps += 1
            meter.look(len(y) * shares, forwards=3)
            run.count += 1
            for name, item in items.items():
                run.sums[name] = run.sums.get(name, 0) + item
            if not once_a_row:
                agree()
            if (position + 1) % every and position + 1 < steps_per_epoch and run.step < total:
                continue
            means = {name: float(item) / run.count for name, item in run.sums.items()}  # the only wait for the device
            row = {"step": run.step, "epoch": epoch + 1, **{k: round(v, 6) for k, v in means.items()}}
            row |= {"lr": round(groups[0].lr * groups[0].scale(done), 8), "seconds": round(meter.seconds(), 2)}
            if wrong := not_finite(row):
                finite = torch.isfinite(torch.stack(losses)).tolist()
                first = finite.index(False) + 1 if False in finite else len(losses)
                layer = first_infinite_layer(module, lambda: forward(x, y, done))  # noqa: B023 (called at once)
                raise error(wrong, run.step - len(losses) + first, layer)
            run.history.append(row)
            live(run.step, **means)
            notes |= {"epoch": epoch + 1, "loss": means["loss"]}
            if "budget" in means:
                notes["cost / budget"] = means["budget"]
            run.sums, run.count = {}, 0
            if once_a_row:
                agree()
            losses.clear()
            if resume is not None and time.monotonic() - last_saved > _CHECKPOINT_SECONDS:
                save()
                last_saved = time.monotonic()
        if ended():
            saved = save()
            greatest(0, device)  # all wait for the one that writes: the first to leave takes the others with it
            stop.leave(stopped_at(run.step, saved))
        if wrong := [name for name in infinite_tensors(module) if name not in infinite]:
            raise error("the weights are not finite", total, layer_name(wrong[0]))
        if keep and resume is not None:
            save()
    meter.epochs += math.ceil(total / steps_per_epoch)
    module.eval()
    return run.history
