"""Checkpoints of a training run, from which it goes on and ends the same.

One is a safetensors file: the tensors of the module, the optimizers and the random generators; all else as JSON in its
metadata, beside a SHA-256 of both. Nothing in it can run code. The last two are kept, NAME and NAME.previous, so that
one that was damaged costs minutes, not the run.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from seam.errors import SeamError
from seam.io import temporary_prefix, write_atomic, write_tensors
from seam.runtime.distributed import rank
from seam.runtime.meter import Meter
from seam.training.stop import deferred_signals

_FORMAT = "seam checkpoint 1"


@dataclass
class Run:
    """All that changes while a training runs.

    Attributes:
        sums, count: of the logged scalars, over the steps since the last row of the history.
        random: states of torch's generators at the checkpoint, {"cpu", "cuda": uint8}: dropout draws from them.
    """

    module: nn.Module
    optimizers: list[torch.optim.Optimizer]
    meter: Meter
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    random: dict[str, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def continue_random(self) -> None:
        """Set torch's generators to where the checkpoint left them."""
        torch.set_rng_state(self.random["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random["cuda"], self.device)


class Checkpoints:
    """The last two checkpoints of a run: `path`, and the one before it. `path` None: none are kept."""

    def __init__(self, path: Path | None):
        self.path, self._warned = path, False
        if path is not None:
            self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
            if not rank():
                self._clean()

    def save(self, run: Run) -> bool:
        """Write a checkpoint; whether it worked. A disk that is full or read-only is no reason to end a training.

        Of several processes the first one writes, and all go on from it.
        """
        if self.path is None:
            return False
        if rank():
            return True

        def write(temporary: Path) -> None:
            write_tensors(temporary, tensors, {"format": _FORMAT, "state": state, "sha256": _digest(tensors, state)})
            if self.path.exists():
                self.path.replace(self.previous)

        tensors, state = _pack(run)
        try:
            write_atomic(self.path, write)
            return True
        except OSError as error:
            if not self._warned:
                _warn(f"{self.path}: cannot write the checkpoint ({_line(error)}); going on without")
            self._warned = True
            return False

    def restore(self, run: Run) -> bool:
        """Set `run` to the last sound checkpoint; whether there was one. A damaged one is put aside, with a warning.

        SeamError: it is sound, but another model's, or one's on images of another size.
        """
        for path in (self.path, self.previous) if self.path is not None else ():
            if not path.exists():
                continue
            try:
                with deferred_signals():
                    tensors, state = _read(path)
            except Exception as error:  # bytes that anything may have happened to: many types, of several libraries
                _warn(f"{path}: not a sound checkpoint ({_line(error)}), skipped")
                with contextlib.suppress(OSError):
                    # Not deleted: it may be a file of the user's, given by mistake.
                    path.replace(path.with_name(f"{self.path.stem}.damaged{path.suffix}"))
                continue
            try:
                _unpack(run, tensors, state)
            except (RuntimeError, LookupError, ValueError) as error:
                raise SeamError(
                    f"{path}: the checkpoint does not fit the model and the size of its images; delete it to start "
                    f"anew ({str(error).splitlines()[-1].strip()})"
                ) from None
            return True
        return False

    def _clean(self) -> None:
        """Delete what kills in the middle of a write have left."""
        with contextlib.suppress(OSError):
            for path in self.path.parent.iterdir():
                if path.name.startswith(temporary_prefix(self.path)):
                    path.unlink()


def _pack(run: Run) -> tuple[dict[str, Tensor], str]:
    """The tensors of a run, by name, and all else of it as JSON."""
    tensors = {f"module.{name}": value for name, value in run.module.state_dict().items()}
    tensors |= {f"sum.{name}": value for name, value in run.sums.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if run.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.device)
    scalars: dict[str, Any] = {}
    for number, optimizer in enumerate(run.optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                kind = tensors if isinstance(value, Tensor) else scalars
                kind[f"optimizer.{number}.{index}.{key}"] = value
    state = {
        "step": run.step,
        "history": run.history,
        "count": run.count,
        "meter": run.meter.state(),
        "optimizers": scalars,
    }
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return own, json.dumps(state, allow_nan=False)


def _unpack(run: Run, tensors: Mapping[str, Tensor], text: str) -> None:
    state = json.loads(text)
    run.module.load_state_dict(_under("module.", tensors))
    for number, optimizer in enumerate(run.optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        values: dict[int, dict[str, Any]] = {}
        for name, value in (_under(f"optimizer.{number}.", {**tensors, **state["optimizers"]})).items():
            index, key = name.split(".", 1)
            like = parameters[int(index)]
            if isinstance(value, Tensor) and value.shape == like.shape:
                # In the parameter's order of memory, which the fused steps rely on.
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            values.setdefault(int(index), {})[key] = value
        # The groups' settings are the run's own; only what the steps have made comes from the checkpoint.
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    run.step, run.history, run.count = state["step"], state["history"], state["count"]
    run.sums = {name: value.to(run.device) for name, value in _under("sum.", tensors).items()}
    run.random = {name: value.clone() for name, value in _under("random.", tensors).items()}
    run.meter.go_on_from(state["meter"])


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the state in a file; an exception of any type where it is not as it was written."""
    with safe_open(str(path), "pt") as file:
        about = file.metadata() or {}
        if about.get("format") != _FORMAT:
            raise ValueError("written by something else")
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    if about["sha256"] != _digest(tensors, about["state"]):
        raise ValueError("its content is not what was written")
    return tensors, about["state"]


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    """What an error says, as a part of one line."""
    text = str(error) or type(error).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def _warn(text: str) -> None:
    print(f"seam: warning: {text}", file=sys.stderr, flush=True)
