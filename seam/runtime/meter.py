"""The meter of what a job costs: seconds, images, multiply-accumulates, memory."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_COUNTS = ("images", "forwards", "steps", "epochs")


def _peak_kib() -> int:
    """Most memory that this program held. Linux's ru_maxrss would be that of the program that started it, if more."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Meter:
    """Counts what a job costs: seconds by part, images, steps and multiply-accumulates.

    images: that were looked at, each time. forwards: what was computed on them in forward passes' work: a backward pass
    counts as two, or as one where it makes no gradients of weights. image_macs is `forwards` times macs_per_image.

    device: of `set_up`; None for a job without torch, on the CPU and in one thread.
    """

    def __init__(self, device: torch.device | None):
        self.device = device
        self._cuda, self._threads = None, 1
        if device is not None:
            import torch

            self._cuda, self._threads = torch.cuda if device.type == "cuda" else None, torch.get_num_threads()
        self.images = self.steps = self.epochs = self.macs_per_image = self.forwards = 0
        self.kernels = "none"
        self.seconds_once = 0.0  # compiling kernels: done once on a machine, so that no job's seconds hold it
        self.seconds_aside = 0.0  # of `aside`
        self.parts: dict[str, float] = {"start": 0.0}
        self._part, self._since = "start", 0.0  # the part that is going on, and the second in which it began
        # Seconds since the process started, so that the imports before this line count too.
        age = _process_age()
        self._start = time.perf_counter() - age
        self.started = time.time() - age  # Unix time; of the first process, where one goes on from a checkpoint

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's seconds as the named part, without those that it adds to `seconds_once` or sets aside.

        A part within a part interrupts it, and what is in no part is "start": the parts sum to `seconds()`.
        """
        outer = self._part
        self._turn_to(name)
        try:
            yield
        finally:
            if self._cuda:
                self._cuda.synchronize(self.device)
            self._turn_to(outer)

    def _turn_to(self, part: str) -> None:
        now = self.seconds()
        self.parts[self._part] = self.parts.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the block's seconds out of `seconds` and of every part: what is no work of the job's own."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_aside += time.perf_counter() - start

    def look(self, images: int, forwards: int = 1) -> None:
        """Count images that were looked at, and what was computed on each, in forward passes."""
        self.images += images
        self.forwards += images * forwards

    def state(self) -> dict[str, Any]:
        """All that was counted so far, for a checkpoint (JSON)."""
        self._turn_to(self._part)
        counts = {name: getattr(self, name) for name in _COUNTS}
        seconds = {"seconds": self._since, "seconds_once": self.seconds_once, "started": self.started}
        return {**counts, **seconds, "parts": dict(self.parts)}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take up the `state` of an earlier process, at its checkpoint.

        Each second whose work was kept counts once. The earlier process's seconds count up to its checkpoint, this
        one's from here on: what the earlier one did after its checkpoint is done again, and what this one did until
        here (imports, setup) the earlier one did before. So a job that was cut off costs what it would have cost in
        one go. Compiling is the exception: whichever process did it, it was done once.
        """
        for name in _COUNTS:
            setattr(self, name, state[name])
        self.seconds_once += state["seconds_once"]
        self.started = state.get("started", self.started)
        self.parts, self._since = dict(state["parts"]), state["seconds"]
        self._start += self.seconds() - state["seconds"]

    def seconds(self) -> float:
        """Seconds since process start, less `seconds_once` and `aside`; after `go_on_from` of one run in one go."""
        return time.perf_counter() - self._start - self.seconds_once - self.seconds_aside

    def peak_memory_mb(self) -> float:
        """Most memory held so far, in MB: of the GPU, else of the process."""
        if self._cuda:
            return self._cuda.max_memory_allocated(self.device) / 1e6
        return _peak_kib() / 1e3

    def cost(self, **extra: Any) -> dict[str, Any]:
        """The content of cost.json. `seconds` counts from process start: imports, loading of kernels, solver included.

        Compiling kernels is not in `seconds` and its `parts`, but in `seconds_once`. `started`, `ended`: UTC.
        """
        state = self.state()
        return {
            "seconds": round(state["seconds"], 3),
            "seconds_once": round(self.seconds_once, 3),
            "started": _iso(self.started),
            "ended": _iso(time.time()),
            "images": self.images,
            "steps": self.steps,
            "epochs": self.epochs,
            "macs_per_image": self.macs_per_image,
            "image_macs": self.forwards * self.macs_per_image,
            "peak_memory_mb": round(self.peak_memory_mb(), 1),
            "device": str(self.device or "cpu"),
            "device_name": self._cuda.get_device_name(self.device) if self._cuda else processor_name(),
            "threads": self._threads,
            "kernels": self.kernels,
            "parts": {name: round(value, 3) for name, value in state["parts"].items()},
            **extra,
        }


def processor_name() -> str:
    """Model name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _iso(seconds: float) -> str:
    """A Unix time as 2026-01-31T12:00:00.000+00:00."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _process_age() -> float:
    """Seconds since this process was started (0 where the system does not tell)."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
            return float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
