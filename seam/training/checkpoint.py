"""Checkpoints of a training run, from which it goes on and ends the same."""

from pathlib import Path

import torch
from torch import nn

from seam.errors import SeamError
from seam.io import write_atomic
from seam.runtime.meter import Meter


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
